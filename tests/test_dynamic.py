"""LongLlama under a dynamic RoPE policy: which factor each text gets, and what happens to cached keys."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from pyllama_long import LongLlama, filler
from pyllama_long.arrays import as_ids


@pytest.fixture(scope="module")
def dynamic(demo_model: str) -> Iterator[LongLlama]:
    """The embedded model was trained at 512 tokens."""
    model = LongLlama(demo_model, n_ctx=4096, rope="dynamic-yarn", precision="f32", n_batch=256)
    yield model
    model.close()


@pytest.fixture(scope="module")
def prose(dynamic: LongLlama) -> list[int]:
    return dynamic.tokenize(" ".join(filler.sentences()[:900]).encode())


@pytest.fixture(autouse=True)
def empty(dynamic: LongLlama) -> None:
    dynamic.sequence.keep(0)


def test_a_text_inside_the_trained_length_is_native(
    dynamic: LongLlama, llm: LongLlama, prose: list[int]
) -> None:
    dynamic.reset()
    dynamic.eval(prose[:2000])
    assert dynamic.sequence.factor == 4
    for model in (dynamic, llm):
        model.reset()
        model.eval(prose[:400])
    assert dynamic.sequence.factor == 1
    assert np.array_equal(dynamic.scores[-1], llm.scores[-1])


def test_the_factor_grows_with_the_text(dynamic: LongLlama, prose: list[int]) -> None:
    factors = []
    dynamic.reset()
    for begin in range(0, 4096, 256):
        dynamic.eval(prose[begin : begin + 256])
        factors.append(dynamic.sequence.factor)
    assert factors == [1, 1, 2, 2, *[4] * 4, *[8] * 8]
    grown = np.array(dynamic.scores[-1])
    dynamic.sequence.keep(0)
    dynamic.reset()
    dynamic.eval(prose[:4096])
    fresh = np.array(dynamic.scores[-1])
    assert np.corrcoef(grown, fresh)[0, 1] > 0.98


def test_the_answer_counts_when_the_factor_is_chosen(dynamic: LongLlama, prose: list[int]) -> None:
    seen = []
    for max_tokens in (4, 300):
        dynamic.sequence.keep(0)
        for _ in dynamic.create_completion(prose[:500], max_tokens=max_tokens, stream=True, temperature=0):
            seen.append(dynamic.sequence.factor)
            break
    assert seen == [1, 2]


def test_keys_are_used_again_under_a_larger_factor(dynamic: LongLlama, prose: list[int]) -> None:
    dynamic.reset()
    dynamic.eval(prose[:900])
    tokens = as_ids(prose[:1500])
    dynamic.reset()
    dynamic.sequence.admit(tokens, len(tokens))
    assert dynamic.sequence.factor == 4
    assert dynamic.sequence.match(tokens) == 900


@pytest.mark.parametrize(
    ("length", "factor", "kept"), [(1500, 4, 1500), (600, 4, 600), (300, 1, 0), (100, 1, 0)]
)
def test_keys_are_dropped_for_a_short_text_only(
    dynamic: LongLlama, prose: list[int], length: int, factor: float, kept: int
) -> None:
    dynamic.reset()
    dynamic.eval(prose[:2000])
    tokens = as_ids(prose[:length])
    dynamic.reset()
    dynamic.sequence.admit(tokens, length)
    assert (dynamic.sequence.factor, dynamic.sequence.match(tokens)) == (factor, kept)


def test_another_text_begins_with_its_own_factor(dynamic: LongLlama, prose: list[int]) -> None:
    dynamic.reset()
    dynamic.eval(prose[:2000])
    dynamic.reset()
    dynamic.eval(prose[100:1000])
    assert dynamic.sequence.factor == 2
    assert dynamic.sequence.match(as_ids(prose[100:1000])) == 900


def test_a_saved_text_comes_back_with_its_factor(
    dynamic: LongLlama, demo_model: str, prose: list[int]
) -> None:
    dynamic.reset()
    dynamic.eval(prose[:1200])
    state = dynamic.save_state()
    dynamic.eval(prose[1200:1300])
    expected = np.array(dynamic.scores[-1])
    other = LongLlama(demo_model, n_ctx=4096, rope="dynamic-yarn", precision="f32", n_batch=256)
    other.load_state(state)
    assert other.sequence.factor == 4
    other.eval(prose[1200:1300])
    assert np.array_equal(other.scores[-1], expected)
    other.close()
    fixed = LongLlama(demo_model, n_ctx=4096, rope="yarn(4)", precision="f32")
    with pytest.raises(RuntimeError, match="does not fit"):
        fixed.load_state(state)
    fixed.close()


def test_policies_without_a_factor_are_left_alone(llm: LongLlama) -> None:
    assert llm.sequence.factor == 1
    llm.sequence.admit(as_ids([300] * 20), 5000)
    assert llm.sequence.factor == 1


def test_explain_says_what_is_in_use(dynamic: LongLlama, prose: list[int]) -> None:
    dynamic.reset()
    dynamic.eval(prose[:900])
    assert "RoPE: dynamic-yarn" in dynamic.explain()
    assert "factor now: 2" in dynamic.explain()
