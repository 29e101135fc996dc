"""LongLlama itself: evaluating, reusing, stopping, and how other libraries use it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from llamas import PROMPT, ids

from pyllama_long import LongLlama
from pyllama_long._native import llama_cpp
from pyllama_long.arrays import MIN_PREFILL

# ---- evaluating --------------------------------------------------------------------------------------------


def test_completions_reuse_through_resets(llm: LongLlama, counted: Callable[[], int]) -> None:
    prompt = ids(llm, 200, 3)
    text = llm(prompt, max_tokens=4, temperature=0)["choices"][0]["text"]
    counted()
    llm.reset()
    assert llm(prompt, max_tokens=4, temperature=0)["choices"][0]["text"] == text
    assert counted() <= MIN_PREFILL + 3
    answer = [*prompt, *ids(llm, 20, 4)]
    llm(answer, max_tokens=1)
    assert counted() == 20


# ---- state -------------------------------------------------------------------------------------------------


def test_ram_cache(llm: LongLlama, counted: Callable[[], int]) -> None:
    from llama_cpp.llama_cache import LlamaRAMCache

    prompt = ids(llm, 100, 19)
    llm.set_cache(LlamaRAMCache())
    try:
        text = llm(prompt, max_tokens=3, temperature=0)["choices"][0]["text"]
        llm(ids(llm, 200, 20), max_tokens=1)
        counted()
        assert llm(prompt, max_tokens=3, temperature=0)["choices"][0]["text"] == text
        assert counted() <= MIN_PREFILL + 2
    finally:
        llm.set_cache(None)


# ---- others ------------------------------------------------------------------------------------------------


def test_outlines_access(llm: LongLlama) -> None:
    assert llm.tokenizer().decode(llm.tokenizer_.tokenize(b"the sea", add_bos=False)) == "the sea"
    assert llm.token_eos() < llm.n_vocab()
    assert llm.model and llm._model.model == llm.model
    assert llm._ctx.ctx == llm.ctx
    assert list(llm.eval_tokens) == llm._input_ids.tolist()


def test_tokenizing_equals_upstream(llm: LongLlama, upstream: Any) -> None:
    text = "Ünïcode 語 🦙 and digits 12345\n\n<|im_start|>user\x00 " * 200
    for add_bos in (False, True):
        for special in (False, True):
            tokens = llm.tokenize(text.encode(), add_bos, special)
            assert tokens == upstream.tokenize(text.encode(), add_bos, special)
            assert llm.detokenize(tokens, special=special) == upstream.detokenize(tokens, special=special)
    assert llm.tokenize(b"") == upstream.tokenize(b"")
    with pytest.raises(ValueError, match="outside the vocabulary"):
        llm.detokenize([99999])


def test_signatures_are_shown(llm: LongLlama) -> None:
    import inspect

    for name in ("create_completion", "__call__", "create_chat_completion"):
        mine = inspect.signature(getattr(LongLlama, name)).parameters
        assert list(mine)[:-1] == list(inspect.signature(getattr(llama_cpp.Llama, name)).parameters)
        assert list(mine)[-1] == "tail"


def test_no_warnings_in_plain_use(demo_model: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = LongLlama(demo_model, n_ctx=1024)
        model(PROMPT, max_tokens=2)
        model.close()


def test_the_same_call_again_gives_the_same_text(demo_model: str) -> None:
    """Although the cache holds the prompt by then, enough of it is read again to give the same rounding."""
    with closing(LongLlama(demo_model, n_ctx=512)) as model:
        for word in "man house voice light end king song salt".split():
            first, again = (
                model(f"The {word} of the sea was", max_tokens=12, seed=1, temperature=0.8) for _ in range(2)
            )
            assert again["choices"] == first["choices"]


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_every_role_of_a_chat_may_have_parts(llm: LongLlama, role: str) -> None:
    """The file's own template is used, parts are joined into one text, and no turn is lost."""
    parts = [{"type": "text", "text": "Say "}, {"type": "text", "text": "something."}]
    told = []
    for content in (parts, "Say something."):
        messages = [{"role": role, "content": content}, {"role": "user", "content": "Yes?"}]
        llm.create_chat_completion(messages=messages, max_tokens=1)
        told.append(llm.detokenize(llm.input_ids[: llm.n_tokens].tolist(), special=True))
    assert told[0] == told[1] and f"<|im_start|>{role}\nSay something.".encode() in told[0]
    with pytest.raises(ValueError, match="image_url"):
        llm.create_chat_completion(messages=[{"role": "user", "content": [{"type": "image_url"}]}])
