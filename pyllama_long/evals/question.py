"""A question about a text, the answer that is right, and how much of another answer is."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Exam", "Question", "is_right", "recall"]


@dataclass(frozen=True)
class Question:
    """text: the end of the user's turn. values: what the right answer says, in this order. lead: the words of the
    right answer before them.

    given: the model is given the lead and continues it (RULER's answer prefix); the score is the share of the values
    that it says. Otherwise it answers in its own words, must say its one value and no other number, and the lead only
    serves to measure how likely the value is. key: what is asked about; numbers in it are no answer. name: of the
    form of the question. depth: where the answer lies in the text, from 0 to 1, where that is one place.
    needle: the sentence with the answer, if it is one.
    """

    text: str
    values: tuple[str, ...]
    lead: str
    given: bool = True
    key: str = ""
    name: str = ""
    depth: float | None = None
    needle: str = ""

    @property
    def said(self) -> str:
        """The values as the answer says them."""
        return ", ".join(self.values)

    def score(self, answer: str) -> float:
        """How much of an answer is right, from 0 to 1; answer: without the lead if that was given."""
        if self.given:
            return recall(answer, self.values)
        return float(is_right(answer, self.key, self.values[0]))


@dataclass(frozen=True)
class Exam:
    """tokens: a text as the beginning of a chat turn; each of the questions can follow it."""

    tokens: list[int]
    questions: tuple[Question, ...]


def recall(answer: str, values: tuple[str, ...]) -> float:
    """The share of the values that occur as words of the answer, in any order (RULER's string match)."""
    return sum(_occurs(value, answer) for value in values) / len(values)


def is_right(answer: str, key: str, value: str) -> bool:
    """Whether the answer contains the value, and no other digits; those in the key do not count."""
    said = re.sub(re.escape(key), " ", answer, flags=re.IGNORECASE) if key else answer
    if value.isdigit():
        return value in said and "".join(c for c in said if c.isdigit()) == value
    return _occurs(value, said)


def _occurs(value: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(value)}(?![\w-])", text, re.IGNORECASE) is not None
