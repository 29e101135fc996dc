"""Requests with one thing wrong, drawn by chance: never a 5xx, and every answer as the OpenAPI says."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest
from running_server import Server, running

from pyllama_long.engine import EngineConfig

TOOL = {
    "name": "f",
    "description": "d",
    "parameters": {"type": "object", "properties": {"a": {"type": "null"}}},
}
TEXT = {"type": "text", "text": "Hi"}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [
            {"role": "system", "content": "Be."},
            {"role": "user", "content": [TEXT]},
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "x", "tool_call_id": "1"},
        ],
        "max_tokens": 2,
        "n": 1,
        "stop": ["x"],
        "seed": 1,
        "temperature": 1.0,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "logprobs": True,
        "top_logprobs": 1,
        "logit_bias": {"5": 1.0},
        "tools": [{"type": "function", "function": TOOL}],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "null"}}},
        "stream": False,
        "stream_options": {"include_usage": True},
        "overflow": "shift",
        "priority": -1,
        "attention": "auto",
        "return_progress": True,
    },
    "/v1/completions": {
        "prompt": ["Hi", "there"],
        "max_tokens": 2,
        "echo": True,
        "logprobs": 1,
        "n": 1,
        "stop": "x",
        "logit_bias": {"5": 1},
        "stream": False,
        "parse_special": True,
        "best_of": 1,
    },
    "/v1/responses": {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "x"},
        ],
        "instructions": "Be.",
        "max_output_tokens": 2,
        "tools": [{"type": "function", **TOOL}],
        "tool_choice": "auto",
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "boolean"}}},
        "top_logprobs": 1,
        "metadata": {"a": "b"},
        "stream": False,
    },
    "/v1/messages": {
        "messages": [
            {"role": "user", "content": [TEXT]},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [TEXT]}]},
        ],
        "max_tokens": 2,
        "system": [TEXT],
        "tools": [{"name": "f", "input_schema": TOOL["parameters"]}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "stop_sequences": ["x"],
        "stream": False,
    },
    "/completion": {
        "prompt": "Hi",
        "n_predict": 2,
        "stop": ["x"],
        "n_probs": 1,
        "logit_bias": [[5, 1.5], [6, False]],
        "json_schema": {"type": "null"},
        "stream": False,
    },
    "/tokenize": {"content": "Hi", "add_special": True, "parse_special": True, "with_pieces": True},
    "/detokenize": {"tokens": [1, 2, 3]},
    "/apply-template": {"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": True},
    "/v1/embeddings": {"input": ["Hi", "there"], "encoding_format": "float", "dimensions": 256},
    "/v1/sessions": {"name": "a", "prompt": "Hi"},
}
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, -(2**31), 2**63, -(2**70), 0.5, 1e308, -1e308, 5e-324),
    *("", "x", "auto", "none", "\x00", "\ud7ff\uffff\U0010ffff", "<|im_start|>", "é" * 3000, "{}", "[" * 50),
    *([], {}, [None], [[]], [0], [-1], [2**31], [""], ["x", 1], {"": ""}, {"a": {"b": [1]}}, {"$ref": "#"}),
    *(
        [{}],
        [{"role": "user"}],
        {"type": "object"},
        {"type": "function"},
        {"type": ["null", "x"]},
        {"enum": []},
    ),
    *(
        {"const": None},
        {"anyOf": []},
        {"allOf": [{"$ref": "#/$defs/a"}]},
        {"type": "string", "pattern": "^$"},
    ),
]


@pytest.fixture(scope="module")
def server(demo_model: str) -> Iterator[Server]:
    with running(EngineConfig(demo_model, n_ctx=512, n_threads=1, embedding=True)) as found:
        yield found


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place inside a body where something can be put."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, (dict, list)):
            yield from places(item, (*path, key))


def changed(body: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    body = copy.deepcopy(body)
    inner: Any = body
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return body


@pytest.mark.parametrize("route", BODIES)
def test_nothing_that_is_wrong_is_our_fault(server: Server, route: str) -> None:
    chance, body = random.Random(route), BODIES[route]
    with server.client() as client:
        first = client.post(route, json=body)
        assert first.status_code in (200, 400), first.text
        found = list(places(body))
        for _ in range(60):
            wrong = changed(body, chance.choice(found), chance.choice(VALUES))
            answer = client.post(route, json=wrong)
            assert answer.status_code < 500, (wrong, answer.text)
            assert not server.faults, (wrong, server.faults[0])
    server.quiet()
