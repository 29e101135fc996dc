"""Puts a text together that fills a given number of tokens exactly."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from pyllama_long.evals import EvalError
from pyllama_long.evals.prompt import Prompt
from pyllama_long.evals.question import Exam, Question

__all__ = ["Hidden", "depth", "exam", "hidden_exam", "room"]

Hidden = tuple[float, str]  # a sentence, and the depth at which it stands, from 0 to 1
_GOLDEN = 0.6180339887498949


def depth(i: int) -> float:
    """Depths that cover 0 to 1 evenly for any number of questions: multiples of the golden ratio."""
    return (0.5 + i * _GOLDEN) % 1.0


def room(prompt: Prompt, length: int, opening: str, questions: Iterable[Question]) -> int:
    """How many tokens are left for what comes between the opening and the question. Raises EvalError."""
    asked = max(prompt.cost(question) for question in questions)
    left = length - len(prompt.head) - len(prompt.encode(f"{opening}\n")) - len(prompt.encode("\n")) - asked
    if left <= 0:
        raise EvalError(f"{length:,} tokens are too few for the question, its answer and a text")
    return left


def exam(
    prompt: Prompt, length: int, opening: str, body: Sequence[int], questions: Sequence[Question]
) -> Exam:
    """body: tokens between the opening and the questions, at most `room` of them. Empty lines fill the rest."""
    left = room(prompt, length, opening, questions) - len(body)
    line_end = prompt.encode("\n")
    # The last token of a line's end is an empty line by itself, also where a space of its own comes before texts.
    tokens = [*prompt.head, *prompt.encode(f"{opening}\n"), *body, *line_end, *line_end[-1:] * left]
    return Exam(tokens, tuple(questions))


def hidden_exam(
    prompt: Prompt,
    length: int,
    opening: str,
    hidden: Sequence[Hidden],
    hay: Iterator[str],
    questions: Sequence[Question],
) -> Exam:
    """Sentences hidden among those of the hay, as far as that is needed; its last sentence is cut, and nothing
    stands after it. Pieces of text
    begin with their own space. Raises EvalError when there is no room for hay."""
    hidden = sorted(hidden, key=lambda one: one[0])
    needles = [prompt.encode(text) for _, text in hidden]
    left = room(prompt, length, opening, questions) - sum(map(len, needles))
    if left <= 0:
        raise EvalError(f"{length:,} tokens are too few for what is hidden, the question and its answer")
    pieces: list[list[int]] = []
    while left:
        pieces.append(prompt.encode(next(hay))[:left])
        left -= len(pieces[-1])
    ends = [0, *accumulate(map(len, pieces))]
    body: list[int] = []
    before = 0
    for (at, _), needle in zip(hidden, needles, strict=True):
        place = min(bisect_left(ends, at * ends[-1]), len(pieces) - 1)
        body += [token for piece in pieces[before:place] for token in piece]
        body += needle
        before = place
    body += [token for piece in pieces[before:] for token in piece]
    return exam(prompt, length, opening, body, questions)
