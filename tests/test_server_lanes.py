"""Requests are prepared in lanes, in which small ones pass large ones."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time

import httpx
from serving import serving


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
