"""How an engine ends, and what it reports about itself before."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time

import pytest
from engines import GREEDY, answer, prose

from pyllama_long.engine import DecodeError, Engine, EngineClosed, EngineConfig, Request
from pyllama_long.engine.job import Job


def wait_until(true: object, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_thread_that_hangs_is_seen_from_outside(demo_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(EngineConfig(demo_model, n_ctx=512)) as engine:
        wait_until(lambda: not engine.has_work)
        assert time.monotonic() - engine.last_step < 0.1
        go, decode = threading.Event(), engine._context.decode

        def hangs(n: int) -> int:
            assert go.wait(10)
            return decode(n)

        monkeypatch.setattr(engine._context, "decode", hangs)
        handle = engine.submit(Request(prose(engine, 20), 2, GREEDY))
        begin = time.monotonic()
        time.sleep(0.1)
        assert engine.has_work
        assert engine.last_step < begin + 0.05
        go.set()
        answer(handle)
        wait_until(lambda: not engine.has_work)
        assert engine.last_step > begin + 0.1
        assert engine.failure is None
    with pytest.raises(EngineClosed, match="the engine is closed"):
        engine.submit(Request([300], 1))


def test_a_thread_that_gives_up_says_why(demo_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits forever: neither running nor waiting requests, nor later ones."""
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


def test_a_child_of_a_fork_gets_an_error_and_ends(demo_model: str) -> None:
    code = textwrap.dedent(
        """
        import os, sys
        from pyllama_long.engine import Engine, EngineClosed, EngineConfig, Request

        engine = Engine(EngineConfig(sys.argv[1], n_ctx=512, embedding=True))
        running = engine.submit(Request([300, 301], 400))
        next(running)
        calls = [
            lambda: engine.submit(Request([300], 1)),
            lambda: engine.tokenize(b"word"),
            lambda: engine.embed([[300]]),
            lambda: engine._loop.call(int),
        ]
        # As a thread may have them when the process forks.
        with engine._loop._lock, engine._context._users._left:
            child = os.fork()
            if not child:
                for call in calls:
                    try:
                        call()
                    except EngineClosed as error:
                        assert "before the process forked" in str(error)
                    else:
                        os._exit(3)
                running.cancel()
                engine.close()
                del engine
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        list(running)
        assert engine.tokenize(b"word")
        engine.close()
        """
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, demo_model], timeout=60)
    assert done.returncode == 0


def test_an_error_in_one_request_ends_it_alone(demo_model: str) -> None:
    with Engine(EngineConfig(demo_model, n_ctx=512)) as engine:
        prompt = prose(engine, 20)
        expected = answer(engine.submit(Request(prompt, 30, GREEDY))).ids
        handles, jobs = [], []
        for part in ("sampler", "text"):
            job = Job(100, Request(prompt, 30, GREEDY), engine._context, engine._loop.wake)
            setattr(job, part, Torn(getattr(job, part)))
            jobs.append(job)
        handles = [engine.submit(Request(prompt, 30, GREEDY))]
        for job in jobs:
            engine._loop.submit(job)
        for job in jobs:
            with pytest.raises(DecodeError, match="the request met an error: torn"):
                answer(job.handle)
        assert answer(handles[0]).ids == expected
        wait_until(lambda: not engine.has_work)
        assert engine.stats().failed == 2
        assert answer(engine.submit(Request(prompt, 30, GREEDY))).ids == expected


class Torn:
    """A part of a request that fails when it gets a token."""

    def __init__(self, whole: object) -> None:
        self._whole = whole

    def __getattr__(self, name: str) -> object:
        return getattr(self._whole, name)

    def sample(self, *_: object) -> int:
        raise RuntimeError("torn")

    push = sample
