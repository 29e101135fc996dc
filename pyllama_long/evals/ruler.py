"""RULER's needles in a haystack (arXiv 2404.06654), and the passkey (arXiv 2305.16300), from a seed.

The model gets RULER's words in its own chat template, and the beginning of its answer. With more than one question
per document, the document holds what all of them ask for, so a single needle has neighbours of its kind.
"""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pyllama_long.evals import EvalError, fitting
from pyllama_long.evals.haystack import Haystack
from pyllama_long.evals.prompt import Prompt
from pyllama_long.evals.question import Exam, Question

__all__ = ["NOISE", "Magic", "Needles", "Passkey", "Seeded", "joined", "uuid_of"]

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_DIGITS = 7


@dataclass(frozen=True)
class Seeded:
    """samples: questions in all, or a few more, to have whole documents. questions: about each document, fewer where
    a document has no room for so many. The i-th document of a length is the same however many there are."""

    haystack: Haystack
    samples: int = 20
    questions: int = 1
    seed: int = 0
    by_depth: ClassVar[bool] = False

    def count(self, prompt: Prompt, length: int) -> int:
        return -(-self.samples // self._fitting(prompt, length).questions)

    def exam(self, prompt: Prompt, length: int, i: int) -> Exam:
        mine = self if self.questions == 1 else self._fitting(prompt, length)
        return mine.made(prompt, length, i)

    def made(self, prompt: Prompt, length: int, i: int) -> Exam:
        """Document i with all its questions. Raises EvalError."""
        raise NotImplementedError

    def chance(self, i: int) -> random.Random:
        return random.Random(f"{type(self).__name__}/{self.seed}/{i}")

    def _fitting(self, prompt: Prompt, length: int) -> Seeded:
        """The same with as many questions as documents surely have room for. Raises EvalError."""
        fewer = self
        while fewer.questions > 1:
            with suppress(EvalError):
                fewer.made(prompt, length - length // 8, 0)  # others may need a little more
                return fewer
            fewer = replace(fewer, questions=fewer.questions // 2)
        fewer.made(prompt, length, 0)
        return fewer


@dataclass(frozen=True)
class Magic:
    """What is hidden. hay: `noise` (the same five sentences), `text`, or `needles` of the same kind. keys: per
    question, of which `queries` are asked for together. values: of each key."""

    hay: Literal["noise", "text", "needles"] = "text"
    kind: Literal["number", "uuid"] = "number"
    uuid_keys: bool = False
    keys: int = 1
    values: int = 1
    queries: int = 1


@dataclass(frozen=True)
class Needles(Seeded):
    """niah_*: magic numbers or uuids of keys."""

    magic: Magic = Magic()

    def made(self, prompt: Prompt, length: int, i: int) -> Exam:
        chance, magic = self.chance(i), self.magic
        keys, values = self._keys(chance), _values(magic.kind, chance)
        n_keys = max(magic.keys, magic.queries * self.questions)
        told = [(next(keys), tuple(next(values) for _ in range(magic.values))) for _ in range(n_keys)]
        first = i * n_keys * magic.values  # depths go on from document to document
        hidden: list[fitting.Hidden] = []
        for key, said in told:
            for value in said:
                hidden.append((fitting.depth(first + len(hidden)), self._needle(key, value)))
        depths = [at for at, _ in hidden][:: magic.values]
        several = magic.values * magic.queries > 1
        questions = []
        for j in range(self.questions):
            mine = told[j * magic.queries : (j + 1) * magic.queries]
            where = depths[j] if not several else None
            questions.append(self._question(mine, several, where))
        plural = several or n_keys > 1
        what = f"magic {magic.kind}{'s' * plural}"
        opening = (
            f"{'Some' if plural else 'A'} special {what} {'are' if plural else 'is'} hidden within the following "
            f"text. Make sure to memorize it. I will quiz you about the {magic.kind}{'s' * plural} afterwards."
        )
        hay = self._hay(chance, (self._needle(key, value) for key, value in zip(keys, values)))  # noqa: B905
        return fitting.hidden_exam(prompt, length, opening, hidden, hay, questions)

    def _keys(self, chance: random.Random) -> Iterator[str]:
        if self.magic.uuid_keys:
            while True:
                yield uuid_of(chance)
        seen: set[str] = set()
        while True:
            key = "-".join(chance.sample(self.haystack.words, 2))
            if key not in seen:
                seen.add(key)
                yield key

    def _needle(self, key: str, value: str) -> str:
        end = "\n" if self.magic.hay == "needles" else ""
        return f"{'' if end else ' '}One of the special magic {self.magic.kind}s for {key} is: {value}.{end}"

    def _hay(self, chance: random.Random, needles: Iterator[str]) -> Iterator[str]:
        if self.magic.hay == "needles":
            return needles
        if self.magic.hay == "noise":
            return itertools.repeat(f" {NOISE}")
        return (f" {sentence}" for sentence in self.haystack.stream(chance))

    def _question(
        self, told: Sequence[tuple[str, tuple[str, ...]]], several: bool, where: float | None
    ) -> Question:
        query, kind = joined([key for key, _ in told]), self.magic.kind
        values = tuple(value for _, said in told for value in said)
        if several:
            what = f"special magic {kind}s for {query} mentioned in the provided text"
            ask, lead = f"What are all the {what}?", f"The {what} are "
        else:
            what = f"special magic {kind} for {query} mentioned in the provided text"
            ask, lead = f"What is the {what}?", f"The {what} is "
        needle = "" if several else self._needle(query, values[0]).strip()
        return Question(ask, values, lead, key=query, depth=where, needle=needle)


@dataclass(frozen=True)
class Passkey(Seeded):
    """One number among five sentences that repeat."""

    def made(self, prompt: Prompt, length: int, i: int) -> Exam:
        chance = self.chance(i)
        values = chance.sample(range(10_000, 100_000), self.questions)
        opening = (
            "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
            "I will quiz you about the important information there."
        )
        names = ["pass key"] if self.questions == 1 else [f"pass key {j + 1}" for j in range(self.questions)]
        hidden = []
        questions = []
        for j, (name, value) in enumerate(zip(names, values, strict=True)):
            at = fitting.depth(i * self.questions + j)
            needle = f"The {name} is {value}. Remember it. {value} is the {name}."
            hidden.append((at, f" {needle}"))
            lead = f"The {name} is "
            questions.append(Question(f"What is the {name}?", (str(value),), lead, depth=at, needle=needle))
        return fitting.hidden_exam(prompt, length, opening, hidden, itertools.repeat(f" {NOISE}"), questions)


def joined(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b, and c`."""
    if len(names) < 3:
        return " and ".join(names)
    return f"{', '.join(names[:-1])}, and {names[-1]}"


def uuid_of(chance: random.Random) -> str:
    return str(uuid.UUID(int=chance.getrandbits(128), version=4))


def _values(kind: str, chance: random.Random) -> Iterator[str]:
    """Different ones."""
    seen: set[str] = set()
    while True:
        value = uuid_of(chance) if kind == "uuid" else str(chance.randrange(10 ** (_DIGITS - 1), 10**_DIGITS))
        if value not in seen:
            seen.add(value)
            yield value
