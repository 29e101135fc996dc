"""Many clients at once with random cancels: every answer is the same as alone, and nothing is left over."""

from __future__ import annotations

import gc
import itertools
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from engines import GREEDY, alone, assert_same, memory, prose

from pyllama_long import LongLlama
from pyllama_long.engine import Engine, EngineConfig, Finished, Progress, Request, Text

CLIENTS, REQUESTS = 32, 3


@pytest.fixture(scope="module")
def reference(float_model: str) -> Iterator[LongLlama]:
    model = LongLlama(float_model, n_ctx=4096, rope="native", precision="f32", n_batch=256)
    yield model
    model.close()


@dataclass
class Client:
    """Sends requests one after another; some share a beginning, some are cancelled."""

    engine: Engine
    seed: int
    prompts: list[list[int]]
    answers: dict[int, list[int]] = field(default_factory=dict)
    cancelled: int = 0
    error: BaseException | None = None

    def run(self) -> None:
        rng = np.random.default_rng(self.seed)
        try:
            for _ in range(REQUESTS):
                self.ask(int(rng.integers(len(self.prompts))), rng)
        except BaseException as error:
            self.error = error

    def ask(self, i: int, rng: np.random.Generator) -> None:
        handle = self.engine.submit(Request(self.prompts[i], 24, GREEDY))
        stop_at = int(rng.integers(1, 20)) if rng.random() < 0.3 else 0
        ids: list[int] = []
        seen = 0
        for event in handle:
            if isinstance(event, Text):
                ids += [token.id for token in event.tokens]
            seen += isinstance(event, Text | Progress)
            if seen == stop_at:
                handle.cancel()
            if isinstance(event, Finished):
                self.cancelled += event.reason == "cancelled"
                if event.reason != "cancelled":
                    self.answers[i] = ids


def test_thirty_two_clients(float_model: str, reference: LongLlama) -> None:
    config = EngineConfig(
        float_model, n_ctx=4096, n_batch=256, n_parallel=12, precision="f32", rope="native", cache_ram=1 << 24
    )
    with Engine(config) as engine:
        base, other = prose(engine, 900, 1), prose(engine, 900, 2)
        prompts = [base[:n] for n in (30, 250, 600)]
        prompts += [[*base[:cut], *other[:more]] for cut, more in ((100, 40), (300, 200), (500, 3))]
        prompts += [prose(engine, n, 10 + n) for n in (5, 80, 333)]
        clients = [Client(engine, seed, prompts) for seed in range(CLIENTS)]
        threads = [threading.Thread(target=client.run) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
        assert [client.error for client in clients if client.error] == []
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.failed) == (0, 0, 0)
        assert stats.finished + stats.cancelled == CLIENTS * REQUESTS
        assert stats.cancelled == sum(client.cancelled for client in clients) > 0
        assert stats.cells_used == stats.cells_idle <= stats.cells_total
        assert stats.prefix_hits > CLIENTS
        expected = {i: alone(reference, prompt, 24) for i, prompt in enumerate(prompts)}
        for client in clients:
            for i, ids in client.answers.items():
                assert_same(reference, prompts[i], ids, expected[i])
        for held in list(engine._loop.batching.pool.held.values()):
            assert engine._context.length(held.seq) == held.n
    assert engine.stats().cells_used == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_engines_leave_nothing_behind(demo_model: str) -> None:
    sizes = []
    for _ in range(8):
        with Engine(EngineConfig(demo_model, n_ctx=2048, rope="native")) as engine:
            handles = [engine.submit(Request(prose(engine, 300, i), 20, GREEDY)) for i in range(4)]
            handles[0].cancel()
            for handle in handles:
                list(handle)
        del engine
        gc.collect()
        sizes.append(memory())
    assert not [t for t in threading.enumerate() if t.name.startswith("pyllama-long-engine")]
    assert sizes[-1] - sizes[3] < 16 << 10  # a context takes 8 MiB


def test_a_stream_goes_on_while_a_long_prompt_is_read(demo_model: str) -> None:
    """Every chunk is followed by more of the stream; the bench measures what that costs in time."""
    config = EngineConfig(demo_model, n_ctx=16384, rope="native", n_parallel=4, step_ms=20)
    with Engine(config) as engine:
        sampling = replace(GREEDY, logit_bias={engine.token_eos: -1e9})
        stream = engine.submit(Request(prose(engine, 50), None, sampling))
        order: list[str] = []
        seen = threading.Semaphore(0)

        def read_stream() -> None:
            for event in stream:
                order.append("text" if isinstance(event, Text) else "")
                seen.release()

        thread = threading.Thread(target=read_stream)
        thread.start()
        for _ in range(100):
            seen.acquire()
        long = (prose(engine, 2900) * 3)[:6000]
        for event in engine.submit(Request(long, 1, GREEDY)):
            if isinstance(event, Progress):
                order.append("chunk")
        stream.cancel()
        thread.join()
    chunks = [i for i, kind in enumerate(order) if kind == "chunk"]
    assert len(chunks) > 12
    texts = [order[i:j].count("text") for i, j in itertools.pairwise(chunks)]
    assert np.mean(texts) > 1
