"""Reads a text once and asks about it: which answers are right, and how likely the right ones were."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pyllama_long.arrays import as_ids
from pyllama_long.evals import scores
from pyllama_long.evals.measure import Cell, Found, Row
from pyllama_long.evals.prompt import Prompt
from pyllama_long.evals.question import Exam, Question
from pyllama_long.evals.statistics import mean_of_groups, share_of_groups

if TYPE_CHECKING:
    from pyllama_long.llama import LongLlama

__all__ = ["Exams", "Retrieval", "ask", "likelihood", "read"]


class Exams(Protocol):
    """Makes texts with questions; text i of a length is always the same."""

    by_depth: ClassVar[bool]  # whether the table has a row per depth

    def count(self, prompt: Prompt, length: int) -> int:
        """How many texts. Raises EvalError when not even one of that length is possible."""

    def exam(self, prompt: Prompt, length: int, i: int) -> Exam:
        """The i-th, which fills `length` tokens together with its longest question and answer."""


class Retrieval:
    """The task of answering questions about texts; a unit is a text."""

    def __init__(self, exams: Exams) -> None:
        self.exams = exams
        self._prompt: Prompt | None = None

    def count(self, llm: LongLlama, length: int) -> int:
        return self.exams.count(self._of(llm), length)

    def unit(self, llm: LongLlama, cell: Cell, i: int) -> Found:
        """answers: for each question its text, values, the answer, its score, and nats per token of the values.
        reading: the seconds that the text took alone, and its keys."""
        prompt = self._of(llm)
        exam = self.exams.exam(prompt, cell.length, i)
        before, began = _keys(llm), time.perf_counter()
        read(llm, exam)
        reading = {"seconds": round(time.perf_counter() - began, 3)}
        reading |= {key: n - before[key] for key, n in _keys(llm).items()}
        return {
            "answers": [_answer(prompt, exam, question) for question in exam.questions],
            "reading": reading,
        }

    def figures(self, unit: Found) -> dict[str, list[float]]:
        return {
            "accuracy": [answer["score"] for answer in unit["answers"]],
            "nats": [answer["nats"] for answer in unit["answers"]],
        }

    def rows(self, found: Sequence[Found]) -> list[Row]:
        """A row per depth, or one for all; each has the figures of all depths together as `total`."""
        answers = [answer for unit in found for answer in unit["answers"]]
        depths = sorted({answer["depth"] for answer in answers}) if self.exams.by_depth else [None]
        total = _figures([unit["answers"] for unit in found])
        reading = _reading([unit["reading"] for unit in found if "reading" in unit])
        return [
            {"depth": depth, **_row(depth, found), "total": total, "reading": reading} for depth in depths
        ]

    def _of(self, llm: LongLlama) -> Prompt:
        if self._prompt is None or self._prompt.llm is not llm:
            self._prompt = Prompt(llm)
        return self._prompt


def _keys(llm: LongLlama) -> dict[str, float]:
    stats: dict[str, float] = {} if llm.upstream else llm.attention_stats()
    return {key: stats.get(key, 0) for key in ("keys_read", "keys_visible")}


def read(llm: LongLlama, exam: Exam) -> None:
    """Evaluates the text as a new one."""
    llm.reset()
    llm.eval(exam.tokens)


def likelihood(prompt: Prompt, exam: Exam, question: Question) -> float:
    """The negative log-likelihood of the right answer's values after its first words, in nats per token. They are
    evaluated one by one in the plan's tail, as an answer is written, and not kept."""
    whole, first = prompt.answered(question)
    ids = as_ids(whole)
    llm, total = prompt.llm, 0.0
    llm.n_tokens = len(exam.tokens)
    llm.mark_tail()
    try:
        llm.sequence.extend(ids[:first], progress=llm.progress)
        for i in range(first, len(ids)):
            total -= float(scores.of_tokens(llm.sequence.row()[None], ids[i : i + 1])[0])
            if i + 1 < len(ids):
                llm.sequence.extend(ids[i : i + 1])
    finally:
        llm.set_tail(None)
        llm.n_tokens = len(exam.tokens)
    return total / (len(ids) - first)


def ask(prompt: Prompt, exam: Exam, question: Question) -> str:
    """The likeliest answer; the cached keys of the text are reused."""
    tail = prompt.asked(question)
    answer: Any = prompt.llm.create_completion(
        [*exam.tokens, *tail],
        tail=prompt.text(tail),
        max_tokens=prompt.room(question),
        temperature=0.0,
        stop=prompt.stop,
    )
    return str(answer["choices"][0]["text"])


def _answer(prompt: Prompt, exam: Exam, question: Question) -> dict[str, Any]:
    nats = likelihood(prompt, exam, question)
    answer = ask(prompt, exam, question)
    score = question.score(answer)
    return {
        "depth": None if question.depth is None else round(question.depth, 4),
        "phrasing": question.name,
        "needle": question.needle,
        "question": question.text,
        "value": question.said,
        "answer": answer,
        "right": score == 1.0,
        "score": score,
        "nats": nats,
    }


def _row(depth: float | None, found: Sequence[Found]) -> Row:
    groups = [[a for a in unit["answers"] if depth is None or a["depth"] == depth] for unit in found]
    groups = [group for group in groups if group]
    names: dict[str, list[float]] = {}
    for group in groups:
        for answer in group:
            count = names.setdefault(answer["phrasing"], [0, 0])
            count[0] += answer["score"]
            count[1] += 1
    return {**_figures(groups), "phrasings": dict(sorted(names.items()))}


def _reading(parts: Sequence[dict[str, float]]) -> Row | None:
    """Of all texts, without their questions."""
    if not parts:
        return None  # written by an older version
    read, visible, seconds = (
        sum(part[key] for part in parts) for key in ("keys_read", "keys_visible", "seconds")
    )
    return {"share_of_keys": read / visible if visible else None, "seconds": round(seconds, 2)}


def _figures(groups: Sequence[Sequence[dict[str, Any]]]) -> Row:
    """groups: the answers about each document. interval: of accuracy, 95%; nats_error: half of nats' interval. Both
    are of documents, since answers about one are no independent samples."""
    scored = [[answer["score"] for answer in group] for group in groups]
    n = sum(map(len, scored))
    nats, error = mean_of_groups([[answer["nats"] for answer in group] for group in groups])
    return {
        "samples": n,
        "accuracy": sum(map(sum, scored)) / n,
        "interval": [round(bound, 4) for bound in share_of_groups(scored)],
        "nats": nats,
        "nats_error": error,
    }
