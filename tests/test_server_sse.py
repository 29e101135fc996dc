"""Streams: pings while nothing else comes, and errors inside."""

from __future__ import annotations

from typing import Any

from engines import NO_END
from running_server import events, running

from pyllama_long.engine import EngineConfig
from pyllama_long.server.settings import Settings


def test_pings_are_comments_while_a_prompt_is_read(demo_model: str) -> None:
    settings = Settings(model_name="demo", ping_s=0.02)
    config = EngineConfig(demo_model, n_ctx=8192, n_threads=1, n_batch=512)
    body: dict[str, Any] = {
        "prompt": "The old house stood near the river. " * 800,
        "n_predict": 1,
        "stream": True,
    }
    with running(config, settings) as server, server.client() as client:
        found = client.post("/completion", json=body)
        before = found.text.partition("data: ")[0]
        assert before.count(": ping\n\n") >= 2 and not before.replace(": ping\n\n", "")
        assert events(found)[-1]["stop"]


def test_quiet_streams_keep_the_clients_that_count_events(demo_model: str) -> None:
    """Claude Code and Codex count neither comments nor pings."""
    settings = Settings(model_name="demo", ping_s=0.02)
    config = EngineConfig(demo_model, n_ctx=8192, n_threads=1, n_batch=512, cache_ram=0)
    content = "The old house stood near the river. " * 800
    with running(config, settings) as server, server.client() as client:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "max_tokens": 2}
        told = client.post("/v1/messages", json=body | {"stream": True})
        assert "\n: ping" not in told.text
        names = [line[7:] for line in told.text.split("\n") if line.startswith("event: ")]
        before = names[: names.index("content_block_start")]
        assert before[:7] == ["message_start"] + ["ping"] * 5 + ["message_delta"]
        assert names[-2:] == ["message_delta", "message_stop"]
        other = {"input": f"Now: {content}", "max_output_tokens": 16, "stream": True}
        kinds = [event["type"] for event in events(client.post("/v1/responses", json=other))]
        before = kinds[: kinds.index("response.output_item.added")]
        assert (
            before[0] == "response.created"
            and set(before[1:]) == {"response.in_progress"}
            and len(before) > 2
        )


def test_an_error_inside_a_stream_is_an_event_and_then_the_end(demo_model: str) -> None:
    settings = Settings(model_name="demo", request_timeout_s=1.5)
    config = EngineConfig(demo_model, n_ctx=32768, n_threads=1)
    messages = [{"role": "user", "content": "Hi"}]
    body = {"messages": messages, "max_tokens": 30000, "stream": True, "logit_bias": NO_END}
    with running(config, settings) as server, server.client() as client:
        found = events(client.post("/v1/chat/completions", json=body))
        assert found[-1]["error"]["code"] == "timeout" and "choices" in found[-2]
        schema = {"type": "array", "items": {"type": "string", "minLength": 50}, "minItems": 100}
        form = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
        answer = {"input": "Hi", "stream": True, "text": form}
        failed = events(client.post("/v1/responses", json=answer))[-1]
        assert failed["type"] == "response.failed" and failed["response"]["error"]["code"] == "timeout"
        told = client.post("/v1/messages", json=body | {"temperature": 0}).text
        assert "[DONE]" not in told
