"""Documents with needles in them, as tokens of one model: exactly as many as requested, at the requested depths."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, repeat
from typing import ClassVar
from weakref import WeakKeyDictionary

from pyllama_long.evals import EvalError
from pyllama_long.evals.haystack import Haystack
from pyllama_long.evals.phrasings import OPENING, PHRASINGS, Phrasing
from pyllama_long.evals.prompt import ANSWER_TOKENS, Prompt
from pyllama_long.evals.question import Exam, Question

__all__ = ["Document", "Needle", "Needles", "Outline"]

_DIGITS = 5
_OPENINGS = (OPENING, "Remember these values.\n")  # needles, pairs
_LINE_END = 2  # tokens that the end of the last line may take
_NEARLY_FULL = 8  # tokens of room below which no more sentences are tried
_MAX_MISSES = 40  # sentences in a row that are too long for the room


@dataclass(frozen=True)
class Needle:
    """depth: where it lies among the text, from 0 (the beginning) to 1 (right before the question)."""

    phrasing: Phrasing
    key: str
    value: str
    depth: float
    variant: int = 0

    @property
    def text(self) -> str:
        return self.phrasing.needle(self.key, self.value)

    @property
    def question(self) -> str:
        return self.phrasing.question(self.key, self.variant)

    def as_question(self) -> Question:
        """Answered in the model's own words."""
        lead = self.phrasing.reply(self.key, "\0").partition("\0")[0]
        form = self.phrasing.name
        return Question(self.question, (self.value,), lead, False, self.key, form, self.depth, self.text)


@dataclass(frozen=True)
class Outline:
    """asked: the needles of the questions, by depth; seed: determines everything around them."""

    asked: tuple[Needle, ...]
    seed: str


@dataclass(frozen=True)
class Document:
    """tokens: everything before a question, including the beginning of the chat turn; asked: as in the outline."""

    tokens: list[int]
    asked: tuple[Needle, ...]


@dataclass(frozen=True)
class Needles:
    """The needle task, and the pairs task when `pairs` is given.

    depths: how many, evenly from 0 to 1; a single one is the middle. samples: questions per depth. pairs: key-value
    lines per document, as many as fit in half of it; 0: a document of nothing else; None: needles in prose. The
    questions are the same for documents of all lengths.
    """

    haystack: Haystack
    phrasings: tuple[Phrasing, ...] = PHRASINGS
    depths: int = 5
    samples: int = 10
    pairs: int | None = None
    seed: int = 0
    by_depth: ClassVar[bool] = True
    _known: WeakKeyDictionary[Prompt, dict[int, list[Outline]]] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False, compare=False
    )

    def count(self, prompt: Prompt, length: int) -> int:
        return len(self.outlines(prompt, length))

    def exam(self, prompt: Prompt, length: int, i: int) -> Exam:
        document = self.build(prompt, length, self.outlines(prompt, length)[i])
        return Exam(document.tokens, tuple(needle.as_question() for needle in document.asked))

    @property
    def all_depths(self) -> tuple[float, ...]:
        return tuple(k / (self.depths - 1) for k in range(self.depths)) if self.depths > 1 else (0.5,)

    def outlines(self, prompt: Prompt, length: int) -> list[Outline]:
        """The documents of `length` tokens, question and answer included: `samples` of them with a needle per depth,
        or more with fewer where those do not fit. Raises EvalError when not even one does."""
        known = self._known.setdefault(prompt, {})
        if length not in known:
            known[length] = self._outlined(prompt, length)
        return known[length]

    def _outlined(self, prompt: Prompt, length: int) -> list[Outline]:
        deck = _deck(self.phrasings, random.Random(self.seed))
        found = []
        for sample in range(self.samples):
            seed = f"{self.seed}/{sample}"
            chance = random.Random(seed)
            keys, numbers = self.haystack.keys(chance), _numbers(chance)
            forms = deck if self.pairs is None else repeat(next(deck))
            asked = []
            for depth in self.all_depths:
                form, key = next(forms), next(keys)
                value = next(keys) if form.values == "word" else next(numbers)
                asked.append(Needle(form, key, value, depth, chance.randrange(len(form.asks))))
            groups = self._groups(prompt, length, asked)
            found += [Outline(tuple(group), f"{seed}/{i}") for i, group in enumerate(groups)]
        return found

    def build(self, prompt: Prompt, length: int, outline: Outline) -> Document:
        """Puts needles before the first sentence that begins at or after their depth, counted in tokens."""
        chance = random.Random(outline.seed)
        needles = [*outline.asked, *self._others(prompt, length, outline.asked, chance)]
        needles.sort(key=lambda needle: needle.depth)
        room = self._room(prompt, length, outline.asked) - self._cost(prompt, needles)
        hay = [] if self.pairs == 0 else self._hay(prompt, room, chance)
        bounds = [0, *accumulate(len(prompt.encode(piece)) for piece in hay)]
        pieces: list[str] = []
        before = 0
        for needle in needles:
            place = bisect_left(bounds, needle.depth * bounds[-1])
            pieces += [*hay[before:place], self._piece(needle.text)]
            before = place
        pieces += hay[before:]
        pieces[-1] = pieces[-1].rstrip("\n") + "\n"
        tokens = [*prompt.head, *prompt.encode(self._opening)]
        for piece in pieces:
            tokens += prompt.encode(piece)
        return Document(tokens, outline.asked)

    @property
    def _opening(self) -> str:
        return _OPENINGS[self.pairs is not None]

    def _piece(self, text: str) -> str:
        """Needles are part of the prose; pairs, and what is between them, are lines."""
        return f" {text}" if self.pairs is None else f"{text}\n"

    def _cost(self, prompt: Prompt, needles: Iterable[Needle]) -> int:
        return sum(len(prompt.encode(self._piece(needle.text))) for needle in needles)

    def _room(self, prompt: Prompt, length: int, asked: Iterable[Needle]) -> int:
        """How many tokens needles and text may have, so that the longest question and its answer fit after them."""
        tail = max(len(prompt.tail(needle.question)) for needle in asked)
        start = len(prompt.head) + len(prompt.encode(self._opening))
        return length - start - tail - ANSWER_TOKENS - _LINE_END

    def _most(self, room: int) -> int:
        """How many tokens the needles may take."""
        return room if self.pairs == 0 else room // 2

    def _groups(self, prompt: Prompt, length: int, asked: Sequence[Needle]) -> list[Sequence[Needle]]:
        """Distributes the needles over as few documents as can hold them all."""
        for n in range(1, len(asked) + 1):
            groups = [asked[i::n] for i in range(n)]
            if all(
                self._cost(prompt, group) <= self._most(self._room(prompt, length, group)) for group in groups
            ):
                return groups
        raise EvalError(f"{length} tokens are too few for a needle, its question and the answer")

    def _others(
        self, prompt: Prompt, length: int, asked: Sequence[Needle], chance: random.Random
    ) -> list[Needle]:
        """The lines of a document of pairs that no question is about, evenly spread."""
        if self.pairs is None:
            return []
        form, taken = asked[0].phrasing, {text for needle in asked for text in (needle.key, needle.value)}
        most = self._most(self._room(prompt, length, asked)) - self._cost(prompt, asked)
        keys = (key for key in self.haystack.keys(chance) if key not in taken)
        numbers = (number for number in _numbers(chance) if number not in taken)
        said: list[Needle] = []
        while self.pairs == 0 or len(asked) + len(said) < self.pairs:
            needle = Needle(form, next(keys), next(numbers), 0.0)
            most -= self._cost(prompt, [needle])
            if most < 0:
                break
            said.append(needle)
        return [replace(needle, depth=(i + 0.5) / len(said)) for i, needle in enumerate(said)]

    def _hay(self, prompt: Prompt, room: int, chance: random.Random) -> list[str]:
        """Sentences in the order of the text that fill the room, except for a few tokens."""
        hay: list[str] = []
        misses = 0
        for sentence in self.haystack.stream(chance):
            piece = self._piece(sentence)
            n = len(prompt.encode(piece))
            if n <= room:
                hay.append(piece)
                room, misses = room - n, 0
            else:
                misses += 1
            if room < _NEARLY_FULL or misses == _MAX_MISSES:
                break
        return hay


def _deck(phrasings: Sequence[Phrasing], chance: random.Random) -> Iterator[Phrasing]:
    """All phrasings in random order, repeated endlessly."""
    while True:
        yield from chance.sample(phrasings, len(phrasings))


def _numbers(chance: random.Random) -> Iterator[str]:
    """Different numbers of 5 digits; more digits once half of those are used."""
    seen: set[int] = set()
    while True:
        number = chance.randrange(10 ** max(_DIGITS, len(str(2 * len(seen)))))
        if number not in seen:
            seen.add(number)
            yield f"{number:0{_DIGITS}}"
