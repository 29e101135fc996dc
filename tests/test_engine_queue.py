"""The engine's queue: cancel, requests that wait, what is refused, and errors that end one request only."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from engines import ENDLESS, GREEDY, answer, prose

from pyllama_long.engine import (
    ContextOverflow,
    Engine,
    EngineConfig,
    Finished,
    Progress,
    Queued,
    QueueFull,
    Request,
    Sampling,
    Started,
    Text,
)


def test_cancel_frees_cells(engine: Engine) -> None:
    handle = engine.submit(Request(prose(engine, 100, 12), 300, GREEDY))
    for event in handle:
        if isinstance(event, Text):
            handle.cancel()
            break
    rest = list(handle)
    assert isinstance(rest[-1], Finished)
    assert rest[-1].reason == "cancelled"
    stats = engine.stats()
    assert stats.running == 0
    assert stats.cells_used == stats.cells_idle


def test_a_prompt_is_cancelled_while_it_is_read(demo_model: str) -> None:
    with Engine(EngineConfig(demo_model, n_ctx=8192, n_batch=64, rope="native")) as engine:
        handle = engine.submit(Request(prose(engine, 2500) * 3, 10, GREEDY))
        for event in handle:
            if isinstance(event, Progress):
                handle.cancel()
                break
        end = list(handle)[-1]
        assert isinstance(end, Finished)
        assert end.reason == "cancelled"
        assert engine.stats().cells_used < 5000


def test_more_requests_than_slots_wait_in_line(demo_model: str) -> None:
    config = EngineConfig(demo_model, n_ctx=512, n_parallel=1, max_queue=3)
    with Engine(config) as engine:
        first = engine.submit(Request(prose(engine, 20), 400, GREEDY))
        assert isinstance(next(first), Started)
        low = engine.submit(Request(prose(engine, 21), 3, GREEDY))
        assert next(low) == Queued(0)
        high = engine.submit(Request(prose(engine, 22), 3, GREEDY, priority=1))
        assert next(high) == Queued(0)
        gone = engine.submit(Request(prose(engine, 22), 3, GREEDY))
        assert next(gone) == Queued(2)
        with pytest.raises(QueueFull) as full:
            engine.submit(Request([300], 3))
        assert full.value.retry_after_s >= 1
        assert engine.stats().waiting == 3
        gone.cancel()
        assert [type(event) for event in gone] == [Finished]
        first.cancel()
        ends: list[str] = []
        for name, handle in (("high", high), ("low", low)):
            answer(handle)
            ends.append(name)
            if name == "high":
                assert engine.stats().finished <= 2
        assert ends == ["high", "low"]


def test_a_request_that_does_not_fit_now_waits_for_room(demo_model: str) -> None:
    with Engine(EngineConfig(demo_model, n_ctx=512, n_parallel=4)) as engine:
        first = engine.submit(Request(prose(engine, 100), 300, GREEDY))
        assert isinstance(next(first), Started)
        second = engine.submit(Request(prose(engine, 100, 1), 200, GREEDY))
        assert next(second) == Queued(0)
        assert len(answer(first).ids) == 300
        assert len(answer(second).ids) == 200


@contextmanager
def held(engine: Engine) -> Iterator[None]:
    """Pauses the engine's thread between two steps."""
    go_on = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        resting = pool.submit(engine._loop.call, go_on.wait)
        try:
            yield
        finally:
            go_on.set()
        resting.result()


def test_short_requests_pass_one_that_waits_for_room(demo_model: str) -> None:
    with Engine(EngineConfig(demo_model, n_ctx=4096, n_parallel=4, rope="native")) as engine:
        shorts = [Request(prose(engine, 26, 2 + i), 2, GREEDY) for i in range(12)]
        stream, long = Request(prose(engine, 20), 3000, ENDLESS), Request(prose(engine, 500, 1), 3000, GREEDY)
        with held(engine):
            streaming, waiting = engine.submit(stream), engine.submit(long)
            passing = [engine.submit(request) for request in shorts]
        assert [answer(handle).usage.n_prompt for handle in passing] == [26] * 12
        assert not streaming.ended
        assert engine.stats().waiting == 1
        streaming.cancel()
        assert isinstance(next(event for event in waiting if not isinstance(event, Queued)), Started)
        waiting.cancel()


def test_one_that_waits_is_not_passed_for_ever(demo_model: str) -> None:
    """Requests that write longer than the first one has to wait anyway overtake it until they have had as many cells
    as it needs."""
    with Engine(EngineConfig(demo_model, n_ctx=1024, n_parallel=10, rope="native")) as engine:
        others = [Request(prose(engine, 20, 2 + i), 130, ENDLESS) for i in range(12)]
        stream, long = Request(prose(engine, 20), 60, ENDLESS), Request(prose(engine, 600, 1), 390, GREEDY)
        with held(engine):
            handles = [engine.submit(stream), engine.submit(long)]
            handles += [engine.submit(request) for request in others]
        assert isinstance(next(event for event in handles[1] if not isinstance(event, Queued)), Started)
        assert engine.stats().waiting == 12 - 990 // 150
        for handle in handles:
            handle.cancel()


def test_streams_without_max_tokens_share_the_cells_to_the_end(demo_model: str) -> None:
    with Engine(EngineConfig(demo_model, n_ctx=1024, rope="native", n_parallel=4)) as engine:
        bias = {engine.token_eos: -1e9}
        handles = [
            engine.submit(Request(prose(engine, 60, i), None, Sampling(seed=i, logit_bias=bias)))
            for i in range(3)
        ]
        got = [answer(handle) for handle in handles]
        assert all(a.reason == "length" for a in got)
        assert all(a.usage.n_completion >= 256 for a in got)
        assert max(a.usage.n_completion for a in got) > 300
        assert engine.stats().failed == 0


def test_what_can_never_fit_is_refused(engine: Engine) -> None:
    with pytest.raises(ContextOverflow) as error:
        engine.submit(Request([300] * 512, 1))
    assert (error.value.n_tokens, error.value.n_ctx) == (512, 512)
    assert answer(engine.submit(Request([300] * 511, 5, GREEDY))).usage.n_completion <= 1


@pytest.mark.parametrize("tokens", [[], [-1], [10**6], [1.5], [[1]]])
def test_bad_tokens_are_refused(engine: Engine, tokens: list[int]) -> None:
    with pytest.raises(ValueError):
        engine.submit(Request(tokens, 1))
