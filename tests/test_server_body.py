"""Bodies: strict JSON, a limit, and little work for what is wrong."""

from __future__ import annotations

import json
import socket
import tracemalloc
from collections.abc import Iterator

import httpx
import pytest
from asking import CHAT, HELLO_CHAT, refused, surviving
from running_server import Server, running

from pyllama_long.engine import EngineConfig
from pyllama_long.server.body import parse
from pyllama_long.server.errors import ApiError
from pyllama_long.server.settings import Settings


@pytest.fixture(scope="module")
def server(demo_model: str) -> Iterator[Server]:
    settings = Settings(model_name="demo", max_body=1 << 20)
    with running(EngineConfig(demo_model, n_threads=1, n_ctx=512), settings) as found:
        yield found


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with surviving(server) as found:
        yield found


def test_a_long_string_takes_memory_of_its_own_size() -> None:
    for data in (b'{"x": "' + b"word " * 400_000 + b'"}', b'{"x": "' + b'\\"' * 1_000_000 + b'"}'):
        tracemalloc.start()
        parse(data)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8 * len(data)
    for tail in (b'\\\\"', b'\\\\\\""'):  # the string ends here, so brackets after it count
        with pytest.raises(ApiError, match="nested deeper"):
            parse(b'{"x": "' + tail + b", " + b"[" * 70)


def test_objects_and_fields_of_a_body_are_bounded() -> None:
    """They are checked in one piece, while nobody is answered."""
    found = parse(b"[" + b'{"a": {}},' * 50_000 + b'"' + b":{" * 600_000 + b'"]')
    assert len(found) == 50_001
    for many in (b"{}," * 150_001, b'{"a": 1},' * 75_001, b'{"a":{}},' * 50_001):
        with pytest.raises(ApiError, match="more than 150000 objects and fields"):
            parse(b"[" + many + b"0]")


def test_large_bodies_are_complained_of_as_small_ones(demo_model: str) -> None:
    with running(EngineConfig(demo_model, n_ctx=512, n_threads=1)) as server, server.client() as client:
        found = []
        for n in (1, 10_000):
            messages = [{"role": "user", "content": "a"}] * n + [{"role": "user", "content": 3}]
            answer = client.post("/v1/chat/completions", json={"messages": messages})
            assert answer.status_code == 400
            found.append(answer.text.replace(f"messages.{n}.", "messages.N."))
        assert found[0] == found[1]
        many = {"messages": [{"role": "user", "content": "a", "foo": 1}] * 10_000}
        answer = client.post("/apply-template", json=many)
        assert answer.status_code == 200 and answer.headers["X-Ignored-Fields"] == "messages[].foo"


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


def test_another_content_type_is_refused(client: httpx.Client) -> None:
    # What a foreign web page could send without a preflight: not JSON.
    error = refused(client.post(CHAT, content=json.dumps(HELLO_CHAT), headers={"Content-Type": "text/plain"}))
    assert "application/json" in error["message"]
