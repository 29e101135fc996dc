"""Fields that peers know: honoured, refused by name, or named in a header; tools and items of other kinds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from asking import HELLO, ok
from running_server import Server, events, running

from pyllama_long.engine import EngineConfig

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO, "max_tokens": 2},
    "/v1/completions": {"prompt": "Hello", "max_tokens": 2},
    "/completion": {"prompt": "Hello", "n_predict": 2},
    "/v1/messages": {"messages": HELLO, "max_tokens": 2},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 2},
}


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


def test_responses_leave_out_tools_that_others_run(client: httpx.Client) -> None:
    function = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
    kinds = "web_search namespace local_shell mcp image_generation code_interpreter file_search apply_patch"
    others = [{"type": kind, "name": "x", "tools": []} for kind in kinds.split()]
    body = BODIES["/v1/responses"] | {"tools": [*others, function]}
    answer = client.post("/v1/responses", json=body)
    found = ok(answer)
    assert found["ignored"] == [f"tools.{i}.{kind}" for i, kind in enumerate(kinds.split())]
    assert [tool["name"] for tool in found["tools"]] == ["look"]
    assert "tools.0.web_search" in answer.headers["X-Ignored-Fields"]
    assert "ignored" not in ok(client.post("/v1/responses", json=body | {"tools": [function]}))
    required = body | {"tools": others, "tool_choice": "required"}
    assert client.post("/v1/responses", json=required).json()["error"]["param"] == "tool_choice"


def test_one_of_the_allowed_tools_is_called(client: httpx.Client) -> None:
    tools = [{"type": "function", "name": name} for name in ("left", "right", "up")]
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "right"}]}
    body = {"input": "Go", "tools": tools, "tool_choice": allowed, "max_output_tokens": 60}
    calls = [
        one for one in ok(client.post("/v1/responses", json=body))["output"] if one["type"] == "function_call"
    ]
    assert calls and {call["name"] for call in calls} == {"right"}
    shown = [{"type": "function", "function": {"name": tool["name"]}} for tool in tools]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": shown[2:]}}
    chat = {"messages": HELLO, "tools": shown, "tool_choice": choice, "max_tokens": 60}
    (answer,) = ok(client.post("/v1/chat/completions", json=chat))["choices"]
    assert {call["function"]["name"] for call in answer["message"]["tool_calls"]} == {"up"}


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


def test_anthropic_tools_without_a_schema(client: httpx.Client) -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search"}, {"type": "bash_20250124", "name": "bash"}]
    body = BODIES["/v1/messages"] | {"tools": tools}
    found = ok(client.post("/v1/messages", json=body))
    assert found["ignored"] == ["tools.0.web_search_20250305"]
    count = {"messages": HELLO, "tools": tools[:1]}
    plain = ok(client.post("/v1/messages/count_tokens", json={"messages": HELLO}))
    assert ok(client.post("/v1/messages/count_tokens", json=count)) == plain
    shown = ok(client.post("/v1/messages/count_tokens", json=count | {"tools": tools}))
    assert shown["input_tokens"] > plain["input_tokens"] + 20  # bash, with its schema
    broken = client.post("/v1/messages", json=body | {"tools": [{"name": "x"}]})
    assert broken.status_code == 400 and broken.json()["error"]["param"].startswith("tools.0")


def test_output_config_binds(client: httpx.Client) -> None:
    form = {"type": "json_schema", "schema": {"enum": ["yes", "no"]}}
    body = BODIES["/v1/messages"] | {"max_tokens": 20, "output_config": {"format": form}}
    (block,) = ok(client.post("/v1/messages", json=body))["content"]
    assert json.loads(block["text"]) in ("yes", "no") and set(block) == {"type", "text"}


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


def test_biases_of_texts(client: httpx.Client) -> None:
    base = {"prompt": "Hello", "n_predict": 1, "temperature": 0}
    first = ok(client.post("/completion", json=base))
    for bias in ([[first["content"], False]], {first["content"]: -100}, [[first["tokens"][0], False]]):
        assert ok(client.post("/completion", json=base | {"logit_bias": bias}))["tokens"] != first["tokens"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_minus_one_is_no_limit(client: httpx.Client, path: str) -> None:
    name = "max_output_tokens" if path.endswith("responses") else "max_tokens"
    ok(client.post(path, json=BODIES[path] | {name: -1, "temperature": 0}))
    assert client.post(path, json=BODIES[path] | {name: -2}).status_code == 400


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


def test_a_tokenizer_from_afar(client: httpx.Client) -> None:
    info = ok(client.get("/tokenizer_info"))
    assert info["eos_token"] and "im_start" in info["chat_template"]
    found = ok(client.post("/tokenize", json={"prompt": "Hello <|im_start|>", "add_special_tokens": False}))
    assert found["count"] == len(found["tokens"]) and found["max_model_len"] == 1024
    assert ok(client.post("/detokenize", json={"tokens": found["tokens"]}))["prompt"] == "Hello <|im_start|>"
    plain = {"content": "Hello <|im_start|>", "parse_special": False}
    assert len(ok(client.post("/tokenize", json=plain))["tokens"]) > found["count"]
    assert client.post("/tokenize", json={}).status_code == 400


EXTREMES: list[dict[str, float]] = [
    {"temperature": 1e-40},
    {"temperature": 100},
    {"temperature": 1e-40, "repeat_penalty": 100},
    {"top_p": 0},
    {"top_p": 1e-40},
    {"min_p": 1},
    {"typical_p": 0},
    {"typical_p": 1e-40},
    {"top_k": 0},
    {"top_k": -1},
    {"top_k": 2**31 - 1},
    {"repeat_penalty": 1e-3},
    {"presence_penalty": -2, "frequency_penalty": -2},
    {"seed": -(2**63)},
    {"seed": 2**63 - 1},
]


@pytest.mark.parametrize("values", EXTREMES, ids=str)
def test_extreme_values_still_choose(client: httpx.Client, values: dict[str, float]) -> None:
    found = ok(
        client.post("/completion", json={"prompt": "Hello", "n_predict": 4, "temperature": 1} | values)
    )
    assert 0 < found["tokens_predicted"] <= 4


def test_almost_no_temperature_is_none(client: httpx.Client) -> None:
    cold, none = (
        ok(client.post("/completion", json={"prompt": "Hello", "n_predict": 8, "temperature": value}))
        for value in (1e-40, 0)
    )
    assert cold["tokens"] == none["tokens"]


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "typical_p", "repeat_penalty"])
def test_values_out_of_range_are_named(client: httpx.Client, name: str) -> None:
    for value in (-1, 1e30, *([0, 1e-30] if name == "repeat_penalty" else [])):
        answer = client.post("/completion", json=BODIES["/completion"] | {name: value})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == name


@pytest.mark.parametrize("path", ["/completion", "/v1/completions", "/v1/chat/completions"])
def test_writing_ends_after_its_time(client: httpx.Client, path: str) -> None:
    def written(limit_ms: int, rules: str) -> tuple[str, str]:
        body = {key: value for key, value in BODIES[path].items() if key not in ("max_tokens", "n_predict")}
        body |= {"max_tokens": 900, "grammar": rules, "t_max_predict_ms": limit_ms}
        found = ok(client.post(path, json=body))
        if path == "/completion":
            return found["content"], found["stop_type"]
        (choice,) = found["choices"]
        return choice.get("text") or choice["message"]["content"], choice["finish_reason"]

    text, reason = written(20, 'root ::= "a\\n" "bc"{400}')
    assert text.startswith("a\n") and len(text) < 700 and reason in ("limit", "length")
    for limit_ms, rules in ((1, '"bc"{50}'), (0, '"a\\n" "bc"{50}'), (-1, '"a\\n" "bc"{50}')):
        text, reason = written(limit_ms, f"root ::= {rules}")  # no line break, or no limit
        assert text.count("bc") == 50 and reason in ("eos", "stop")
    refused = client.post(path, json=BODIES[path] | {"t_max_predict_ms": -2})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "t_max_predict_ms"
