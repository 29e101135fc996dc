"""Short prompts during long ones: counts what is evaluated before their first token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest
from engines import ENDLESS, GREEDY, answer, prose

from pyllama_long.engine import Engine, EngineConfig, Handle, Progress, Request, Started, Text


class Watch:
    """steps: (code, tokens of each sequence) of every evaluation."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[tuple[int, Counter[int]]] = []
        context = engine._context
        decode = context.decode

        def watched(n: int) -> int:
            rows = Counter(context.batch.seq[:n].ravel().tolist())
            self.steps.append((decode(n), rows))
            return self.steps[-1][0]

        monkeypatch.setattr(context, "decode", watched)

    def since(self, begin: int, n: int) -> tuple[list[Counter[int]], Counter[int]]:
        """The evaluations from step `begin` on until a sequence had exactly n tokens: those before, and that one."""
        total: Counter[int] = Counter()
        done = [rows for code, rows in self.steps[begin:] if code == 0]
        for i, rows in enumerate(done):
            total += rows
            if any(total[seq] == n for seq in rows):
                return done[:i], rows
        raise AssertionError("it was not read")


@pytest.fixture
def engine(demo_model: str) -> Iterator[Engine]:
    config = EngineConfig(
        demo_model, n_ctx=16384, n_parallel=6, rope="native", attention="exact", cache_ram=0
    )
    with Engine(config) as engine:
        yield engine


def begun(engine: Engine, seed: int, n: int = 5000) -> Handle:
    """Starts a long prompt and waits until it is being read."""
    handle = engine.submit(Request(prose(engine, n, seed), 1, GREEDY))
    while not isinstance(next(handle), Progress):
        pass
    return handle


def first_text(handle: Handle) -> int:
    """Waits for the request; returns how many prompt tokens had to be read."""
    read = 0
    while not isinstance(event := next(handle), Text):
        if isinstance(event, Started):
            read = event.n_prompt - event.n_cached
    return read


@pytest.mark.parametrize("streams", [0, 2])
@pytest.mark.parametrize("longs", [1, 2])
def test_a_short_prompt_passes_long_ones(
    engine: Engine, streams: int, longs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = [engine.submit(Request(prose(engine, 20, 30 + i), 2000, ENDLESS)) for i in range(streams)]
    for handle in writing:
        first_text(handle)
    reading = [begun(engine, i) for i in range(longs)]
    watch = Watch(engine, monkeypatch)
    short = engine.submit(Request(prose(engine, 26, 9), 1, ENDLESS))
    begin = len(watch.steps)
    read = first_text(short)
    assert read > 20
    before, own = watch.since(begin, read)
    # One step may have been running, and streams may be owed its time.
    assert sum(max(rows.values()) > 1 for rows in before) <= 1
    assert len(before) <= (1 if not streams else 40)
    assert sorted(own.values()) == [1] * streams + [read]
    for handle in writing:
        handle.cancel()
    assert [answer(handle).usage.n_prompt for handle in reading] == [5000] * longs


def test_many_short_ones_do_not_starve_a_long_one(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    long = begun(engine, 0, 4000)
    watch = Watch(engine, monkeypatch)
    for i in range(12):
        handles = [engine.submit(Request(prose(engine, 60, 10 + 5 * i + k), 1, ENDLESS)) for k in range(4)]
        for handle in handles:
            answer(handle)
        if long.ended:
            break
    done = [rows for code, rows in watch.steps if code == 0]
    (seq, _), *_ = sum(done, Counter()).most_common(1)
    gaps, gap = [0], 0
    for rows in done:
        gap = 0 if seq in rows else gap + 1
        gaps.append(gap)
    last = max(i for i, rows in enumerate(done) if seq in rows)
    assert 0 < max(gaps[: last + 2]) <= 3
    stopped = [code for code, _ in watch.steps]
    assert all(codes != (2, 2) for codes in pairwise(stopped))
    answer(long)


def test_a_step_under_way_ends_for_a_newcomer(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is repeated afterwards, with the same result."""
    ids = prose(engine, 3000, 1)
    alone = answer(engine.submit(Request(ids, 20, GREEDY, salt="alone")))
    watch = Watch(engine, monkeypatch)
    context, came = engine._context, list[Handle]()
    decode = context.decode

    def decode_while_somebody_comes(n: int) -> int:
        if n > 26 and len(came) < 5 and engine._loop._open_step:
            came.append(engine.submit(Request(prose(engine, 26, 20 + len(came)), 1, GREEDY)))
        return decode(n)

    monkeypatch.setattr(context, "decode", decode_while_somebody_comes)
    again = answer(engine.submit(Request(ids, 20, GREEDY)))
    assert [answer(handle).usage.n_prompt for handle in came] == [26] * 5
    assert [code for code, _ in watch.steps].count(2) == 5
    assert again.ids == alone.ids
