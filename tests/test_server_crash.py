"""What is kept on disk when the server is killed under load, and when the disk is full."""

from __future__ import annotations

import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_server import running
from serving import serving

from pyllama_long.engine import EngineConfig

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")
CLIENTS, KILLS, TEXTS = 4, 4, 6
OPTIONS = ("--ctx", "4096", "--parallel", "4", "--precision", "f32")


def text(i: int) -> str:
    """About 300 tokens, different for each i."""
    words = random.Random(i).choices(
        "river house stood near old stone light winter road letter".split(), k=220
    )
    return f"Story {i}: {' '.join(words)}."


def ask(client: httpx.Client, i: int) -> tuple[str, int]:
    """The greedy answer, and how many tokens came from the cache."""
    body = {"prompt": text(i), "max_tokens": 12, "temperature": 0, "model": "demo"}
    found: dict[str, Any] = client.post("/v1/completions", json=body).json()
    cached = found["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found["choices"][0]["text"], cached


class Load(threading.Thread):
    """A client that sends requests, saves and deletes until its server is gone."""

    def __init__(self, url: str, seed: int) -> None:
        super().__init__()
        self.url, self.chance, self.saved = url, random.Random(seed), 0

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=60) as client:
            try:
                while True:
                    i = self.chance.randrange(TEXTS)
                    ask(client, i)
                    kept = client.post("/v1/sessions", json={"name": f"story-{i}", "prompt": text(i)})
                    self.saved += kept.status_code == 200
                    if self.chance.random() < 0.2:
                        client.delete(f"/v1/sessions/story-{self.chance.randrange(TEXTS)}")
            except httpx.HTTPError:
                return


@pytest.fixture(scope="module")
def expected(demo_model: str) -> Iterator[list[str]]:
    """The answers of a server that keeps nothing."""
    config = EngineConfig(demo_model, n_ctx=4096, n_parallel=4, n_threads=1, precision="f32")
    with running(config) as server, server.client() as client:
        yield [ask(client, i)[0] for i in range(TEXTS)]


def test_sessions_are_whole_or_absent_after_a_kill(tmp_path: Path, expected: list[str]) -> None:
    options = (*OPTIONS, "--cache-dir", str(tmp_path), "--cache-ram", "1", "--cache-disk", "64")
    restored = 0
    for kill in range(KILLS):
        with serving(*options) as (process, url):
            clients = [Load(url, 10 * kill + n) for n in range(CLIENTS)]
            for client in clients:
                client.start()
            end = time.monotonic() + 30  # on a busy machine the first saves take their time
            while sum(client.saved for client in clients) <= CLIENTS and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(0.13 * kill)
            process.kill()
            process.wait(10)
            for client in clients:
                client.join(30)
            assert sum(client.saved for client in clients) > CLIENTS
        with serving(*options) as (_, url), httpx.Client(base_url=url, timeout=60) as http:
            for session in http.get("/v1/sessions").json()["data"]:
                assert session["usable"]
                found = http.post(f"/v1/sessions/{session['name']}/restore")
                assert found.status_code == 200 and found.json()["tokens"] == session["tokens"]
                i = int(session["name"].split("-")[1])
                said, cached = ask(http, i)
                assert said == expected[i] and cached > 200
                restored += 1
            for i in range(TEXTS):
                assert ask(http, i)[0] == expected[i]
    assert restored > KILLS
    assert not list(tmp_path.rglob("*.part"))


def test_a_disk_that_is_full_stops_nothing(tmp_path: Path, expected: list[str]) -> None:
    """No file may grow beyond 64 KiB; a session has 400."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    options = (*OPTIONS, "--cache-dir", str(tmp_path), "--cache-ram", "0", "--cache-disk", "64")
    with serving(*options, before=limit) as (process, url), httpx.Client(base_url=url, timeout=60) as http:
        for i in range(TEXTS):
            assert ask(http, i)[0] == expected[i]
        refused = http.post("/v1/sessions", json={"name": "full", "prompt": text(0)})
        assert refused.status_code == 507 and "File too large" in refused.json()["error"]["message"]
        assert http.get("/v1/sessions").json()["data"] == []
        assert ask(http, 0)[0] == expected[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".seq", ".part")]
