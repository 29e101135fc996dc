"""Many clients at once, some of which leave: greedy answers are the same to the last bit, and nothing stays behind."""

from __future__ import annotations

import gc
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from engines import memory
from running_server import Server, running

from pyllama_long import filler
from pyllama_long.engine import EngineConfig

CLIENTS, REQUESTS, PROMPTS = 64, 10, 24


def body(i: int) -> dict[str, Any]:
    """Prompts of 20 to 1,200 tokens; every third one begins like its neighbours."""
    sentences = filler.sentences()
    start, n = 40 * (i // 3), (1, 4, 12, 40)[i % 4]
    return {
        "prompt": " ".join(sentences[start : start + n]) + f" The number of story {i} is",
        "n_predict": 6 + i % 11,
        "temperature": 0,
        "n_probs": 2,
    }


Answer = list[dict[str, Any]]  # for each token its id and logprob, and those of the likeliest two


def answer(client: httpx.Client, i: int) -> Answer:
    found = client.post("/completion", json=body(i))
    assert found.status_code == 200, found.text
    tokens: Answer = found.json()["completion_probabilities"]
    return tokens


def leave(client: httpx.Client, i: int, n_events: int) -> None:
    """Disconnects after some events of a stream."""
    with client.stream("POST", "/completion", json=body(i) | {"stream": True}) as found:
        for n, _ in enumerate(found.iter_lines()):
            if n >= n_events:
                return


def crowd(server: Server, seed: int) -> list[tuple[int, Answer]]:
    """The answers of CLIENTS clients, which abandon three requests in ten."""

    def work(number: int) -> list[tuple[int, Answer]]:
        chance, found = random.Random(seed + number), []
        with server.client() as client:
            for _ in range(REQUESTS):
                i = chance.randrange(PROMPTS)
                if chance.random() < 0.3:
                    leave(client, i, chance.randrange(12))
                else:
                    found.append((i, answer(client, i)))
        return found

    with ThreadPoolExecutor(CLIENTS) as pool:
        return [pair for pairs in pool.map(work, range(CLIENTS)) for pair in pairs]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_clients_that_come_and_go(demo_model: str) -> None:
    config = EngineConfig(
        demo_model, n_ctx=16384, n_parallel=16, max_queue=128, n_threads=2, attention="exact", cache_ram=0
    )
    with running(config) as server:
        with server.client() as client:
            alone = [answer(client, i) for i in range(PROMPTS)]
        for seed in (
            1000,
            2000,
        ):  # by then, permanent threads and buffers exist: growth flattens after two crowds
            crowd(server, seed)
            server.quiet()
        gc.collect()
        threads, kib = threading.active_count(), memory()
        found = crowd(server, 0)
        server.quiet()
        assert len(found) > CLIENTS * REQUESTS / 2
        assert not [i for i, tokens in found if tokens != alone[i]]
        engine, stats = server.engine, server.engine.stats()
        assert stats.cells_used == stats.cells_idle and stats.failed == 0
        for held in list(engine._loop.batching.pool.held.values()):
            assert engine._context.length(held.seq) == held.n
        with server.client() as client:
            assert "pyllama_long_requests_active 0.0" in client.get("/metrics").text
        gc.collect()
        assert threading.active_count() <= threads
        assert memory() - kib < 6 << 10
    assert engine.stats().cells_used == 0
