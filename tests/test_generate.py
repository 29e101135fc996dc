"""Sampling: processors, criteria, grammars, drafts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from llamas import PROMPT, ids, plain

from pyllama_long import LongLlama
from pyllama_long._native import llama_cpp
from pyllama_long.errors import DecodeError


def test_sampling_needs_logits(demo_model: str) -> None:
    model = LongLlama(demo_model)
    with pytest.raises(DecodeError, match="no logits"):
        model.sample()
    model.eval([300, 301])
    assert model.sample(temp=0.0) == int(np.argmax(model.scores[-1]))
    model.close()


def test_generate_takes_tokens_from_outside(llm: LongLlama) -> None:
    prompt = ids(llm, 20, 15)
    stream = llm.generate(prompt, temp=0.0)
    first = next(stream)
    second = stream.send([400, 401])
    stream.close()
    again = llm.generate([*prompt, first, 400, 401], temp=0.0)
    assert next(again) == second
    again.close()


def test_draft_models(demo_model: str, llm: LongLlama) -> None:
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    prompt = llm.tokenize(b"one two three one two three one two three one two")
    expected = llm(prompt, max_tokens=40, temperature=0)["choices"][0]["text"]
    model = LongLlama(demo_model, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=6), n_batch=64)
    model.attention_stats(reset=True)
    assert model(prompt, max_tokens=40, temperature=0)["choices"][0]["text"] == expected
    model.close()


def test_grammar(llm: LongLlama) -> None:
    from llama_cpp.llama_grammar import LlamaGrammar

    grammar = LlamaGrammar.from_string('root ::= "yes" | "no"', verbose=False)
    assert llm(PROMPT, grammar=grammar, max_tokens=8, seed=1)["choices"][0]["text"] in ("yes", "no")
    # llama.cpp's own sampler would hold these for hours.
    for hostile in ('root ::= x{200}\nx ::= "a"? "b"? "c"?', 'root ::= r\nr ::= "a" r r | ""'):
        text = llm(PROMPT, grammar=LlamaGrammar(_grammar=hostile), max_tokens=8, seed=1)["choices"][0]["text"]
        assert set(text) <= set("abc")
    broken = LlamaGrammar(_grammar="root ::= (")
    with pytest.raises(ValueError, match="grammar cannot be read"):
        llm(PROMPT, grammar=broken, max_tokens=8)


def test_logits_processors_see_ids_and_logits_and_join_with_bias(llm: LongLlama) -> None:
    seen: list[int] = []

    def force(ids: Any, scores: Any) -> Any:
        seen.append(len(ids))
        assert scores.shape == (llm.n_vocab(),)
        scores[:] = -math.inf
        scores[[400, 401]] = 1.0
        return scores

    n = len(llm.tokenize(PROMPT.encode()))
    for processors in (force, [force], llama_cpp.LogitsProcessorList([force])):
        seen.clear()
        options: dict[str, Any] = {"logits_processor": processors, "logit_bias": {401: 1.0}}
        found = llm(PROMPT, max_tokens=3, temperature=0, **options)["choices"][0]["text"]
        assert found.encode() == llm.detokenize([401] * 3)
        assert seen == [n, n + 1, n + 2]


def test_errors_in_logits_processors_are_raised(llm: LongLlama) -> None:
    def broken(_ids: Any, _scores: Any) -> Any:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        llm(PROMPT, logits_processor=[broken])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        llm(PROMPT, logit_bias={99999: 1.0})


def test_stopping_criteria(llm: LongLlama, upstream: Any) -> None:
    n = len(llm.tokenize(PROMPT.encode()))

    def run(model: Any) -> Any:
        criteria = llama_cpp.StoppingCriteriaList([lambda ids, _logits: len(ids) >= n + 5])
        return plain(model(PROMPT, max_tokens=20, temperature=0, stopping_criteria=criteria))

    assert run(llm) == run(upstream)
    assert run(llm)["choices"][0]["finish_reason"] == "stop"
