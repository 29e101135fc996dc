"""How an engine ends, and what it says of itself before."""

from __future__ import annotations

import threading
import time

import pytest
from engines import GREEDY, answer, prose

from pyllama_long.engine import DecodeError, Engine, EngineClosed, EngineConfig, Request


def wait_until(true: object, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_thread_that_hangs_is_seen_from_outside(demo_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(EngineConfig(demo_model, n_ctx=512)) as engine:
        wait_until(lambda: not engine.has_work)
        assert time.monotonic() - engine.last_turn < 0.1
        go, decode = threading.Event(), engine._context.decode

        def hangs(n: int) -> int:
            assert go.wait(10)
            return decode(n)

        monkeypatch.setattr(engine._context, "decode", hangs)
        handle = engine.submit(Request(prose(engine, 20), 2, GREEDY))
        begin = time.monotonic()
        time.sleep(0.1)
        assert engine.has_work
        assert engine.last_turn < begin + 0.05
        go.set()
        answer(handle)
        wait_until(lambda: not engine.has_work)
        assert engine.last_turn > begin + 0.1
        assert engine.failure is None
    with pytest.raises(EngineClosed, match="the engine is closed"):
        engine.submit(Request([300], 1))


def test_a_thread_that_gives_up_says_why(demo_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever: not who runs, not who waits, not who comes later."""
    engine = Engine(EngineConfig(demo_model, n_ctx=512, n_parallel=1))
    prompt = prose(engine, 20)
    running, waiting = (engine.submit(Request(prompt, 400, GREEDY)) for _ in range(2))
    next(running)

    def broken(*_: object) -> None:
        raise RuntimeError("torn")

    monkeypatch.setattr(engine._context, "decode", broken)
    monkeypatch.setattr(engine._context, "clear", broken)
    for handle in (running, waiting):
        with pytest.raises((EngineClosed, DecodeError), match="torn"):
            answer(handle)
    wait_until(lambda: engine.failure)
    assert "torn" in str(engine.failure)
    with pytest.raises(EngineClosed, match="the engine has failed: torn"):
        engine.submit(Request(prompt, 1))
    engine.close()
