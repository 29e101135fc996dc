"""Connections that send nothing, send slowly, or are too many: they are closed, and others get answers."""

from __future__ import annotations

import contextlib
import json
import resource
import select
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from asking import wait_until
from running_server import Server, running
from serving import serving

from pyllama_long import cli, filler
from pyllama_long.engine import EngineConfig
from pyllama_long.server import body, sse
from pyllama_long.server.protocol import limited, most_connections

HEADER_S = 0.4
HEAD = b"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
BODY = b'{"content": "few words"}'
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture(scope="module")
def server(demo_model: str) -> Iterator[Server]:
    config = EngineConfig(demo_model, n_ctx=8192, n_threads=1)
    with running(config, protocol=limited(40, HEADER_S)) as found:
        yield found


def connect(url: str, source: str = "127.0.0.1") -> socket.socket:
    port = int(url.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), 10, (source, 0))


def closed_after(raw: socket.socket) -> float:
    """Seconds until the other side closes the connection without an answer."""
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        assert raw.recv(1) == b""
    return time.monotonic() - began


def n_open(many: list[socket.socket]) -> int:
    """Connections that the other side has not ended."""
    time.sleep(0.1)
    return len(many) - len(select.select(many, [], [], 0)[0])


def answer(raw: socket.socket) -> tuple[int, bytes]:
    """Status and body of one response; 0 where the connection is ended instead."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while True:
            head, end, content = found.partition(b"\r\n\r\n")
            if end and len(content) >= int(head.lower().partition(b"content-length: ")[2].split()[0]):
                return int(head.split()[1]), content
            if not (more := raw.recv(1 << 16)):
                break
            found += more
    return 0, found


def test_silent_connections_are_ended(server: Server) -> None:
    began, there = time.monotonic(), [connect(server.url) for _ in range(3)]
    for raw, said in zip(there, (b"", b"P", HEAD), strict=True):
        raw.sendall(said)
    for raw in there:
        closed_after(raw)
        assert HEADER_S / 2 < time.monotonic() - began < HEADER_S + 2
        raw.close()


def test_headers_of_a_byte_now_and_then_are_ended(server: Server) -> None:
    with connect(server.url) as raw:
        began, i = time.monotonic(), 0
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began < HEADER_S + 2:
                raw.sendall(HEAD[i : i + 1])
                i += 1
                time.sleep(0.05)
        assert HEADER_S / 2 < time.monotonic() - began < HEADER_S + 2


def test_the_next_request_of_a_connection_has_its_time_too(server: Server) -> None:
    with connect(server.url) as raw:
        raw.sendall(WHOLE)
        assert answer(raw)[0] == 200
        time.sleep(HEADER_S * 1.5)  # nothing is sent: that is uvicorn's own limit
        raw.sendall(WHOLE)
        assert answer(raw)[0] == 200
        raw.sendall(HEAD)
        assert HEADER_S / 2 < closed_after(raw) < HEADER_S + 2


def test_answers_and_bodies_may_take_longer_than_headers(server: Server) -> None:
    with connect(server.url) as raw:
        raw.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY))
        for i in range(len(BODY)):
            raw.sendall(BODY[i : i + 1])
            time.sleep(HEADER_S / 20)
        assert answer(raw)[0] == 200
    request = {"prompt": "Once", "n_predict": 600, "logit_bias": {"8190": -100}}
    began = time.monotonic()
    assert httpx.post(f"{server.url}/completion", json=request, timeout=60).json()["tokens_predicted"] == 600
    assert time.monotonic() - began > HEADER_S / 2


def test_a_half_closed_client_gets_its_stream(server: Server) -> None:
    prompt = " ".join(filler.sentences()[:200])
    asked = json.dumps({"prompt": prompt, "n_predict": 40, "stream": True}).encode()
    head = WHOLE.partition(b"\r\n")[2].partition(b"Content-Length")[0]
    with connect(server.url) as raw:
        raw.sendall(
            b"POST /completion HTTP/1.1\r\n" + head + b"Content-Length: %d\r\n\r\n" % len(asked) + asked
        )
        raw.shutdown(socket.SHUT_WR)
        found = b""
        while more := raw.recv(1 << 16):
            found += more
    found = found.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 200") and b'"tokens_predicted":40' in found.replace(b": ", b":")
    assert b"data: [DONE]" in found and found.endswith(b"0\r\n\r\n")


def test_a_client_that_does_not_read_its_stream_is_left(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "SEND_S", 0.5)
    n = server.engine.stats().cancelled
    asked = json.dumps(
        {"prompt": "Once", "n_predict": 8000, "n_probs": 20, "stream": True, "logit_bias": {"8190": -100}}
    ).encode()
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        head = HEAD.replace(b"/tokenize", b"/completion")
        raw.sendall(head + b"Content-Length: %d\r\n\r\n" % len(asked) + asked)
        wait_until(lambda: server.engine.stats().cancelled > n, 20)
    server.quiet()


def test_bodies_that_do_not_come_in_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "_BODY_S", 0.3)
    monkeypatch.setattr(body, "_BODY_RATE", 1 << 40)
    for head in (b"Content-Length: 30\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"):
        with connect(server.url) as raw:
            raw.sendall(HEAD + head)
            status, found = answer(raw)
            assert status == 408 and b"slow_body" in found, found
    assert httpx.post(
        f"{server.url}/tokenize", content=BODY, headers={"Content-Type": "application/json"}
    ).is_success


def test_one_address_cannot_have_all_connections(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        many = [stack.enter_context(connect(server.url)) for _ in range(25)]
        assert n_open(many) == 20
        with connect(server.url, "127.0.0.2") as other:
            other.sendall(WHOLE)
            status, found = answer(other)
            assert status == 200 and len(json.loads(found)["tokens"]) > 1

    def answers() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{server.url}/health").status_code == 200
        return False

    wait_until(answers, 5)


def test_the_number_of_connections_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with serving("--ctx", "512", "--max-connections", "8", "--keep-turns", "1") as (_, url):
        there = [connect(url) for _ in range(12)]
        with connect(url, "127.0.0.2") as other:
            other.sendall(WHOLE)
            assert answer(other)[0] == 200
        assert n_open(there) == 4
        for raw in there:
            raw.close()
    too_many = str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    assert most_connections() < int(too_many)
    assert cli.run(["serve", "--port", "0", "--max-connections", too_many]) == 1
    assert "--max-connections: " in capsys.readouterr().err
