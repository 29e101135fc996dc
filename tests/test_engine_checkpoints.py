"""Prompts that go on from a checkpoint, where the memory cannot go back itself: what is saved, and the same answers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import GREEDY, Answer, answer, ask, files
from hypothesis import given, settings
from hypothesis import strategies as st
from make_random_gguf import write

from pyllama_long.arrays import MIN_PREFILL
from pyllama_long.checkpoints import _ENDING, Limits, spare
from pyllama_long.engine import Engine, EngineConfig, Event, Handle, Progress, Request

EVERY = 128
BEGIN, END = 3, 4  # the random vocabulary's <|im_start|> and <|im_end|>
ANSWER = [BEGIN, 300, 301]  # the marks before an answer
SHAPES: dict[str, Any] = {
    "qwen35": {"n_layer": 4},
    "gemma3": {"n_layer": 3, "sliding_pattern": 3},
    "mamba": {"n_layer": 2},
}


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / f"{request.param}.gguf"
    write(path, request.param, type="f32", n_embd=64, n_head=2, n_head_kv=1, **SHAPES[request.param])
    return str(path)


@pytest.fixture
def config(model: str, tmp_path: Path) -> EngineConfig:
    return EngineConfig(
        model,
        n_ctx=2048,
        rope="native",
        precision="f32",
        n_parallel=3,
        n_batch=256,
        checkpoint_every=EVERY,
        cache_disk=1 << 28,
        cache_dir=str(tmp_path / "cache"),
    )


def message(n: int, seed: int) -> list[int]:
    return [BEGIN, *np.random.default_rng(seed).integers(270, 512, n).tolist(), END, 269]


def conversation(n: int = 12, seed: int = 0) -> list[list[int]]:
    sizes = np.random.default_rng(seed).integers(20, 160, n)
    return [message(int(size), 100 * seed + i) for i, size in enumerate(sizes)]


def prompt(messages: Sequence[list[int]]) -> list[int]:
    return [1, *(token for one in messages for token in one), *ANSWER]


def edited(messages: Sequence[list[int]], k: int) -> tuple[list[int], int]:
    """The prompt with another message k, and the tokens before it."""
    changed = [*messages[:k], message(30, 10_000 + k), *messages[k + 1 :]]
    return prompt(changed), 1 + sum(map(len, messages[:k]))


def check(engine: Engine, fresh: Engine, ids: list[int], same: int) -> Answer:
    """Asks, and checks that what was saved ends at most one interval before the first other token, and the answer."""
    got = ask(engine, ids)
    assert same - EVERY <= got.cached <= same + 1, f"{got.cached} of {same}"
    other = answer(fresh.submit(Request(ids, 8, GREEDY, salt=str(len(ids)))))
    assert got.ids == other.ids
    return got


# ---- where they are made -----------------------------------------------------------------------------------


@given(
    st.integers(0, 5000),
    st.lists(st.integers(0, 5000), max_size=60),
    st.integers(0, 600),
    st.integers(MIN_PREFILL, 3000),
    st.integers(1, 80),
)
@settings(deadline=None, max_examples=200)
def test_places_are_near_every_token(n: int, marks: list[int], begin: int, every: int, most: int) -> None:
    limits = Limits(most, every)
    places = limits.places(n, sorted(marks), begin)
    assert all(b - a >= MIN_PREFILL for a, b in zip([begin, *places], [*places, n], strict=True) if places)
    furthest = max(every, limits.near, n // most)
    if n - begin > limits.near + MIN_PREFILL:
        # The last place is where the answer begins, as far as marks tell; one that is near `begin` is not needed.
        end = min(
            (m for m in marks if max(begin, n - _ENDING) <= m <= n - MIN_PREFILL), default=n - MIN_PREFILL
        )
        gaps = [b - a for a, b in zip([begin, *places], [*places, end], strict=True)]
        assert max(gaps) <= furthest
    assert Limits(0).places(n, marks) == []


def test_messages_are_kept_rather_than_intervals() -> None:
    limits = Limits(64, 800)
    assert limits.places(3000, [1000, 1050, 1400, 2980, 2985]) == [800, 1000, 1400, 2200, 2980]
    assert limits.places(3000, []) == [800, 1600, 2400, 3000 - MIN_PREFILL]
    assert limits.places(3000, [1400, 2980], 1500) == [2300, 2980]


def test_the_one_between_near_ones_is_spared() -> None:
    assert spare([100, 200, 210, 400, 410]) == 1
    assert spare([5, 10]) == 0


@pytest.mark.parametrize("bad", [{"checkpoint_every": 8}, {"checkpoints": -1}, {"checkpoint_ram": -1}])
def test_bad_limits_are_named(demo_model: str, bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        EngineConfig(demo_model, **bad)  # type: ignore[arg-type]


# ---- what they save ----------------------------------------------------------------------------------------


def test_an_edited_message_goes_on_before_it(config: EngineConfig) -> None:
    """In an engine, beside other conversations, and after a restart."""
    messages = conversation()
    ids = prompt(messages)
    with Engine(config) as fresh:
        with Engine(config) as engine:
            first = ask(engine, ids)
            others = [prompt(conversation(4, seed)) for seed in range(1, 9)]
            for handle in [engine.submit(Request(other, 8, GREEDY)) for other in others]:
                answer(handle)
            for k in (10, 3):
                check(engine, fresh, *edited(messages, k))
            # The next turn, whose template has dropped what the model thought.
            answered = prompt([*messages, message(30, 78), message(40, 77)])
            assert check(engine, fresh, answered, len(ids) - 2).cached == len(ids) - MIN_PREFILL
            stats = engine.stats()
            assert stats.failed == 0 < stats.checkpoint_bytes
            assert stats.checkpoints > 9
        with Engine(config) as engine:
            for k in (11, 6):
                check(engine, fresh, *edited(messages, k))
            assert engine.stats().checkpoint_hits >= 1
            assert ask(engine, ids).ids == first.ids


def test_memory_is_as_set(config: EngineConfig) -> None:
    messages = conversation()
    with Engine(replace(config, cache_disk=0)) as engine:
        ask(engine, prompt(messages))
        whole = engine.stats()
    limit = whole.checkpoint_bytes // 3
    with Engine(replace(config, cache_disk=0, checkpoint_ram=limit)) as engine:
        ask(engine, prompt(messages))
        few = engine.stats()
        assert 0 < few.checkpoint_bytes <= limit
        assert 1 < few.checkpoints < whole.checkpoints
        got = ask(engine, edited(messages, 11)[0])
        assert got.cached > 0
    with Engine(replace(config, cache_disk=0, checkpoints=4)) as engine:
        ask(engine, prompt(messages))
        assert engine.stats().checkpoints <= 4
    with Engine(replace(config, cache_disk=0, checkpoints=0)) as engine:
        ask(engine, prompt(messages))
        assert engine.stats().checkpoints == 0
    # What is being written to disk may take as much again.
    with Engine(replace(config, checkpoint_ram=whole.checkpoint_bytes // 2 + 1)) as engine:
        ask(engine, prompt(messages))
        ids, same = edited(messages, 1)
        assert ask(engine, ids).cached >= same - EVERY  # from disk
    assert files(config)


def test_a_cancelled_prompt_and_equal_prompts(config: EngineConfig) -> None:
    messages = conversation()
    ids = prompt(messages)
    with Engine(config) as engine:

        def cancelled_on_the_way() -> Handle:
            """On the engine's thread, which cannot have read anything yet."""
            handle = engine.submit(Request(ids, 8, GREEDY))
            put = handle.put

            def cancelling(event: Event) -> None:
                put(event)
                if isinstance(event, Progress) and event.processed > 600:
                    handle.cancel()

            handle.put = cancelling  # type: ignore[method-assign]
            return handle

        assert answer(engine._loop.call(cancelled_on_the_way)).reason == "cancelled"
        read = engine.stats().cells_used
        assert 600 < read < len(ids)
        other, same = edited(messages, 11)
        assert ask(engine, other).cached >= min(read, same) - EVERY
        twins = [engine.submit(Request(prompt(conversation(6, 50)), 8, GREEDY)) for _ in range(3)]
        found = [answer(twin) for twin in twins]
        assert len({tuple(one.ids) for one in found}) == 1
        assert sum(one.cached > 200 for one in found) == 2


def test_a_damaged_checkpoint_is_forgotten(config: EngineConfig, caplog: pytest.LogCaptureFixture) -> None:
    messages = conversation(6)
    with Engine(config) as engine:
        expected = ask(engine, prompt(messages))
    for path in files(config):
        raw = bytearray(path.read_bytes())
        raw[-40] ^= 0x5A
        path.write_bytes(raw)
    with caplog.at_level(logging.WARNING), Engine(config) as engine:
        again = ask(engine, prompt(messages))
        assert (again.cached, again.ids) == (0, expected.ids)
    assert "deleted" in caplog.text


def test_a_session_goes_back_too(config: EngineConfig) -> None:
    """The saved text has another answer than the cells."""
    messages = conversation(6)
    ids = prompt(messages)
    answered = prompt([*messages, message(30, 78)])
    with Engine(replace(config, cache_disk=0)) as engine:
        ask(engine, ids)
        saved = engine.sessions.save(answered, "talk")
        assert saved.n_tokens >= len(ids) - 40
    with Engine(replace(config, cache_disk=0)) as engine:
        fresh = ask(engine, answered)
    with Engine(replace(config, cache_disk=0)) as engine:
        engine.sessions.restore("talk")
        got = ask(engine, answered)
        assert (got.cached, got.ids) == (saved.n_tokens, fresh.ids)
