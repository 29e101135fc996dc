"""Connections and bodies that would cost other clients their answers, and the end of a server under load."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sqlite3
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from running_server import running
from serving import serving
from test_server_serve import stream, until_it_runs

from pyllama_long import cli, filler
from pyllama_long.cli.serving import listen
from pyllama_long.engine import EngineConfig
from pyllama_long.model import Model
from pyllama_long.server import logs
from pyllama_long.server.body import parse
from pyllama_long.server.errors import ApiError
from pyllama_long.server.overflow_store import Store
from pyllama_long.server.schemas.chat import ChatRequest
from pyllama_long.server.schemas.common import Body
from pyllama_long.server.schemas.completions import CompletionRequest
from pyllama_long.server.schemas.messages import MessagesRequest
from pyllama_long.server.schemas.responses import ResponsesRequest
from pyllama_long.server.settings import Settings
from pyllama_long.server.state import State


def exchange(url: str, request: bytes, half_close: bool = False) -> bytes:
    host, _, port = url.rpartition("/")[2].partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(request)
        if half_close:
            raw.shutdown(socket.SHUT_WR)
        found = b""
        while data := raw.recv(1 << 16):
            found += data
    return found


def test_streams_longer_than_the_drain_end_with_an_error_event() -> None:
    with serving("--ctx", "60000", "--drain", "0.5") as (process, url):
        said: list[str] = []
        thread = stream(url, 50_000, said)
        until_it_runs(url)
        process.send_signal(signal.SIGTERM)
        thread.join(20)
        assert process.wait(20) == 0
        assert said[0].rstrip().endswith("data: [DONE]") and "shutting_down" in said[0]


def test_a_signal_while_prompts_are_prepared_is_no_crash() -> None:
    with serving("--ctx", "512", "--drain", "0") as (process, url):
        body = json.dumps({"content": "word and " * 400_000}).encode()
        threads = [threading.Thread(target=lambda: _ignore(url, body), daemon=True) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(0.7)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def _ignore(url: str, body: bytes) -> None:
    with contextlib.suppress(httpx.HTTPError):
        httpx.post(f"{url}/tokenize", content=body, headers={"Content-Type": "application/json"}, timeout=60)


def test_small_requests_pass_large_ones_and_odd_connections_get_answers() -> None:
    with serving("--ctx", "512") as (_, url):
        body = json.dumps({"content": "word and " * 170_000}).encode()
        for _ in range(24):
            threading.Thread(target=_ignore, args=(url, body), daemon=True).start()
        time.sleep(0.3)
        slowest = 0.0
        for _ in range(5):
            began = time.monotonic()
            assert httpx.post(f"{url}/tokenize", json={"content": "few words"}, timeout=30).status_code == 200
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 2.0
        small = json.dumps({"prompt": "Once", "n_predict": 3}).encode()
        head = b"POST /completion HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        length = b"Content-Length: %d\r\n" % len(small)
        found = exchange(url, head + length + b"\r\n" + small, half_close=True)
        assert b"HTTP/1.1 200" in found and b'"tokens_predicted":3' in found
        both = exchange(url, head + length + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert both.startswith(b"HTTP/1.1 400") and b"two_lengths" in both


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


@pytest.mark.parametrize(
    ("request_type", "body"),
    [
        (ChatRequest, {"messages": [1] * 5000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [1] * 5000}]}),
        (
            ChatRequest,
            {"messages": [{"role": "user", "content": ""}], "logit_bias": {str(i): "" for i in range(5000)}},
        ),
        (CompletionRequest, {"prompt": [None] * 5000}),
        (CompletionRequest, {"prompt": [[None] * 5000]}),
        (MessagesRequest, {"max_tokens": 1, "messages": [{"role": "user", "content": [{}] * 5000}]}),
        (
            MessagesRequest,
            {"max_tokens": 1, "messages": [{"role": "user", "content": ""}], "system": [1] * 5000},
        ),
        (ResponsesRequest, {"input": [{"role": "user", "content": [1] * 5000}]}),
        (ResponsesRequest, {"input": "", "metadata": {str(i): 1 for i in range(5000)}}),
    ],
)
def test_complaints_about_a_body_are_few(request_type: type[Body], body: dict[str, Any]) -> None:
    """A million of them took half a minute, in which nobody was answered."""
    with pytest.raises(ValidationError) as complaints:
        request_type.model_validate(body)
    assert len(complaints.value.errors()) < 16


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


def test_text_over_what_can_fit_is_refused_before_it_is_tokenized(
    demo_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    long, most = "word and " * 20_000, 0
    tokenize = Model.tokenize

    def counting(model: Model, text: bytes, add_bos: bool, special: bool) -> list[int]:
        nonlocal most
        most = max(most, len(text))
        return tokenize(model, text, add_bos, special)

    monkeypatch.setattr(Model, "tokenize", counting)
    config = EngineConfig(demo_model, n_ctx=512, n_threads=1, embedding=True)
    with running(config) as server, server.client() as client:
        messages = [{"role": "user", "content": long}]
        for path, body in (
            ("/completion", {"prompt": long}),
            ("/completion", {"prompt": [1, long]}),
            ("/completion", {"prompt": [long, "Hi"]}),
            ("/v1/completions", {"prompt": long}),
            ("/v1/embeddings", {"input": ["Hi", long]}),
            ("/v1/chat/completions", {"messages": messages}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "word and " * 900}] * 30}),
            ("/v1/messages", {"messages": messages, "max_tokens": 9}),
            ("/v1/responses", {"input": long}),
        ):
            found = client.post(path, json={"model": "demo"} | body)
            assert found.status_code == 400 and "maximum context length is 512" in found.text, found.text
        assert most < len(long) / 2
        assert len(client.post("/tokenize", json={"content": long}).json()["tokens"]) > 20_000
        least = server.app.state.state.loaded.least
        texts = [
            " " * 999,
            "A" * 999,
            "\n" * 999,
            "é漢🙂" * 99,
            "<|user|>" * 99,
            "".join(map(chr, range(3000))),
        ]
        for text in [*texts, *filler.sentences()[:50]]:
            n = len(server.engine.tokenize(text.encode(), False, True))
            assert 0 <= least.tokens(text) <= n
        assert least.tokens(long) > 512


def test_an_ipv6_wildcard_takes_ipv4_too() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    with listen("::", 0) as listening:
        socket.create_connection(("127.0.0.1", listening.getsockname()[1]), timeout=5).close()


@pytest.mark.parametrize("damage", ["text", "cut", "pages", "schema", "folder"])
def test_damaged_old_turns_are_set_aside(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, old = tmp_path / "turns.sqlite", [("user", f"number{i} " + "x" * 900) for i in range(30)]
    store = Store(path)
    store.search("salt", old, "number29")
    store.close()
    raw = bytearray(path.read_bytes())
    if damage == "text":
        path.write_bytes(b"no database at all")
    elif damage == "cut":
        path.write_bytes(raw[: len(raw) // 3])
    elif damage == "pages":
        raw[4096:] = b"\xa5" * (len(raw) - 4096)
        path.write_bytes(raw)
    else:
        path.unlink()
        if damage == "folder":
            path.mkdir()
        else:
            with contextlib.closing(sqlite3.connect(path)) as db:
                db.execute("CREATE TABLE turns (other TEXT)")
    store = Store(path)
    assert store.search("salt", old, "number29")[0].startswith("user: number29")
    store.close()
    assert len(list(tmp_path.glob("turns.sqlite.damaged-*"))) == 1
    assert "it is kept as turns.sqlite.damaged-" in caplog.text
    again = Store(path)
    assert again.n_bytes > 0
    again.close()


def test_old_turns_of_a_server_that_ends_are_not_set_aside(tmp_path: Path) -> None:
    store = Store(tmp_path / "turns.sqlite")
    store.close()
    with pytest.raises(ApiError, match="shutting down"):
        store.search("salt", [("user", "a word")], "word")
    assert [path.name for path in tmp_path.iterdir()] == ["turns.sqlite"]


def test_old_turns_that_others_use_are_not_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "turns.sqlite"
    Store(path).close()
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            Store(path, wait_s=0.1)
    assert not list(tmp_path.glob("*damaged*"))


def test_old_turns_are_bounded_by_bytes(tmp_path: Path) -> None:
    store = Store(tmp_path / "turns.sqlite", most_bytes=10_000)
    old = [("user", f"number{i} " + "x" * 900) for i in range(30)]
    store.search("salt", old, "number29")
    assert store.search("salt", old[-1:], "number29") and 0 < store.n_bytes <= 10_000
    store.close()
    again = Store(tmp_path / "turns.sqlite", most_bytes=10_000)
    assert 0 < again.n_bytes <= 10_000
    again.close()


def test_how_much_of_old_turns_is_kept_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Settings] = []
    monkeypatch.setattr(logs, "install", lambda _: None)
    monkeypatch.setattr("pyllama_long.cli.serving.serve", lambda config, settings, *_: found.append(settings))
    assert cli.run(["serve", "--keep-turns", "1"]) == 0
    state = State(found[0], lambda _: None)  # type: ignore[arg-type, return-value]
    for i in range(40):
        state.store.search("salt", [("user", f"number{i} " + "x" * 50_000)], f"number{i}")
    assert 0 < state.store.n_bytes <= 1 << 20
    state.close()
