"""llama.cpp's own routes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from asking import PROMPT, ok
from running_server import Server, events, running

from pyllama_long.engine import EngineConfig


@pytest.fixture(scope="module")
def server(demo_model: str) -> Iterator[Server]:
    config = EngineConfig(demo_model, n_ctx=512, n_parallel=2, n_threads=1, precision="f32")
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


def test_apply_template(client: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    found = client.post("/apply-template", json=body).json()["prompt"]
    assert found == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_props_say_what_runs(client: httpx.Client, server: Server) -> None:
    found = client.get("/props").json()
    assert found["n_ctx"] == 512 and found["attention"] == str(server.engine.plan)
    assert "im_start" in found["chat_template"] and "attention" in found["explain"]


def test_biases_of_texts(client: httpx.Client) -> None:
    base = {"prompt": "Hello", "n_predict": 1, "temperature": 0}
    first = ok(client.post("/completion", json=base))
    for bias in ([[first["content"], False]], {first["content"]: -100}, [[first["tokens"][0], False]]):
        assert ok(client.post("/completion", json=base | {"logit_bias": bias}))["tokens"] != first["tokens"]
