"""llama.cpp's routes, sessions, state and metrics."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from engines import NO_END
from running_server import Server, events, running

from pyllama_long.engine import EngineConfig
from pyllama_long.server.security import read_keys
from pyllama_long.server.settings import Settings

PROMPT = "It was a long day, and the old man sat down by the fire to rest."


@pytest.fixture(scope="module")
def server(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("cache")
    config = EngineConfig(
        demo_model, n_ctx=512, n_parallel=2, n_threads=1, precision="f32", cache_dir=str(folder)
    )
    with running(config) as found:
        yield found


def test_completion_speaks_as_llama_server_does(client: httpx.Client) -> None:
    body: dict[str, Any] = {"prompt": PROMPT, "n_predict": 6, "temperature": 0, "n_probs": 2}
    whole = client.post("/completion", json=body).json()
    assert whole["stop"] and whole["stop_type"] == "limit" and whole["tokens_predicted"] == 6
    assert len(whole["completion_probabilities"]) == 6
    found = events(client.post("/completion", json=body | {"stream": True, "n_probs": 0}))
    assert "".join(event["content"] for event in found) == whole["content"]
    assert [event["stop"] for event in found] == [False] * (len(found) - 1) + [True]
    stopped = client.post("/completion", json=body | {"stop": whole["content"][3:6]}).json()
    assert stopped["stop_type"] == "word" and stopped["content"] == whole["content"][:3]


def test_completion_takes_schemas_and_biases(client: httpx.Client) -> None:
    schema = {"enum": ["yes", "no"]}
    body: dict[str, Any] = {"prompt": PROMPT, "n_predict": 10, "json_schema": schema}
    assert json.loads(client.post("/completion", json=body).json()["content"]) in ("yes", "no")
    tokens = client.post("/completion", json={"prompt": PROMPT, "n_predict": 1, "temperature": 0}).json()[
        "tokens"
    ]
    never: Any = {"prompt": PROMPT, "n_predict": 1, "temperature": 0, "logit_bias": [[tokens[0], False]]}
    assert client.post("/completion", json=never).json()["tokens"] != tokens


def test_a_stream_has_the_tokens_of_half_a_character(client: httpx.Client) -> None:
    body = {"prompt": "x", "n_predict": 1, "grammar": 'root ::= "🙂🙂"', "n_probs": 1}
    whole = client.post("/completion", json=body).json()
    found = events(client.post("/completion", json=body | {"stream": True}))
    assert len(whole["tokens"]) == 1 and whole["content"] == ""
    assert [token for event in found for token in event["tokens"]] == whole["tokens"]
    probs = [one for event in found for one in event.get("completion_probabilities") or ()]
    assert [one["id"] for one in probs] == whole["tokens"] and found[-1]["stop"]


def test_control_tokens_come_back(client: httpx.Client) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Zürich?"}]
    text = client.post("/apply-template", json={"messages": messages}).json()["prompt"]
    body = {"content": text, "parse_special": True}
    tokens = client.post("/tokenize", json=body).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": tokens}).json()["content"] == text
    echo = {"prompt": tokens, "echo": True, "max_tokens": 0}
    assert client.post("/v1/completions", json=echo).json()["choices"][0]["text"] == text


def test_tokenize_and_back(client: httpx.Client) -> None:
    text = "Zürich 東京 <|im_start|>"
    tokens = client.post("/tokenize", json={"content": text}).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": tokens}).json()["content"] == text
    special = client.post("/tokenize", json={"content": "<|im_start|>", "parse_special": True}).json()
    assert len(special["tokens"]) == 1
    pieces = client.post("/tokenize", json={"content": "東", "with_pieces": True}).json()["tokens"]
    assert bytes(b for piece in pieces for b in piece["piece"]).decode() == "東"
    assert client.post("/detokenize", json={"tokens": [99999]}).status_code == 400


def test_apply_template(client: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    found = client.post("/apply-template", json=body).json()["prompt"]
    assert found == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_sessions_are_saved_listed_restored_and_deleted(client: httpx.Client, server: Server) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    said = client.post(
        "/v1/chat/completions", json={"messages": messages, "max_tokens": 8, "temperature": 0}
    ).json()
    messages.append({"role": "assistant", "content": said["choices"][0]["message"]["content"]})
    server.quiet()
    saved = client.post("/v1/sessions", json={"name": "day-1", "messages": messages})
    assert saved.status_code == 200, saved.text
    assert saved.json()["tokens"] > 30
    assert [one["name"] for one in client.get("/v1/sessions").json()["data"]] == ["day-1"]
    assert client.post("/v1/sessions/day-1/restore").json()["tokens"] == saved.json()["tokens"]
    assert client.delete("/v1/sessions/day-1").json()["deleted"]
    assert client.post("/v1/sessions/day-1/restore").status_code == 404
    assert client.delete("/v1/sessions/day-1").status_code == 404


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "x" * 100, "a\x00b", "a b"])
def test_names_of_sessions_are_names(client: httpx.Client, name: str) -> None:
    assert client.post("/v1/sessions", json={"name": name, "prompt": "x"}).status_code == 400


def test_nothing_cached_is_nothing_to_save(client: httpx.Client) -> None:
    found = client.post("/v1/sessions", json={"name": "a", "prompt": [700, 701, 702]})
    assert found.status_code == 400


def test_props_say_what_runs(client: httpx.Client, server: Server) -> None:
    found = client.get("/props").json()
    assert found["n_ctx"] == 512 and found["attention"] == str(server.engine.plan)
    assert "im_start" in found["chat_template"] and "attention" in found["explain"]


def test_metrics_count(client: httpx.Client) -> None:
    def value(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    before = value("pyllama_long_completion_tokens_total")
    client.post("/completion", json={"prompt": PROMPT, "n_predict": 5, "temperature": 0})
    assert value("pyllama_long_completion_tokens_total") == before + 5
    assert value('pyllama_long_http_requests_total{method="POST",route="/completion",status="200"}') >= 1
    assert value("pyllama_long_engine_cells_total") == 512
    assert value("pyllama_long_requests_active") == 0


def test_without_embeddings_there_are_none(client: httpx.Client) -> None:
    found = client.post("/v1/embeddings", json={"input": "x"})
    assert found.status_code == 400 and found.json()["error"]["code"] == "no_embeddings"


def test_the_page_needs_no_other_host(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    whole = page.text + client.get("/web/app.js").text + client.get("/web/style.css").text
    assert "http://" not in whole.replace("http://www.w3.org/2000/svg", "") and "https://" not in whole


def test_prompts_are_not_in_the_log(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("pyllama_long.server")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    with caplog.at_level("DEBUG", logger=logger.name):
        client.post("/completion", json={"prompt": "A very private word", "n_predict": 1})
        # A request is logged after its answer has gone out.
        end = time.monotonic() + 5
        while not caplog.records and time.monotonic() < end:
            time.sleep(0.01)
    records = [record for record in caplog.records if record.name == logger.name]
    assert records and all("private" not in str(record.__dict__) for record in records)


def test_a_limit_of_time_ends_an_answer(demo_model: str) -> None:
    settings = Settings(model_name="demo", request_timeout_s=0.05)
    body = {"prompt": PROMPT, "n_predict": 4000, "logit_bias": NO_END}
    with (
        running(EngineConfig(demo_model, n_ctx=4096, n_threads=1), settings) as server,
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


def test_key_files(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\none\n\n  two  \n")
    assert read_keys(path) == ["one", "two"]
    path.write_text("# none\n")
    with pytest.raises(ValueError, match="no API key"):
        read_keys(path)
