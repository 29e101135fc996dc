"""Prefix reuse: how much of a prompt is found, for any order of requests, and that the answers are right."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from engines import GREEDY, alone, answer, assert_same, prose
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllama_long import LongLlama
from pyllama_long.arrays import IntArray, common_prefix
from pyllama_long.engine import Engine, EngineConfig, Progress, Request
from pyllama_long.engine.fingerprint import salt_hash
from pyllama_long.engine.prefix import BLOCK, MIN_PREFILL, Index, chain, common_blocks
from pyllama_long.engine.store import StoredSequence


@pytest.fixture(scope="module")
def engine(float_model: str) -> Iterator[Engine]:
    config = EngineConfig(
        float_model, n_ctx=4096, n_batch=128, n_parallel=4, precision="f32", rope="native", cache_ram=0
    )
    with Engine(config) as engine:
        yield engine


@pytest.fixture(scope="module")
def reference(float_model: str) -> Iterator[LongLlama]:
    model = LongLlama(float_model, n_ctx=4096, rope="native", precision="f32", n_batch=128)
    yield model
    model.close()


def longest(prompt: list[int], known: list[list[int]]) -> int:
    """What should be found: the longest common prefix with any text, leaving at least MIN_PREFILL tokens."""
    found = [common_prefix(np.array(prompt), np.array(text)) for text in known]
    return min(max(found, default=0), len(prompt) - MIN_PREFILL)


# ---- parts -------------------------------------------------------------------------------------------------


def stored(ids: list[int], salt: str = "s", factor: float = 1.0) -> StoredSequence:
    array: IntArray = np.array(ids, np.int32)
    return StoredSequence(array, chain(array, [], salt), salt, factor, None)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 300)), min_size=1, max_size=12), st.data())
@settings(deadline=None, max_examples=100)
def test_the_index_finds_the_longest_prefix(cuts: list[tuple[int, int]], data: st.DataObject) -> None:
    base = np.random.default_rng(0).integers(0, 3, 400).tolist()
    texts = []
    for kind, n in cuts:
        texts.append([*base[:n], *([9] * 70 * kind)])
    index: Index[StoredSequence] = Index()
    entries = [stored(text) for text in texts]
    for entry in entries:
        index.add(entry)
    for entry in entries[:: data.draw(st.integers(2, 5))]:
        index.remove(entry)
        entries.remove(entry)
    wanted = stored([*base[: data.draw(st.integers(1, 300))], *([9] * data.draw(st.integers(0, 150)))])
    found, n = index.find(wanted.text, wanted.hashes, "s", 1.0)
    best = max((common_prefix(wanted.text, e.text) for e in entries), default=0)
    assert n == best
    assert (found is None) == (best == 0)
    assert index.find(wanted.text, stored(wanted.text.tolist(), "other").hashes, "other", 1.0) == (None, 0)
    assert index.find(wanted.text, wanted.hashes, "s", 2.0) == (None, 0)


def test_hashes_tell_how_far_texts_agree() -> None:
    a, b = (stored(list(range(n))) for n in (5 * BLOCK, 3 * BLOCK + 7))
    assert common_blocks(a.hashes, b.hashes) == 3 * BLOCK
    assert common_blocks(a.hashes, stored(list(range(5 * BLOCK)), "other").hashes) == 0
    assert chain(a.text, a.hashes[:2], "s") == a.hashes


# ---- the engine --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_requests_reuses_what_is_there(engine: Engine, reference: LongLlama, seed: int) -> None:
    rng, salt = np.random.default_rng(seed), f"order {seed}"
    base, other = prose(engine, 400, 100 + seed), prose(engine, 400, 200 + seed)
    prompts = [
        base[:300],
        base[:120],
        [*base[:200], *other[:50]],
        base[:299],
        other[:90],
        [*base[:200], *other[:130]],
    ]
    known: list[list[int]] = []
    for i in rng.permutation(len(prompts)):
        prompt = prompts[i]
        got = answer(engine.submit(Request(prompt, 12, GREEDY, salt=salt)))
        assert got.cached == longest(prompt, known)
        assert_same(reference, prompt, got.ids, alone(reference, prompt, 12))
        known.append([*prompt, *got.ids][:-1])


def test_a_conversation_goes_on_where_it_stopped(engine: Engine, reference: LongLlama) -> None:
    text = prose(engine, 200, 31)
    for turn in range(4):
        got = answer(engine.submit(Request(text, 20, GREEDY, salt="talk")))
        assert got.cached == (len(text) - 31 if turn else 0)
        assert_same(reference, text, got.ids, alone(reference, text, 20))
        text = [*text, *got.ids, *prose(engine, 30, 40 + turn)]


def test_salts_share_nothing(engine: Engine) -> None:
    prompt = prose(engine, 150, 32)
    for salt in ("key one", "key two"):
        assert answer(engine.submit(Request(prompt, 3, GREEDY, salt=salt))).cached == 0
        assert answer(engine.submit(Request(prompt, 3, GREEDY, salt=salt))).cached == 141


def test_running_requests_are_forked(engine: Engine, reference: LongLlama) -> None:
    prompt = prose(engine, 300, 33)
    first = engine.submit(Request(prompt, 200, GREEDY, salt="fork"))
    for event in first:
        if isinstance(event, Progress) and event.processed == event.total:
            break
    before = engine.stats()
    branch = [*prompt, *prose(engine, 40, 34)]
    second = answer(engine.submit(Request(branch, 10, GREEDY, salt="fork")))
    assert second.cached >= 300
    assert engine.stats().cells_used - before.cells_used < 250 + 200
    assert_same(reference, branch, second.ids, alone(reference, branch, 10))
    assert_same(reference, prompt, answer(first).ids[-1:], alone(reference, prompt, 200)[-1:])


def test_equal_prompts_at_the_same_time_are_read_once(engine: Engine) -> None:
    prompt = prose(engine, 1000, 35)
    before = engine.stats()
    handles = [engine.submit(Request(prompt, 5, GREEDY, salt="together")) for _ in range(4)]
    got = [answer(handle) for handle in handles]
    # The others begin when less than a block is missing; how soon that is depends on the steps.
    assert got[0].cached == 0
    assert all(991 - BLOCK < a.cached <= 991 for a in got[1:])
    assert len({tuple(a.ids) for a in got}) == 1
    assert engine.stats().cells_used - before.cells_used < 1020 + 3 * BLOCK


def test_a_twin_is_not_kept_twice(engine: Engine) -> None:
    prompt = prose(engine, 200, 36)
    answer(engine.submit(Request(prompt, 8, GREEDY, salt="twin")))
    for _ in range(3):
        answer(engine.submit(Request(prompt, 8, GREEDY, salt="twin")))
    salt = salt_hash("twin")
    assert [held.n for held in engine._loop.batching.pool.held.values() if held.salt == salt] == [207]
