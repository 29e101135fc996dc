"""Requests on the engine end: in time, or when nobody waits."""

from __future__ import annotations

import httpx
import openai
import pytest
from asking import PROMPT, ask
from engines import NO_END
from running_server import Server, events, running

from pyllama_long.engine import EngineConfig
from pyllama_long.server.settings import Settings


def test_a_limit_of_time_ends_an_answer(demo_model: str) -> None:
    settings = Settings(model_name="demo", request_timeout_s=1)
    body = {"prompt": PROMPT, "n_predict": 30000, "logit_bias": NO_END}
    with (
        running(EngineConfig(demo_model, n_ctx=32768, n_threads=1), settings) as server,
        server.client() as client,
    ):
        found = client.post("/completion", json=body)
        assert found.status_code == 408 and found.json()["error"]["code"] == "timeout"
        streamed = events(client.post("/completion", json=body | {"stream": True}))
        assert streamed[-1]["error"]["code"] == "timeout"
        server.quiet()


def test_an_answer_that_nobody_waits_for_is_cancelled(server: Server) -> None:
    before = server.engine.stats().cancelled
    body = {"prompt": PROMPT, "n_predict": 400, "n_probs": 20, "logit_bias": NO_END}
    with httpx.Client(timeout=0.05) as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{server.url}/completion", json=body)
    server.cancelled(before + 1)


def test_a_stream_that_is_left_is_cancelled(openai_client: openai.OpenAI, server: Server) -> None:
    before = server.engine.stats().cancelled
    stream = ask(openai_client, "Tell me a long story.", stream=True, max_tokens=1900, logit_bias=NO_END)
    next(stream)
    stream.close()
    server.cancelled(before + 1)


def test_progress_is_told_on_request(server: Server) -> None:
    body = {
        "messages": [{"role": "user", "content": "A new word " * 400}],
        "stream": True,
        "max_tokens": 1,
        "return_progress": True,
    }
    with server.client() as raw:
        found = events(raw.post("/v1/chat/completions", json=body))
    progress = [e["prompt_progress"] for e in found if "prompt_progress" in e]
    assert progress[-1]["processed"] == progress[-1]["total"] > 1000
    assert [p["processed"] for p in progress] == sorted(p["processed"] for p in progress)
    timings = [e["timings"] for e in found if "timings" in e]
    assert len(timings) == 1 and timings[0]["keys_read_share"] > 0
