"""How a server answers wrong requests: with a clear 4xx and OpenAI's error object, and it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from asking import CHAT, HELLO_CHAT, refused, surviving
from engines import NO_END
from running_server import Server, running

from pyllama_long.engine import EngineConfig


@pytest.fixture(scope="module")
def server(demo_model: str) -> Iterator[Server]:
    with running(EngineConfig(demo_model, n_threads=1, n_ctx=512, n_parallel=2, max_queue=2)) as found:
        yield found


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with surviving(server) as found:
        yield found


@pytest.mark.parametrize(
    ("path", "field", "value", "message"),
    [
        (CHAT, "stop", 5, "stop: Input should be a valid string or a valid list"),
        (CHAT, "messages", ["x"], "messages.0: Input should be an object"),
        (CHAT, "response_format", "json", "response_format: Input should be an object"),
        (CHAT, "tool_choice", "x", "tool_choice: Input should be 'none', 'auto' or 'required' or an object"),
        (CHAT, "tool_choice", {"type": "function", "name": "x"}, "tool_choice.function: Field required"),
        (
            CHAT,
            "tool_choice",
            {"type": "x"},
            "tool_choice.type: Input should be 'function' or 'custom' or 'allowed_tools'",
        ),
        ("/v1/responses", "input", [], "input: List should have at least 1 item after validation, not 0"),
        ("/v1/completions", "prompt", {}, "prompt: Input should be a valid string or a valid list"),
        ("/v1/embeddings", "input", [], "input: List should have at least 1 item after validation, not 0"),
    ],
)
def test_of_a_union_all_that_may_be_is_named(
    client: httpx.Client, path: str, field: str, value: Any, message: str
) -> None:
    body = HELLO_CHAT if path == CHAT else {}
    assert refused(client.post(path, json={**body, field: value}))["message"] == message


def test_another_method_is_named(client: httpx.Client) -> None:
    assert refused(client.get(CHAT), 405)["message"] == "GET does not work here: use POST."


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"messages": []}, "messages"),
    "messages as text": ({"messages": "Hello"}, "messages"),
    "unknown role": ({"messages": [{"role": "root", "content": "x"}]}, "messages.0.role"),
    "content as number": ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    "an image": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}
            ]
        },
        "messages",
    ),
    "temperature as text": ({"temperature": "1"}, "temperature"),
    "temperature below 0": ({"temperature": -1}, "temperature"),
    "top_p above 1": ({"top_p": 1.5}, "top_p"),
    "n of 0": ({"n": 0}, "n"),
    "huge n": ({"n": 1_000_000}, "n"),
    "n as a truth": ({"n": True}, "n"),
    "max_tokens of 0": ({"max_tokens": 0}, "max_tokens"),
    "max_tokens beyond integers": ({"max_tokens": 2**70}, "max_tokens"),
    "seed beyond integers": ({"seed": 2**64}, "seed"),
    "too many stops": ({"stop": ["x"] * 100}, "stop"),
    "a long stop": ({"stop": "x" * 10_000}, "stop"),
    "an empty stop": ({"stop": [""]}, "stop"),
    "top_logprobs without logprobs": ({"top_logprobs": 2}, "top_logprobs"),
    "too many top_logprobs": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "a bias of no token": ({"logit_bias": {"99999": 1}}, "logit_bias"),
    "a bias of text": ({"logit_bias": {"hello": 1}}, "logit_bias"),
    "too many biases": ({"logit_bias": {str(i): 1 for i in range(2000)}}, "logit_bias"),
    "unknown format": ({"response_format": {"type": "yaml"}}, "response_format.type"),
    "no schema": ({"response_format": {"type": "json_schema"}}, "response_format"),
    "a tool without a function": ({"tools": [{"type": "function"}]}, "tools.0.function"),
    "a choice of no tool": ({"tool_choice": "required"}, "tool_choice"),
    "unknown overflow": ({"overflow": "guess"}, "overflow"),
    "stream as text": ({"stream": "yes"}, "stream"),
    "a grammar that is none": ({"grammar": "root ::= ("}, "grammar"),
}


@pytest.mark.parametrize("name", WRONG)
def test_fields_that_are_wrong(client: httpx.Client, name: str) -> None:
    change, param = WRONG[name]
    error = refused(client.post(CHAT, json=HELLO_CHAT | change))
    if name != "a grammar that is none":
        assert (error["param"] or "").startswith(param.split(".")[0]), error


TWICE: Any = {"description": "x", "name": "weather"}


def test_every_api_says_the_same_of_tools_of_one_name(client: httpx.Client) -> None:
    function, schema = {"type": "function"}, {"input_schema": {"type": "object"}}
    bodies = {
        CHAT: HELLO_CHAT | {"tools": [function | {"function": TWICE}] * 2},
        "/v1/messages": HELLO_CHAT | {"max_tokens": 1, "tools": [TWICE | schema] * 2},
        "/v1/messages/count_tokens": HELLO_CHAT | {"tools": [TWICE | schema] * 2},
        "/v1/responses": {"input": "x", "tools": [function | TWICE] * 2},
    }
    found = [refused(client.post(path, json=body)) for path, body in bodies.items()]
    assert {error["param"] for error in found} == {"tools"}
    assert len({error["message"] for error in found}) == 1 and "\n" not in found[0]["message"]


def test_more_answers_than_can_ever_be_taken_are_refused_for_good(demo_model: str) -> None:
    config = EngineConfig(demo_model, n_ctx=512, n_parallel=1, max_queue=2, n_threads=1)
    with running(config) as small, small.client() as raw:
        for path, body in ((CHAT, HELLO_CHAT), ("/v1/completions", {"prompt": "x"})):
            error = refused(raw.post(path, json=body | {"n": 4, "max_tokens": 1}))
            assert error["param"] == "n" and "takes 3" in error["message"]
            assert len(raw.post(path, json=body | {"n": 3, "max_tokens": 1}).json()["choices"]) == 3


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        found = {"type": "array", "items": found}
    return found


SCHEMAS: dict[str, Any] = {
    "deep": nested(80),
    "many": {"enum": [str(i) for i in range(30_000)]},
    "a long string": {"type": "string", "minLength": 10**9},
    "many items": {"type": "array", "items": {"type": "null"}, "minItems": 10**9},
    "patterns that meet": {
        "allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(20)]
    },
    "a pattern that is none": {"type": "string", "pattern": "^(((($"},
    "remote": {"$ref": "https://example.com/schema.json"},
    "into nothing": {"$ref": "#/$defs/none"},
    "not a schema": {"type": "number-ish"},
    "properties as a list": {"type": "object", "properties": [1]},
    "upside down": {"type": "array", "items": {"type": "null"}, "minItems": 5, "maxItems": 2},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_that_cannot_be_used(client: httpx.Client, name: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMAS[name]}}
    refused(client.post(CHAT, json=HELLO_CHAT | {"response_format": form}))


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "a"{100000}',
        "root ::= " + "(" * 5000,
        "x" * 300_000,
        "root ::= root",
        'root ::= ("a"{99}){99}{99}{99}',
    ],
)
def test_grammars_that_cannot_be_used(client: httpx.Client, grammar: str) -> None:
    refused(client.post("/completion", json={"prompt": "x", "n_predict": 1, "grammar": grammar}))


def test_unknown_fields_are_ignored_and_named(client: httpx.Client) -> None:
    answer = client.post(CHAT, json=HELLO_CHAT | {"user": "me", "store": True, "novel": {"a": 1}})
    assert answer.status_code == 200 and answer.headers["X-Ignored-Fields"] == "user, store, novel"


def test_a_full_queue_says_when_to_come_back(server: Server, client: httpx.Client) -> None:
    body = HELLO_CHAT | {"max_tokens": 400, "n": 4, "logit_bias": NO_END, "stream": True}
    with client.stream("POST", CHAT, json=body) as streaming:  # two run, two wait
        assert streaming.status_code == 200
        for n in (1, 4):
            found = client.post(CHAT, json=HELLO_CHAT | {"n": n})
            error = refused(found, 503)
            assert error["code"] == "queue_full" and int(found.headers["Retry-After"]) >= 1
    server.quiet()
