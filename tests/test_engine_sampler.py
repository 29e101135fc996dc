"""Choosing tokens for many requests: seeds, penalties, biases, grammars."""

from __future__ import annotations

import json

import pytest
from engines import GREEDY, answer, prose

from pyllama_long import LongLlama
from pyllama_long.engine import (
    Engine,
    Request,
    Sampling,
)


def test_a_seed_gives_the_same_answer_in_any_company(engine: Engine) -> None:
    prompt = prose(engine, 50, 6)

    def ask(seed: int | None) -> Request:
        return Request(prompt, 24, Sampling(temperature=1.2, min_p=0, top_k=0, top_p=1, seed=seed))

    first = answer(engine.submit(ask(7))).ids
    handles = [engine.submit(ask(seed)) for seed in (8, 7, None, None)]
    others = [answer(handle).ids for handle in handles]
    assert others[1] == first
    assert len({tuple(ids) for ids in [first, *others]}) == 4


def test_a_seed_gives_the_answer_of_longllama(engine: Engine, llm: LongLlama) -> None:
    prompt = prose(engine, 50, 6)
    got = answer(engine.submit(Request(prompt, 24, Sampling(temperature=0.9, seed=11, repeat_penalty=1.1))))
    llm.sequence.keep(0)
    expected = llm.create_completion(prompt, max_tokens=24, temperature=0.9, seed=11, repeat_penalty=1.1)
    assert got.text == expected["choices"][0]["text"]


def test_logit_bias_and_penalties(engine: Engine) -> None:
    prompt = prose(engine, 30, 7)
    plain = answer(engine.submit(Request(prompt, 12, GREEDY))).ids
    banned = Sampling(temperature=0, logit_bias={plain[0]: -100})
    assert answer(engine.submit(Request(prompt, 1, banned))).ids[0] != plain[0]
    forced = Sampling(temperature=0, logit_bias={plain[0]: 100})
    assert set(answer(engine.submit(Request(prompt, 12, forced))).ids) == {plain[0]}
    varied = Sampling(temperature=0, logit_bias={plain[0]: 100}, presence_penalty=100, frequency_penalty=100)
    got = answer(engine.submit(Request(prompt, 12, varied))).ids
    assert got.count(plain[0]) == 1


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_grammar_holds(engine: Engine, temperature: float) -> None:
    grammar = 'root ::= "{" pair ("," pair)? "}"\npair ::= "\\"" [a-c]+ "\\":" [1-9] [0-9]?'
    sampling = Sampling(temperature=temperature, seed=3, grammar=grammar)
    got = answer(engine.submit(Request(prose(engine, 20), 40, sampling)))
    if got.reason == "stop":
        assert isinstance(json.loads(got.text), dict)
    else:
        assert set(got.text) <= set('{}"abc:,0123456789')


def test_a_grammar_that_allows_nothing_fails_one_request(engine: Engine) -> None:
    other = engine.submit(Request(prose(engine, 30, 8), 40, GREEDY))
    dead = Sampling(temperature=0, grammar='root ::= "a" [b-a]')
    with pytest.raises(ValueError, match="grammar"):
        engine.submit(Request(prose(engine, 20), 9, dead))
    assert len(answer(other).ids) == 40


@pytest.mark.parametrize(
    "grammar",
    ["root ::= undefined", "root ::= (", "no rules", 'other ::= "a"', "(" * 2000, "root ::= root", ""],
)
def test_bad_grammars_are_refused_at_once(engine: Engine, grammar: str) -> None:
    with pytest.raises(ValueError, match="grammar"):
        engine.submit(Request([300], 4, Sampling(grammar=grammar)))


@pytest.mark.parametrize(
    "bad",
    [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 1.5}, {"logit_bias": {1: float("nan")}}],
)
def test_bad_sampling_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Sampling(**bad)  # type: ignore[arg-type]
