"""RULER's aggregation tasks (arXiv 2404.06654): the most common words of a list, and the most frequent coded words."""

from __future__ import annotations

import itertools
import math
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyllama_long.evals import EvalError, fitting
from pyllama_long.evals.prompt import Prompt
from pyllama_long.evals.question import Exam, Question
from pyllama_long.evals.ruler import Seeded

__all__ = ["CommonWords", "FrequentWords"]

_COMMON = 10  # words that are asked for
_OFTEN, _SELDOM = 30, 3  # how often they and others occur in a list with room for that
_LEAST = 3  # how often they occur at least
_EXAMPLE_FROM = 2048  # tokens of a prompt that has room for an example
_FREQUENT = 3
_DOTS = "...."
_LETTERS = 6
_ASK_COMMON = f"Question: What are the {_COMMON} most common words in the above list?"
_LEAD_COMMON = f"Answer: The top {_COMMON} words that appear most often in the list are: "


@dataclass(frozen=True)
class CommonWords(Seeded):
    """cwe: a numbered list in which ten words stand 30 times, and each other three times; in a short list, these take
    half of it, and others occur a tenth as often, at least once. From 2,048 tokens on, a small example comes first."""

    def made(self, prompt: Prompt, length: int, i: int) -> Exam:
        chance = self.chance(i)
        keys = self.haystack.keys(chance)
        pool = list(itertools.islice(keys, 3 * _COMMON + length // 15))  # about as many as the list has
        chosen = chance.sample(pool, 3 * _COMMON)
        common, shown = chosen[:_COMMON], chosen[_COMMON:]
        others = [word for word in pool if word not in set(chosen)]
        task = (
            "Below is a numbered list of words. In these words, some appear more often than others. Memorize the "
            "ones that appear most often."
        )
        opening = task
        if length >= _EXAMPLE_FROM:
            listed = shown[:_COMMON] * 3 + shown[_COMMON:]
            chance.shuffle(listed)
            answer = _LEAD_COMMON + ", ".join(shown[:_COMMON])
            opening = f"{task}\n{''.join(_numbered(listed)).strip()}\n{_ASK_COMMON} {answer}\n\n{task}"
        question = Question(_ASK_COMMON, tuple(common), _LEAD_COMMON)
        seed = chance.random()

        def entries(n: int) -> list[str]:
            often = min(_OFTEN, n // (2 * _COMMON))
            seldom = max(1, often * _SELDOM // _OFTEN)
            rest = n - often * _COMMON
            while len(others) * seldom < rest:
                others.append(next(keys))
            found = common * often + (others[: -(-rest // seldom)] * seldom)[:rest]
            random.Random(seed).shuffle(found)
            return found

        room = fitting.room(prompt, length, opening, [question])
        n = _most(lambda n: _size(prompt, _numbered(entries(n))), room)
        if n < 2 * _COMMON * _LEAST:
            raise EvalError(f"{length:,} tokens are too few for a list with {_COMMON} common words")
        return fitting.exam(prompt, length, opening, _tokens(prompt, _numbered(entries(n))), [question])


@dataclass(frozen=True)
class FrequentWords(Seeded):
    """fwe: coded words of which the k-th most frequent occurs in proportion to k ** -2 (a zeta distribution). The
    first is dots, to be ignored; the next three are asked for."""

    def made(self, prompt: Prompt, length: int, i: int) -> Exam:
        words = [_DOTS, *_coded(self.chance(i), 2000)]
        opening = (
            "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
            "appeared coded words."
        )
        ask = (
            f"Question: Do not provide any explanation. Please ignore the dots '{_DOTS}'. What are the three most "
            "frequently appeared words in the above coded text?"
        )
        lead = "Answer: According to the coded text above, the three most frequently appeared words are: "
        question = Question(ask, tuple(words[1 : 1 + _FREQUENT]), lead)
        room = fitting.room(prompt, length, opening, [question])

        def pieces(n: int) -> list[str]:
            found = []
            for k, word in enumerate(words, 1):
                found += [f" {word}"] * int(n / (k * k * math.pi**2 / 6))
            self.chance(i).shuffle(found)
            return found

        n = _most(lambda n: _size(prompt, pieces(n)), room)
        found = pieces(n)
        counts = [found.count(f" {word}") for word in words[: 2 + _FREQUENT]]
        if not counts[-2] > counts[-1] > 0:
            raise EvalError(f"{length:,} tokens are too few for words of different frequencies")
        body = _tokens(prompt, found)
        while len(body) < room:  # dots do not count
            body += prompt.encode(f" {_DOTS}")[: room - len(body)]
        return fitting.exam(prompt, length, opening, body, [question])


def _numbered(words: Sequence[str]) -> list[str]:
    return [piece for k, word in enumerate(words, 1) for piece in (f" {k}.", f" {word}")]


def _tokens(prompt: Prompt, pieces: Sequence[str]) -> list[int]:
    return [token for piece in pieces for token in prompt.encode(piece)]


def _size(prompt: Prompt, pieces: Sequence[str]) -> int:
    return sum(len(prompt.encode(piece)) for piece in pieces)


def _most(size: Callable[[int], int], room: int) -> int:
    """The largest n with size(n) <= room, or one a little smaller; sizes ascend but for small steps back."""
    low, high = 0, 1
    while size(high) <= room:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= room else (low, middle)
    return low


def _coded(chance: random.Random, n: int) -> list[str]:
    """Different words of six random letters."""
    found: dict[str, None] = {}
    while len(found) < n:
        found["".join(chance.choices(string.ascii_lowercase, k=_LETTERS))] = None
    return list(found)
