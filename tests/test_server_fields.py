"""Fields that peers know: honoured, refused by name, or named in a header; tools and items of other kinds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from asking import BODIES, ok
from running_server import Server, events, running

from pyllama_long.engine import EngineConfig


@pytest.fixture(scope="module")
def server(demo_model: str) -> Iterator[Server]:
    config = EngineConfig(demo_model, n_threads=1, n_ctx=1024, n_parallel=4, precision="f32", embedding=True)
    with running(config) as found:
        yield found


@pytest.mark.parametrize("path", BODIES)
def test_no_field_is_dropped_in_silence(client: httpx.Client, path: str) -> None:
    body = BODIES[path]
    for field, value in (
        ("guided_regex", "a+"),
        ("guided_choice", ["a"]),
        ("structured_outputs", {"regex": "a"}),
        ("min_tokens", 3),
        ("stop_token_ids", [1]),
        ("bad_words", ["a"]),
    ):
        answer = client.post(path, json=body | {field: value})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == field, (field, answer.text)
    harmless = {
        "user": "me",
        "service_tier": "auto",
        "id_slot": 1,
        "nöw": 1,
        "": 1,
        "min_tokens": 0,
        "bad_words": None,
    }
    answer = client.post(path, json=body | harmless)
    ok(answer)
    named = answer.headers["X-Ignored-Fields"].split(", ")
    assert {"id_slot", "n?w", "?"} <= set(named) and not {"min_tokens", "bad_words"} & set(named)
    assert "X-Ignored-Fields" not in client.post(path, json=body).headers
    stream = client.post(path, json=body | {"stream": True, "id_slot": 1})
    assert stream.headers["X-Ignored-Fields"] == "id_slot"


def test_our_own_items_come_back(client: httpx.Client) -> None:
    tools = [{"type": "function", "name": "look"}]
    body = {"input": "Go", "tools": tools, "tool_choice": "required", "max_output_tokens": 60}
    said = ok(client.post("/v1/responses", json=body))["output"]
    call = next(one for one in said if one["type"] == "function_call")
    result = {
        "type": "function_call_output",
        "call_id": call["call_id"],
        "output": "nothing",
        "status": "completed",
    }
    custom = {"type": "custom_tool_call", "id": "c", "call_id": "d", "name": "patch", "input": "*** Begin"}
    output = {"type": "custom_tool_call_output", "call_id": "d", "output": "done"}
    searched = {"type": "web_search_call", "id": "ws", "status": "completed", "action": {"type": "search"}}
    items = [{"role": "user", "content": "Go"}, *said, result, custom, output, searched]
    found = ok(client.post("/v1/responses", json={"input": items, "tools": tools, "max_output_tokens": 2}))
    assert found["ignored"] == [f"input.{len(items) - 1}.web_search_call"]


def test_a_chat_keeps_only_the_nulls_of_its_api(client: httpx.Client) -> None:
    (choice,) = ok(client.post("/v1/chat/completions", json=BODIES["/v1/chat/completions"]))["choices"]
    assert set(choice) == {"index", "message", "logprobs", "finish_reason"} and choice["logprobs"] is None
    assert set(choice["message"]) == {"role", "content", "refusal"}


@pytest.mark.parametrize("norm", [None, 2, -1, 0, 1])
def test_embeddings_have_the_length_that_was_asked_for(client: httpx.Client, norm: int | None) -> None:
    body = {"input": ["a cat", "a dog"]} | ({} if norm is None else {"embd_normalize": norm})
    vectors = np.array([one["embedding"] for one in ok(client.post("/v1/embeddings", json=body))["data"]])
    if norm == -1:
        assert (np.abs(np.linalg.norm(vectors, axis=1) - 1) > 0.01).all()
    elif norm == 0:
        np.testing.assert_allclose(np.abs(vectors).max(1), 32760, rtol=1e-6)
    else:
        np.testing.assert_allclose(np.linalg.norm(vectors, norm or 2, axis=1), 1, rtol=1e-5)


def test_prompts_of_every_form(client: httpx.Client) -> None:
    base = {"n_predict": 3, "temperature": 0}

    def said(prompt: Any, **more: Any) -> Any:
        return ok(client.post("/completion", json=base | {"prompt": prompt} | more))

    tokens = ok(client.post("/tokenize", json={"content": "Hello", "add_special": True}))["tokens"]
    one = said("Hello")
    assert said(tokens)["content"] == said(["Hello"])["content"] == one["content"]
    both = said(["Hello", tokens, [*tokens, " you"]])
    assert [found["index"] for found in both] == [0, 1, 2] and both[1]["content"] == one["content"]
    assert said([*tokens, " you"])["tokens_evaluated"] == both[2]["tokens_evaluated"] > len(tokens)
    found = events(client.post("/completion", json=base | {"prompt": ["Hello", "Bye"], "stream": True}))
    texts = ["".join(e["content"] for e in found if e["index"] == i) for i in range(2)]
    assert texts[0] == one["content"] and sum(e["stop"] for e in found) == 2
    assert said("Hello", response_fields=["content", "timings/prompt_n"]).keys() == {"content", "prompt_n"}


def test_aliases_answer(client: httpx.Client) -> None:
    for path in ("/chat/completions", "/completions", "/responses"):
        assert ok(client.post(path, json=BODIES["/v1" + path]))["model"] == "demo"
    for path in ("/embeddings", "/embedding"):
        assert len(ok(client.post(path, json={"input": "x"}))["data"]) == 1
    assert ok(client.get("/models")) == ok(client.get("/v1/models"))
    assert ok(client.get("/models/demo")) == ok(client.get("/v1/models/demo"))
    assert ok(client.get("/v1/health"))["status"] == "ok"
    for path in ("/", "/health", "/v1/health"):
        assert client.head(path).status_code == 200, path
    for path in ("/api/tags", "/api/version", "/slots", "/rerank", "/infill"):
        assert client.get(path).status_code == 404
