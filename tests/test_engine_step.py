"""Batches that fail, and which of their requests end with them."""

from __future__ import annotations

import numpy as np
import pytest
from engines import GREEDY, answer, prose

from pyllama_long.engine import (
    DecodeError,
    Engine,
    Progress,
    Request,
    Started,
)


def test_a_failed_batch_ends_its_requests_only(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = prose(engine, 80, 13)
    expected = answer(engine.submit(Request(prompt, 10, GREEDY))).ids
    with monkeypatch.context() as patch:
        patch.setattr(engine._context, "decode", lambda n: -3)
        with pytest.raises(DecodeError, match="code -3"):
            answer(engine.submit(Request(prose(engine, 80, 14), 10, GREEDY)))
    assert answer(engine.submit(Request(prompt, 10, GREEDY))).ids == expected


def test_an_unexpected_error_ends_the_requests_and_not_the_engine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(n: int) -> int:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(engine._context, "decode", broken)
        with pytest.raises(DecodeError, match="broken"):
            answer(engine.submit(Request(prose(engine, 80, 14), 10, GREEDY)))
    assert engine.stats().cells_used == 0
    assert len(answer(engine.submit(Request(prose(engine, 80, 13), 10, GREEDY))).ids) == 10


def test_a_full_cache_is_met_by_smaller_batches(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = engine._context.decode
    with monkeypatch.context() as patch:
        patch.setattr(engine._context, "decode", lambda n: 1 if n > 10 else decode(n))
        got = answer(engine.submit(Request(prose(engine, 33, 15), 4, GREEDY, salt="full")))
    assert got.cached == 0
    assert len(got.ids) == 4
    assert next(event.processed for event in got.events if isinstance(event, Progress)) <= 10


def test_nan_logits_end_one_request(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = engine._context.logits

    def spoiled(n: int) -> object:
        rows = np.array(logits(n))
        if n == 2:
            rows[1] = np.nan
        return rows

    first = engine.submit(Request(prose(engine, 20, 16), 200, GREEDY))
    assert isinstance(next(first), Started)
    with monkeypatch.context() as patch:
        patch.setattr(engine._context, "logits", spoiled)
        with pytest.raises(DecodeError, match="NaN"):
            answer(engine.submit(Request(prose(engine, 20, 17), 5, GREEDY)))
    assert len(answer(first).ids) == 200
