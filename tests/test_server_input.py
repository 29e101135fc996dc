"""How a server answers wrong requests: with a clear 4xx and OpenAI's error object, and it goes on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from engines import NO_END
from running_server import Server, running

from pyllama_long.engine import EngineConfig
from pyllama_long.server.settings import Settings

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
KEYS = ("first-key", "second-key")


@pytest.fixture(scope="module")
def server(demo_model: str) -> Iterator[Server]:
    settings = Settings(model_name="demo", max_body=1 << 20)
    with running(
        EngineConfig(demo_model, n_threads=1, n_ctx=512, n_parallel=2, max_queue=2), settings
    ) as found:
        yield found


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as found:
        yield found
        assert found.post(CHAT, json=HELLO).status_code == 200  # it goes on
    assert not server.faults, server.faults[0]


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert all(error[key] is None or isinstance(error[key], str) for key in ("type", "param", "code"))
    assert error["message"] and error["type"]
    return error


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
    body = HELLO if path == CHAT else {}
    assert refused(client.post(path, json={**body, field: value}))["message"] == message


def test_another_method_is_named(client: httpx.Client) -> None:
    assert refused(client.get(CHAT), 405)["message"] == "GET does not work here: use POST."


RAW = {
    "empty": b"",
    "cut off": b'{"messages": [',
    "not an object": b"[1, 2]",
    "NaN": b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    "Infinity": b'{"messages": [{"role": "user", "content": "x"}], "temperature": -Infinity}',
    "huge float": b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    "huge int": b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1' + b"0" * 5000 + b"}",
    "twice": b'{"messages": [{"role": "user", "content": "x"}], "n": 1, "n": 2}',
    "bad UTF-8": b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "UTF-16": '{"messages": []}'.encode("utf-16"),
    "half a pair": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "deep": b'{"messages": ' + b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep and closed": b'{"x": ' + b"[" * 500 + b"]" * 500 + b', "messages": []}',
    "comment": b'{"messages": [] /* no */}',
    "zero byte": b'{"messages": [{"role": "user", "content": "x"}]}\x00',
}


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/completion"])
def test_bodies_that_are_no_json(client: httpx.Client, name: str, path: str) -> None:
    refused(client.post(path, content=RAW[name], headers={"Content-Type": "application/json"}))


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
    error = refused(client.post(CHAT, json=HELLO | change))
    if name != "a grammar that is none":
        assert (error["param"] or "").startswith(param.split(".")[0]), error


TWICE: Any = {"description": "x", "name": "weather"}


def test_every_api_says_the_same_of_tools_of_one_name(client: httpx.Client) -> None:
    function, schema = {"type": "function"}, {"input_schema": {"type": "object"}}
    bodies = {
        CHAT: HELLO | {"tools": [function | {"function": TWICE}] * 2},
        "/v1/messages": HELLO | {"max_tokens": 1, "tools": [TWICE | schema] * 2},
        "/v1/messages/count_tokens": HELLO | {"tools": [TWICE | schema] * 2},
        "/v1/responses": {"input": "x", "tools": [function | TWICE] * 2},
    }
    found = [refused(client.post(path, json=body)) for path, body in bodies.items()]
    assert {error["param"] for error in found} == {"tools"}
    assert len({error["message"] for error in found}) == 1 and "\n" not in found[0]["message"]


def test_more_answers_than_can_ever_be_taken_are_refused_for_good(demo_model: str) -> None:
    config = EngineConfig(demo_model, n_ctx=512, n_parallel=1, max_queue=2, n_threads=1)
    with running(config) as small, small.client() as raw:
        for path, body in ((CHAT, HELLO), ("/v1/completions", {"prompt": "x"})):
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
    refused(client.post(CHAT, json=HELLO | {"response_format": form}))


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


def test_a_body_over_the_limit(client: httpx.Client) -> None:
    big = {"messages": [{"role": "user", "content": "x" * (2 << 20)}]}
    assert refused(client.post(CHAT, json=big), 413)["code"] == "body_too_large"

    def parts() -> Iterator[bytes]:  # without Content-Length
        for _ in range(3 << 4):
            yield b" " * (1 << 16)

    refused(client.post(CHAT, content=parts(), headers={"Content-Type": "application/json"}), 413)


def test_a_length_of_gigabytes_is_refused_at_once(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            "Content-Length: 99999999999\r\n\r\n{".encode()
        )
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


def test_unknown_fields_are_ignored_and_named(client: httpx.Client) -> None:
    answer = client.post(CHAT, json=HELLO | {"user": "me", "store": True, "novel": {"a": 1}})
    assert answer.status_code == 200 and answer.headers["X-Ignored-Fields"] == "user, store, novel"


def test_another_content_type_is_refused(client: httpx.Client) -> None:
    # What a foreign web page could send without a preflight: not JSON.
    error = refused(client.post(CHAT, content=json.dumps(HELLO), headers={"Content-Type": "text/plain"}))
    assert "application/json" in error["message"]


def test_unknown_routes_and_methods(client: httpx.Client) -> None:
    refused(client.get("/v2/nothing"), 404)
    refused(client.get(CHAT), 405)
    assert client.get("/v1/messages/x").json()["type"] == "error"


def test_a_request_id_comes_back(client: httpx.Client) -> None:
    assert client.get("/health", headers={"X-Request-Id": "abc-1"}).headers["X-Request-Id"] == "abc-1"
    assert client.get("/health").headers["X-Request-Id"].startswith("req_")


def test_no_origin_is_allowed_by_default(client: httpx.Client) -> None:
    found = client.get("/v1/models", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in found.headers


def test_a_full_queue_says_when_to_come_back(server: Server, client: httpx.Client) -> None:
    body = HELLO | {"max_tokens": 400, "n": 4, "logit_bias": NO_END, "stream": True}
    with client.stream("POST", CHAT, json=body) as streaming:  # two run, two wait
        assert streaming.status_code == 200
        for n in (1, 4):
            found = client.post(CHAT, json=HELLO | {"n": n})
            error = refused(found, 503)
            assert error["code"] == "queue_full" and int(found.headers["Retry-After"]) >= 1
    server.quiet()


def test_keys_are_needed_everywhere_but_for_health(demo_model: str) -> None:
    settings = Settings(model_name="demo", api_keys=KEYS, cors_origins=("http://page.example",))
    with (
        running(EngineConfig(demo_model, n_threads=1, n_ctx=512), settings) as server,
        server.client() as client,
    ):
        assert client.get("/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/props", "/openapi.json", "/v1/sessions", "/nothing"):
            refused(client.get(path), 401)
        for key in ("wrong", "first-ke", "first-key2", "FIRST-KEY", "clé"):
            wrong = {b"Authorization": f"Bearer {key}".encode()}
            refused(client.post(CHAT, json=HELLO, headers=wrong), 401)
        for headers in (*({"Authorization": f"Bearer {key}"} for key in KEYS), {"X-Api-Key": KEYS[1]}):
            assert client.post(CHAT, json=HELLO, headers=headers).status_code == 200
        asked = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST"}
        found = client.options(CHAT, headers=asked)
        assert found.headers["access-control-allow-origin"] == "http://page.example"


def test_only_names_of_ours_are_answered(demo_model: str) -> None:
    """DNS rebinding: a page whose own name stands for this machine."""
    settings = Settings(model_name="demo", allowed_hosts=("localhost",))
    with (
        running(EngineConfig(demo_model, n_threads=1, n_ctx=512), settings) as server,
        server.client() as client,
    ):
        for host in (
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
        ):
            assert refused(client.post(CHAT, json=HELLO, headers={"Host": host}), 403)["code"]
        for host in ("localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "192.168.0.7"):
            assert client.post(CHAT, json=HELLO, headers={"Host": host}).status_code == 200


def test_keys_do_not_share_what_is_cached(demo_model: str) -> None:
    settings = Settings(model_name="demo", api_keys=KEYS)
    long = {"messages": [{"role": "user", "content": "A secret text, and more of it. " * 5}], "max_tokens": 1}

    def cached(client: httpx.Client, key: str) -> int:
        found = client.post(CHAT, json=long, headers={"Authorization": f"Bearer {key}"}).json()
        return int(found["usage"]["prompt_tokens_details"]["cached_tokens"])

    with (
        running(EngineConfig(demo_model, n_threads=1, n_ctx=512), settings) as server,
        server.client() as client,
    ):
        assert cached(client, KEYS[0]) == 0
        assert cached(client, KEYS[1]) == 0
        assert cached(client, KEYS[0]) > 20
