"""Many clients at once, some of which leave: what is greedy stays the same, and nothing is left behind."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
from running_server import Server, running

from pyllama_long.engine import EngineConfig

CLIENTS, REQUESTS = 16, 5
FRUIT = ["apricot", "walnut", "cherry", "quince"]


def question(i: int) -> dict[str, object]:
    filler = "The old house stood near the river. " * (i % 5)
    fact = f"The pass key for {FRUIT[i % 4]} is {10111 + 1111 * (i % 4)}."
    content = f"{filler}{fact} What is the pass key for {FRUIT[i % 4]}?"
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 16}


def answer(client: httpx.Client, i: int) -> str:
    found = client.post("/v1/chat/completions", json=question(i))
    assert found.status_code == 200, found.text
    text: str = found.json()["choices"][0]["message"]["content"]
    return text


def leave(client: httpx.Client, i: int, n_events: int) -> None:
    """Goes away after some events of a stream."""
    with client.stream("POST", "/v1/chat/completions", json=question(i) | {"stream": True}) as found:
        for n, _ in enumerate(found.iter_lines()):
            if n >= n_events:
                return


def test_clients_that_come_and_go(demo_model: str) -> None:
    config = EngineConfig(demo_model, n_ctx=2048, n_parallel=8, n_threads=1, precision="f32")

    def work(server: Server, number: int) -> list[tuple[int, str]]:
        chance, found = random.Random(number), []
        with server.client() as client:
            for _ in range(REQUESTS):
                i = chance.randrange(20)
                if chance.random() < 0.3:
                    leave(client, i, chance.randrange(12))
                else:
                    found.append((i, answer(client, i)))
        return found

    with running(config) as server:
        with server.client() as client:
            alone = {i: answer(client, i) for i in range(20)}
        threads = threading.active_count()
        with ThreadPoolExecutor(CLIENTS) as pool:
            found = [pair for pairs in pool.map(lambda n: work(server, n), range(CLIENTS)) for pair in pairs]
        server.quiet()
        assert len(found) > CLIENTS
        different = [(i, text, alone[i]) for i, text in found if text != alone[i]]
        assert not different, json.dumps(different)
        stats = server.engine.stats()
        assert stats.cells_used == stats.cells_idle and stats.failed == 0
        with server.client() as client:
            assert "pyllama_long_requests_active 0.0" in client.get("/metrics").text
        # asyncio's pool keeps its threads; there is a bound to them.
        assert threading.active_count() <= threads + 40
