"""The engine's face: answers, events, sampling, and the end."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from engines import GREEDY, alone, answer, assert_same, prose

from pyllama_long import LongLlama, _native
from pyllama_long.engine import (
    Engine,
    EngineClosed,
    EngineConfig,
    Finished,
    Handle,
    ModelError,
    Progress,
    Request,
    Sampling,
    Started,
    Text,
)

# ---- answers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def floats(float_model: str) -> Iterator[tuple[Engine, LongLlama]]:
    llm = LongLlama(float_model, n_ctx=512, n_batch=64, precision="f32")
    with Engine(EngineConfig(float_model, n_ctx=512, n_batch=64, n_parallel=4, precision="f32")) as engine:
        yield engine, llm
    llm.close()


def test_a_greedy_answer_is_that_of_longllama(floats: tuple[Engine, LongLlama]) -> None:
    engine, llm = floats
    prompt = prose(engine, 150)
    got = answer(engine.submit(Request(prompt, 60, GREEDY, salt="alone")))
    assert got.cached == 0
    assert_same(llm, prompt, got.ids, alone(llm, prompt, 60))
    assert got.text == llm.detokenize(got.ids).decode()
    assert (got.usage.n_prompt, got.usage.n_completion, got.reason) == (150, 60, "length")


def test_company_changes_no_answer(floats: tuple[Engine, LongLlama]) -> None:
    engine, llm = floats
    prompts = [prose(engine, n, seed) for seed, n in enumerate((40, 90, 130, 7))]
    handles = [engine.submit(Request(prompt, 40, GREEDY)) for prompt in prompts]
    for prompt, handle in zip(prompts, handles, strict=True):
        assert_same(llm, prompt, answer(handle).ids, alone(llm, prompt, 40))


def test_streams_that_write_together_keep_long_runs(demo_model: str) -> None:
    """Cells are assigned in blocks of 64, not one by one to each stream in rotation."""
    with Engine(EngineConfig(demo_model, n_ctx=4096, n_parallel=8)) as engine:
        sampling = Sampling(temperature=0, logit_bias={engine.token_eos: -1e9})
        handles = [engine.submit(Request([300 + i] * 12, 250, sampling)) for i in range(8)]
        assert [answer(handle).usage.n_completion for handle in handles] == [250] * 8
        # At most 5 blocks for each of 8 streams, in 250 steps; in rotation they would have 130 runs on average.
        assert _native.stats(engine._context.ctx).n_runs < 250 * 8 * 4


def test_events_come_in_order(engine: Engine) -> None:
    prompt = prose(engine, 200, 9)
    events = answer(engine.submit(Request(prompt, 5, GREEDY, salt="events"))).events
    assert isinstance(events[0], Started)
    read = [event for event in events if isinstance(event, Progress)]
    # The last two share what is left, so that none is short.
    assert [event.processed for event in read] == [64, 128, 183, 200]
    assert all(event.total == 200 and event.cached == 0 for event in read)
    kinds = [type(event) for event in events]
    assert kinds == [Started, *[Progress] * 4, *[Text] * 5, Finished]


# ---- the rest of the face ----------------------------------------------------------------------------------


def test_asyncio(engine: Engine) -> None:
    prompt = prose(engine, 60, 18)
    expected = answer(engine.submit(Request(prompt, 20, GREEDY)))

    async def ask() -> str:
        found = [event async for event in engine.submit(Request(prompt, 20, GREEDY))]
        assert isinstance(found[-1], Finished)
        return "".join(event.text for event in found if isinstance(event, Text))

    async def stop() -> str:
        handle = engine.submit(Request(prompt, 400, GREEDY))
        reasons = []
        async for event in handle:
            if isinstance(event, Text):
                handle.cancel()
            if isinstance(event, Finished):
                reasons.append(event.reason)
        return reasons[0]

    async def both() -> list[str]:
        return list(await asyncio.gather(ask(), ask(), stop()))

    assert asyncio.run(both()) == [expected.text, expected.text, "cancelled"]


def test_the_model_is_described(engine: Engine, llm: LongLlama) -> None:
    assert (engine.n_ctx, engine.n_vocab, engine.n_train) == (512, llm.n_vocab(), llm.n_train)
    assert engine.token_eos == llm.token_eos()
    assert (engine.plan, engine.rope) == (llm.plan, llm.rope)
    assert engine.metadata == llm.metadata
    assert "RoPE: native" in engine.explain()
    assert engine.detokenize(engine.tokenize(b"hello there")) == llm.detokenize(llm.tokenize(b"hello there"))


def test_statistics(engine: Engine) -> None:
    before = engine.stats()
    answer(engine.submit(Request(prose(engine, 50, 22), 9, GREEDY)))
    after = engine.stats()
    assert after.finished == before.finished + 1
    assert after.prompt_tokens == before.prompt_tokens + 50
    assert after.completion_tokens == before.completion_tokens + 9
    assert after.steps > before.steps
    assert 0 < after.overhead_ms < after.step_ms


def test_keys_read_are_counted_for_each_request(demo_model: str) -> None:
    with Engine(EngineConfig(demo_model, n_ctx=2048, attention="skim", rope="native")) as engine:
        long = engine.submit(Request(prose(engine, 2000), 4, GREEDY))
        assert answer(long).usage.keys_read_share < 1
        assert answer(engine.submit(Request(prose(engine, 20, 1), 4, GREEDY))).usage.keys_read_share == 1


def test_bad_files_and_settings(demo_model: str) -> None:
    with pytest.raises(ModelError):
        Engine(EngineConfig("/nowhere.gguf"))
    with pytest.raises(ValueError):
        Engine(EngineConfig(demo_model, attention="nonsense"))
    for bad in ({"n_parallel": 0}, {"cache_disk": 5}, {"step_ms": 0}, {"n_ctx": -1}):
        with pytest.raises(ValueError):
            EngineConfig(demo_model, **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("small", [{"n_ctx": 3, "n_parallel": 128}, {"n_batch": 1, "n_parallel": 1}])
def test_fewer_tokens_than_sequences(demo_model: str, small: dict[str, int]) -> None:
    """llama.cpp aborts if a batch or a context has fewer tokens than the maximal number of sequences."""
    with Engine(EngineConfig(demo_model, **{"n_ctx": 256, **small})) as engine:  # type: ignore[arg-type]
        assert len(answer(engine.submit(Request(prose(engine, 20), 4, GREEDY))).ids) == 4


def test_loading_is_reported(demo_model: str) -> None:
    seen: list[tuple[int, int]] = []
    Engine(EngineConfig(demo_model), on_progress=lambda done, total: seen.append((done, total))).close()
    assert seen[-1] == (100, 100)


def test_closing_ends_what_is_in_flight(demo_model: str) -> None:
    engine = Engine(EngineConfig(demo_model, n_ctx=4096, n_parallel=2, rope="native"))
    handles = [engine.submit(Request(prose(engine, 50, i), 3000, GREEDY)) for i in range(4)]
    errors: list[BaseException] = []

    def read(handle: Handle) -> None:
        try:
            list(handle)
        except EngineClosed as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(handle,)) for handle in handles]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    begin = time.monotonic()
    engine.close()
    for thread in threads:
        thread.join(5)
    assert time.monotonic() - begin < 2
    assert len(errors) == 4
    assert not any(
        thread.name.startswith("pyllama-long") for thread in threading.enumerate() if not thread.daemon
    )
    assert engine.stats().cells_used == 0
    with pytest.raises(EngineClosed):
        engine.submit(Request([300], 1))
    with pytest.raises(RuntimeError):
        engine.tokenize(b"a")
    engine.close()


def test_closing_may_wait_for_what_runs(demo_model: str) -> None:
    engine = Engine(EngineConfig(demo_model, n_ctx=512, n_parallel=1))
    handles = [engine.submit(Request(prose(engine, 50, i), 100, GREEDY)) for i in range(2)]
    engine.close(drain_s=60)
    assert [len(answer(handle).ids) for handle in handles] == [100, 100]


_SCRIPT = """
import sys, threading, time
from pyllama_long.engine import Engine, EngineConfig, Request
engine = Engine(EngineConfig(sys.argv[1], n_ctx=4096, rope="native"))
handle = engine.submit(Request([300] * 50, 4000))
next(handle)
print("ready", flush=True)
if sys.argv[2] == "wait":
    for event in handle: pass
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["wait", "leave"])
def test_a_process_ends_with_its_engine(demo_model: str, how: str) -> None:
    """By Ctrl-C, and by leaving without `close`."""

    def listen() -> None:
        """Processes that a shell starts in the background ignore Ctrl-C, and so do their children."""
        signal.signal(signal.SIGINT, signal.default_int_handler)

    command = [sys.executable, "-c", _SCRIPT, demo_model, how]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if how == "wait":
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    if how == "leave":
        assert (process.returncode, errors) == (0, "")
    else:
        assert process.returncode != 0
        assert errors.rstrip().endswith("KeyboardInterrupt")
