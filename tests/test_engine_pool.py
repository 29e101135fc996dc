"""Idle sequences make room, and sequences of several RoPE factors in one context."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from engines import GREEDY, alone, answer, assert_same, prose

from pyllama_long import LongLlama
from pyllama_long.engine import Engine, EngineConfig, Progress, Request, Started


def test_idle_sequences_make_room_by_least_recent_use(demo_model: str) -> None:
    with Engine(EngineConfig(demo_model, n_ctx=1024, rope="native", cache_ram=0)) as engine:
        prompts = [prose(engine, 300, 50 + i) for i in range(3)]
        for prompt in prompts:
            answer(engine.submit(Request(prompt, 2, GREEDY)))
        assert answer(engine.submit(Request(prompts[0], 2, GREEDY))).cached == 291
        answer(engine.submit(Request(prose(engine, 300, 60), 2, GREEDY)))  # the second one is dropped
        assert engine.stats().cells_used <= 1024
        cached = [answer(engine.submit(Request(prompts[i], 2, GREEDY))).cached for i in (0, 2, 1)]
        assert cached[:2] == [291, 291]
        assert cached[2] < 10


def test_more_idle_sequences_than_the_context_has(demo_model: str) -> None:
    with Engine(EngineConfig(demo_model, n_ctx=2048, rope="native", n_parallel=2, cache_ram=0)) as engine:
        prompts = [[300 + i, *prose(engine, 20, i)] for i in range(40)]
        for prompt in prompts:
            answer(engine.submit(Request(prompt, 2, GREEDY)))
        stats = engine.stats()
        assert stats.sequences_idle <= stats.sequences_total == 32
        assert answer(engine.submit(Request(prompts[-1], 2, GREEDY))).cached == 12


@pytest.fixture(scope="module")
def dynamic(demo_model: str) -> Iterator[Engine]:
    """The embedded model was trained at 512 tokens."""
    config = EngineConfig(
        demo_model, n_ctx=4096, n_batch=256, precision="f32", rope="dynamic-yarn", n_parallel=4
    )
    with Engine(config) as engine:
        yield engine


@pytest.fixture(scope="module")
def grown(demo_model: str) -> Iterator[LongLlama]:
    model = LongLlama(demo_model, n_ctx=4096, n_batch=256, rope="dynamic-yarn", precision="f32")
    yield model
    model.close()


def test_mixed_factors_in_one_batch(dynamic: Engine, grown: LongLlama) -> None:
    """Sequences with other factors in the batch do not change a bit of an answer, with factor 1 or a higher one."""
    prompts = [prose(dynamic, n, 70 + n) for n in (100, 700, 1500, 450)]
    asked = [Request(prompt, 40, GREEDY, logprobs=2) for prompt in prompts]
    by_itself = [answer(dynamic.submit(replace(one, salt=f"alone {i}"))) for i, one in enumerate(asked)]
    handles = [dynamic.submit(replace(one, salt=f"mixed {i}")) for i, one in enumerate(asked)]
    for prompt, expected, handle in zip(prompts, by_itself, handles, strict=True):
        got = answer(handle)
        assert got.cached == expected.cached == 0
        assert got.tokens == expected.tokens
        assert_same(grown, prompt, got.ids, alone(grown, prompt, 40))


def test_prefixes_are_shared_among_equal_factors_only(dynamic: Engine, grown: LongLlama) -> None:
    base = prose(dynamic, 1500, 81)
    expected = {1400: 0, 300: 0, 310: 300, 1450: 1400}
    for n, cached in expected.items():
        got = answer(dynamic.submit(Request(base[:n], 10, GREEDY, salt="equal")))
        assert cached <= got.cached <= cached + 10
        assert_same(grown, base[:n], got.ids, alone(grown, base[:n], 10))


def test_a_text_that_grows_keeps_its_keys(dynamic: Engine) -> None:
    base = prose(dynamic, 2600, 82)
    for n, cached in ((480, 0), (900, 0), (920, 900), (2000, 0), (2500, 2000), (2550, 2500)):
        got = answer(dynamic.submit(Request(base[:n], 4, GREEDY, salt="grows")))
        assert cached <= got.cached <= cached + 4


def test_an_open_answer_grows_beyond_its_factor(dynamic: Engine) -> None:
    prompt = prose(dynamic, 240, 83)
    bias = {dynamic.token_eos: -1e9}
    sampling = type(GREEDY)(seed=1, logit_bias=bias)
    handles = [dynamic.submit(Request(prompt, None, sampling, salt="open")) for _ in range(2)]
    for handle in handles:
        n = 0
        for event in handle:
            n += not isinstance(event, Started | Progress)
            if n == 400:  # 640 tokens: the factor is 2 by now
                handle.cancel()
    factors = {held.factor for held in dynamic._loop.batching.pool.held.values() if held.n > 600}
    assert 2 in factors
    assert dynamic.stats().failed == 0
