"""Questions about texts: the answers, and how likely the right ones are."""

from __future__ import annotations

import numpy as np
import pytest
from eval_tasks import FORMS, HAYSTACK, task
from llama_cpp import Llama

from pyllama_long import LongLlama
from pyllama_long.evals.documents import Needle
from pyllama_long.evals.measure import Cell
from pyllama_long.evals.prompt import Prompt
from pyllama_long.evals.question import Exam, Question
from pyllama_long.evals.retrieval import Retrieval, ask, likelihood, read
from pyllama_long.evals.ruler import Passkey

CELL = Cell("auto", "exact", 500)


def nats_of(upstream: Llama, tokens: list[int], n: int) -> float:
    """Of the last n tokens, each alone after all before it."""
    upstream.reset()  # type: ignore[no-untyped-call]
    upstream.eval(tokens)
    rows = np.asarray(upstream.scores[len(tokens) - n - 1 : len(tokens) - 1], np.float64)
    found = rows[np.arange(n), tokens[-n:]] - np.logaddexp.reduce(rows, axis=1)
    return float(-found.mean())


def test_the_likelihood_is_that_of_the_value_after_the_beginning_of_the_answer(
    llm: LongLlama, upstream: Llama
) -> None:
    prompt = Prompt(llm)
    needle = Needle(FORMS["code"], "apple", "01234", 0.0).as_question()
    assert (needle.lead, needle.said, needle.given) == ("The code for apple is ", "01234", False)
    given = Question("What is the code for apple?", ("01234", "river"), "They are ")
    tokens = [*prompt.head, *prompt.encode("Read it.\n The code for apple is 01234. The river is wide.\n")]
    exam = Exam(tokens, (needle, given))
    read(llm, exam)
    wrong = Question(needle.text, ("98765",), needle.lead, given=False)
    asked = {
        needle: "code for apple is 01234",
        given: "They are 01234, river",
        wrong: "code for apple is 98765",
    }
    for question, said in asked.items():
        whole, first = prompt.answered(question)
        assert prompt.text(whole).endswith(said) and prompt.text(whole[first:]).strip() == question.said
        found = likelihood(prompt, exam, question)
        assert found == pytest.approx(
            nats_of(upstream, [*tokens, *whole], len(whole) - first), rel=5e-3, abs=1e-4
        )
        assert llm.n_tokens == len(tokens)
    assert likelihood(prompt, exam, wrong) > likelihood(prompt, exam, needle) + 1


def test_an_answer_that_was_scored_first_is_the_same(llm: LongLlama) -> None:
    prompt = Prompt(llm)
    exam = task(samples=1).exam(prompt, 500, 0)
    plain = []
    for question in exam.questions:
        llm.sequence.keep(0)
        read(llm, exam)
        plain.append(ask(prompt, exam, question))
    read(llm, exam)
    scored = [(likelihood(prompt, exam, q), ask(prompt, exam, q))[1] for q in exam.questions]
    assert scored == plain and all(plain)


def test_a_text_is_read_once_for_all_its_questions(llm: LongLlama) -> None:
    retrieval = Retrieval(task(samples=1))
    llm.attention_stats(reset=True)
    found = retrieval.unit(llm, CELL, 0)
    assert len(found["answers"]) == 5
    assert llm.attention_stats()["tokens"] < 500 + 5 * 2 * 80
    assert [answer["depth"] for answer in found["answers"]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    rows = retrieval.rows([found])
    assert [row["samples"] for row in rows] == [1] * 5 and rows[0]["total"]["samples"] == 5
    mean = np.mean([answer["score"] for answer in found["answers"]])
    assert rows[0]["total"]["accuracy"] == mean > 0.5
    low, high = rows[0]["total"]["interval"]
    assert 0 < low < mean <= high <= 1 and rows[0]["total"]["nats_error"] is None


def test_tasks_of_ruler_have_one_row(llm: LongLlama) -> None:
    retrieval = Retrieval(Passkey(HAYSTACK, samples=3, questions=2))
    assert retrieval.count(llm, 500) == 2
    found = [retrieval.unit(llm, CELL, i) for i in range(2)]
    assert [len(unit["answers"]) for unit in found] == [2, 2]
    [row] = retrieval.rows(found)
    assert row["depth"] is None and row["samples"] == 4 and row["nats_error"] > 0
    assert row["accuracy"] == 1.0 and row["nats"] < 0.2
