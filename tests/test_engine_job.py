"""One request of an engine: where it ends, its text, its scores."""

from __future__ import annotations

import numpy as np
import pytest
from engines import GREEDY, answer, prose

from pyllama_long import LongLlama
from pyllama_long.engine import (
    Engine,
    PromptScores,
    Request,
    Sampling,
    Text,
)


def test_an_answer_without_max_tokens_reaches_the_end_of_the_context(engine: Engine) -> None:
    prompt = prose(engine, 400, 3)
    got = answer(engine.submit(Request(prompt, None, Sampling(seed=1, logit_bias={engine.token_eos: -1e9}))))
    assert (got.reason, got.usage.n_completion) == ("length", 112)


def test_max_tokens_zero_only_reads(engine: Engine) -> None:
    got = answer(engine.submit(Request(prose(engine, 30, 4), 0)))
    assert (got.reason, got.text, got.usage.n_completion) == ("length", "", 0)


def test_the_model_may_end_the_text(engine: Engine) -> None:
    request = Request(prose(engine, 20), 9, Sampling(temperature=0, logit_bias={engine.token_eos: 1e9}))
    got = answer(engine.submit(request))
    assert (got.reason, got.stop_string, got.text, got.tokens) == ("stop", None, "", [])


@pytest.mark.parametrize("begin", [3, 11])
def test_stop_strings_may_span_tokens(engine: Engine, begin: int) -> None:
    prompt = prose(engine, 60, 5)
    whole = answer(engine.submit(Request(prompt, 30, GREEDY)))
    stop = whole.text[begin : begin + 9]
    got = answer(engine.submit(Request(prompt, 30, GREEDY, stop=("never there", stop))))
    assert got.text == whole.text[: whole.text.index(stop)]
    assert (got.reason, got.stop_string) == ("stop", stop)
    assert all(
        stop[0] not in event.text[:-1] or event.text for event in got.events if isinstance(event, Text)
    )


def test_text_comes_in_whole_characters(engine: Engine) -> None:
    grammar = 'root ::= "naïve — 日本語 🙂!"'
    got = answer(engine.submit(Request(prose(engine, 10), 60, Sampling(seed=5, grammar=grammar))))
    assert (got.text, got.reason) == ("naïve — 日本語 🙂!", "stop")
    assert b"".join(token.text_bytes for token in got.tokens).decode() == got.text
    pieces = [event for event in got.events if isinstance(event, Text)]
    assert any(len(event.tokens) > 1 for event in pieces)
    assert all("�" not in event.text for event in pieces)


def test_logprobs_are_those_of_longllama(engine: Engine, llm: LongLlama) -> None:
    prompt = prose(engine, 40, 10)
    got = answer(engine.submit(Request(prompt, 8, GREEDY, logprobs=3, salt="logprobs")))
    llm.sequence.keep(0)
    block = llm.create_completion(prompt, max_tokens=8, temperature=0, logprobs=3)["choices"][0]["logprobs"]
    logprobs = [token.logprob or 0.0 for token in got.tokens]
    assert np.allclose(logprobs, block["token_logprobs"], atol=2e-3)
    for token, top in zip(got.tokens, block["top_logprobs"], strict=True):
        assert len(token.top) == 3
        assert {raw.decode() for _, raw, _ in token.top} == set(top)
        assert token.top[0][0] == token.id


def test_a_prompt_is_scored(engine: Engine, llm: LongLlama) -> None:
    prompt = prose(engine, 130, 11)
    answer(engine.submit(Request(prompt, 1, GREEDY)))  # what is cached does not matter
    got = answer(engine.submit(Request(prompt, 0, GREEDY, logprobs=2, echo_logprobs=True)))
    scores = next(event.tokens for event in got.events if isinstance(event, PromptScores))
    assert [token.id for token in scores] == prompt
    assert scores[0].logprob is None
    rows: list[float] = []
    llm.sequence.keep(0)
    llm.reset()
    llm.sequence.extend(
        np.array(prompt, np.int32),
        visit=lambda first, logits: rows.extend(
            float(LongLlama.logits_to_logprobs(row)[token])
            for row, token in zip(logits, prompt[first + 1 :], strict=False)
        ),
    )
    assert np.allclose([token.logprob or 0.0 for token in scores[1:]], rows[:129], atol=2e-3)
    assert all(len(token.top) == 2 for token in scores[1:])
