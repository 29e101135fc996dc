"""Rewinding a text on every kind of memory: the logits are always those of a fresh evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import make_random_gguf
import numpy as np
import pytest
from walks import KINDS, Walk

from pyllama_long import LongLlama
from pyllama_long._native import llama_cpp
from pyllama_long.errors import DecodeError

N_CTX = 1024


@pytest.fixture(scope="module", params=KINDS)
def walk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    path = tmp_path_factory.mktemp("models") / f"{request.param}.gguf"
    found = Walk(path, request.param)
    yield found
    found.close()


def test_any_way_back_gives_the_logits_of_a_fresh_evaluation(walk: Walk) -> None:
    for seed in range(3):
        walk.run(seed, 12)


def test_an_older_prefix_after_a_state(walk: Walk) -> None:
    """A window that has moved on: the cells of old tokens now hold others."""
    base, end = walk.tokens(400, 1), walk.tokens(30, 2)
    walk.start_over(base)
    state = walk.llm.save_state()
    walk.llm.load_state(state)
    walk.llm.eval(walk.tokens(300, 3))
    for n in (390, 200, 60):
        walk.start_over(base[:n] + end)
        walk.compare(f"prefix of {n}")


def test_drafts_that_are_wrong_change_nothing(walk: Walk) -> None:
    prompt = walk.tokens(150, 4)
    expected = walk.greedy(prompt, 24)
    rng = np.random.default_rng(0)

    def draft(known: Any, /, **_: Any) -> Any:
        """Some right tokens and three wrong ones."""
        at = len(known) - len(prompt)
        right = expected[at : at + int(rng.integers(0, 4))]
        return np.array([*right, *rng.integers(260, 500, 3)], np.int32)

    walk.llm.draft_model = cast(Any, draft)
    try:
        assert walk.greedy(prompt, 24) == expected
    finally:
        walk.llm.draft_model = None


def test_a_ram_cache_gives_the_same_answers(walk: Walk) -> None:
    from llama_cpp.llama_cache import LlamaRAMCache

    base = walk.tokens(300, 5)
    prompts = [
        base,
        base[:100] + walk.tokens(40, 6),
        walk.tokens(200, 7),
        base + walk.tokens(20, 8),
        base[:50],
    ]
    expected = [walk.answer(prompt) for prompt in prompts]
    walk.llm.set_cache(LlamaRAMCache())
    try:
        for i in (0, 2, 1, 3, 4, 0, 3, 2, 1):
            walk.start_over(walk.tokens(260, i))
            assert walk.answer(prompts[i], fresh=False) == expected[i], i
    finally:
        walk.llm.set_cache(None)


# ---- what others put there ---------------------------------------------------------------------------------


def put(llm: LongLlama, tokens: Sequence[int]) -> None:
    """Decodes after the text on the raw context, and says so, as handlers of images do."""
    ids = (llama_cpp.llama_token * len(tokens))(*tokens)
    assert llama_cpp.llama_decode(llm.ctx, llama_cpp.llama_batch_get_one(ids, len(tokens))) == 0
    llm.n_tokens += len(tokens)


@pytest.fixture
def llm(demo_model: str) -> Iterator[LongLlama]:
    model = LongLlama(demo_model, n_ctx=256, n_batch=64, precision="f32")
    yield model
    model.close()


def test_what_is_no_text_is_not_read_again(llm: LongLlama) -> None:
    text = list(range(300, 340))
    llm.eval(text[:20])
    put(llm, [500] * 10)
    for tokens, reset in (([], False), (llm.input_ids[:30].tolist(), True)):
        with pytest.raises(DecodeError, match="there are no logits"):
            next(llm.generate(tokens, reset=reset))
        assert llm.n_tokens == 30
    llm.eval(text[20:25])  # fewer than are read again at least
    expected = llm.scores[-1]
    llm.reset()
    prompt = llm.input_ids[:35].tolist()
    assert next(llm.generate(prompt, temp=0)) == int(np.argmax(expected))
    assert np.allclose(llm.scores[-1], expected, atol=1e-3)
    state = llm.save_state()
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llm.ctx), True)
    with pytest.raises(DecodeError, match="came from elsewhere"):
        llm.eval([300])
    llm.load_state(state)
    assert next(llm.generate([], reset=False, temp=0)) == int(np.argmax(expected))
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llm.ctx), True)
    llm.reset()
    llm.eval(text)
    assert llm.scores.shape[0] == 1


def test_tokens_that_were_counted_back_count_again(llm: LongLlama) -> None:
    text = list(range(300, 340))
    llm.eval(text)
    expected = llm.scores[-1]
    llm.n_tokens = 10
    assert len(llm.scores) == 0
    llm.n_tokens = 40
    assert np.array_equal(llm.scores[-1], expected)
    assert llm.sequence.foreign == (0, 0)
    for n in (-1, 257, 2**40):
        with pytest.raises(ValueError, match="give 0 to 256"):
            llm.n_tokens = n


def test_states_that_do_not_fit(llm: LongLlama, demo_model: str, tmp_path: Path) -> None:
    make_random_gguf.write(tmp_path / "other.gguf", "llama", n_layer=2)
    other = LongLlama(tmp_path / "other.gguf", n_ctx=512)
    other.eval(list(range(300, 400)))
    llm.eval(list(range(300, 340)))
    expected = llm.scores[-1]
    good = llm.save_state()
    bad = [other.save_state()]
    for name, value in (("n_tokens", 41), ("n_tokens", -1), ("input_ids", good.input_ids + 10**6)):
        bad.append(llm.save_state())
        setattr(bad[-1], name, value)
    for cut in (0, 8, 1000, len(good.llama_state) // 2):
        bad.append(llm.save_state())
        bad[-1].llama_state = good.llama_state[:cut]
    for state in bad:
        with pytest.raises((RuntimeError, ValueError), match=r"does not fit|outside the vocabulary"):
            llm.load_state(state)
        assert llm.n_tokens == 40
        assert next(llm.generate([], reset=False, temp=0)) == int(np.argmax(expected))
    other.close()


def test_logits_that_were_kept_are_saved(demo_model: str) -> None:
    model = LongLlama(demo_model, n_ctx=128, logits_all=True)
    model.eval(list(range(300, 340)))
    expected, state = np.array(model._scores), model.save_state()
    model.reset()
    model.eval(list(range(400, 440)))
    model.load_state(state)
    assert np.array_equal(model._scores, expected)
    model.close()
