"""Prompts as tokens: BOS, suffixes, and what is not a prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from llamas import PROMPT, joined, plain

from pyllama_long import LongLlama


def test_token_prompts(llm: LongLlama, upstream: Any) -> None:
    tokens = upstream.tokenize(PROMPT.encode())
    assert tokens == llm.tokenize(PROMPT.encode())
    assert plain(llm(tokens, max_tokens=8, temperature=0)) == plain(
        upstream(tokens, max_tokens=8, temperature=0)
    )
    echoed = llm(tokens, max_tokens=4, temperature=0, echo=True)["choices"][0]["text"]
    assert echoed.startswith(PROMPT)


def test_empty_prompt_begins_with_bos(llm: LongLlama) -> None:
    found = llm("", max_tokens=8, temperature=0)
    assert found["usage"] == {"prompt_tokens": 1, "completion_tokens": 8, "total_tokens": 9}
    assert joined(list(llm("", max_tokens=8, temperature=0, stream=True))) == found["choices"][0]["text"]


def test_suffix_is_appended_where_the_model_has_no_fim_tokens(llm: LongLlama) -> None:
    found = llm(PROMPT, suffix=" THE END", max_tokens=4, temperature=0)["choices"][0]["text"]
    assert found == llm(PROMPT, max_tokens=4, temperature=0)["choices"][0]["text"] + " THE END"


@pytest.mark.parametrize(
    "prompt",
    [[5.9, 6.2], b"abc", bytearray(b"abc"), {300: 1}, ["a"], [[300]], None, np.array([300.0])],
    ids=str,
)
def test_prompts_of_another_type(llm: LongLlama, prompt: Any) -> None:
    for stream in (False, True):
        with pytest.raises(TypeError, match="a prompt is a str, or a list of ints"):
            llm(prompt, max_tokens=1, stream=stream)


def test_prompts_of_numpy_integers(llm: LongLlama) -> None:
    expected = plain(llm([300, 301], max_tokens=4, temperature=0))
    for prompt in (np.array([300, 301]), [np.int32(300), np.int64(301)], (300, 301)):
        assert plain(llm(prompt, max_tokens=4, temperature=0)) == expected
