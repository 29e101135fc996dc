"""Training sequences: prose, and small tasks whose answer stands in the context.

Each sequence has a weight per token: those of an answer weigh most, what cannot be foreseen little.

    chat      numbers hidden in prose, then questions and answers in ChatML
    passkey   the pass-key prompt of landmark attention (arXiv 2305.16300), plain or as a chat
    pairs     `key: value` lines that come back in random order
    copy      a passage that comes again after a gap
    repeat    a short piece over and over
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train_demo.corpus import MARKS, Corpus, Part

Sequence = tuple[list[int], list[float]]  # tokens, and a weight for each

ANSWER = 5.0
GRASS = "The grass is green.|The sky is blue.|The sun is yellow.|Here we go.|There and back again.".split("|")
KINDS = (("pass key", 5, 0.5), ("magic number", 7, 0.2), ("code", 4, 0.15), ("secret number", 6, 0.15))
INTRO = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there.\n"
)


class Tasks:
    """Draws sequences from one side of a corpus.

    phase 0 shows mostly repetition, from which a model learns to look back; phase 1 is the real mixture.
    """

    def __init__(self, corpus: Corpus, part: Part, seed: int = 0) -> None:
        self.tok, self.part, self.phase = corpus.tokenizer, part, 1
        self.random = random.Random(seed)
        self.n_plain = self.tok.get_vocab_size() - len(MARKS)
        self.bos, self.start, self.end, _ = range(self.n_plain, self.n_plain + len(MARKS))
        self.cache: dict[str, list[int]] = {}
        self.digit_ids = [self.encode(digit)[0] for digit in "0123456789"]

    def encode(self, text: str) -> list[int]:
        """Token ids without marks; remembers short texts."""
        if text not in self.cache:
            if len(self.cache) > 200_000:
                self.cache.clear()
            self.cache[text] = self.tok.encode(text).ids
        return list(self.cache[text])

    def batch(self, n: int, length: int, share: float = 1.0) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """n sequences: tokens and weights, both [n, length]. share: longest task, as a part of it."""
        pairs = [self.sequence(length, share) for _ in range(n)]
        tokens, weights = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
        return tokens.astype(np.int64), weights.astype(np.float32)

    def sequence(self, length: int, share: float = 1.0) -> Sequence:
        """Prose, or tasks one after the other, exactly `length` tokens."""
        if self.random.random() < (0.45 if self.phase else 0.2):
            return self.prose(length)
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < length:
            left = length - len(ids)
            more = self.prose(left) if left < 90 else self.task(min(left, self._size(length, share)))
            ids += more[0]
            weights += more[1]
        return ids[:length], weights[:length]

    def task(self, n: int) -> Sequence:
        """One task of about n tokens, drawn from the phase's mixture."""
        mixtures: tuple[tuple[tuple[Any, float], ...], ...] = (
            ((self.repeat, 0.4), (self.pairs, 0.2), (self.chat, 0.3), (self.copy, 0.1)),
            (
                (self.chat, 0.6),
                (self.passkey, 0.12),
                (self.pairs, 0.12),
                (self.copy, 0.11),
                (self.repeat, 0.05),
            ),
        )
        make, chances = zip(*mixtures[self.phase], strict=True)
        out: Sequence = self.random.choices(make, chances)[0](n)
        return out

    def prose(self, n: int) -> Sequence:
        """The corpus from a random place on."""
        at = self.random.randrange(max(1, len(self.part.tokens) - n))
        ids = [self.bos, *self.part.tokens[at : at + n - 1].tolist()]
        return ids, [1.0] * len(ids)

    def chat(self, n: int) -> Sequence:
        """k numbers of the needle form in prose of n tokens in all, then questions about some of them."""
        draw = self.random
        k = min(draw.choice((1, 1, 2, 3, 4, 6, 8)), max(1, (n - 60) // 25))
        asked = min(k, draw.choice((1, 1, 2, 3, 4)))
        kinds = [self._kind()] * k if draw.random() < 0.7 else [self._kind() for _ in range(k)]
        words = draw.sample(self.part.words, k)
        values = [self.digits(kind[1] if draw.random() < 0.85 else draw.randint(3, 7)) for kind in kinds]
        said = [self.needle(*each) for each in zip((kind[0] for kind in kinds), words, values, strict=True)]
        order = draw.sample(range(k), asked)
        turns = [self.question(kinds[j][0], words[j]) for j in order]
        room = n - sum(map(len, said + turns)) - 14 * asked - 8
        out = Writer([self.bos, self.start, *self.encode("user\n")])
        if draw.random() < 0.5:
            out.add(self.encode("Read the text and remember the numbers.\n"))
        out.add(self.hide(said, self.filler(max(0, room))))
        for i, (j, turn) in enumerate(zip(order, turns, strict=True)):
            if i:
                out.add([self.start, *self.encode("user\n")])
            out.add(turn)
            self._answer(out, values[j])
        return out.sequence()

    def passkey(self, n: int) -> Sequence:
        """One number in a text that says nothing else, asked for in the words of the usual test."""
        value = self.digits(5)
        said = self.encode(f" The pass key is {value}. Remember it. {value} is the pass key.")
        intro, ask = self.encode(INTRO), self.encode("What is the pass key? The pass key is")
        grass = self.random.random() < 0.5
        body = self.hide([said], self.filler(max(0, n - len(intro) - len(said) - len(ask) - 14), grass))
        if self.random.random() < 0.5:
            out = Writer([self.bos, *intro, *body, *ask])
        else:
            out = Writer([self.bos, self.start, *self.encode("user\n"), *intro, *body])
            out.add([*self.encode("What is the pass key?"), self.end, *self.encode("\n"), self.start])
            out.add(self.encode("assistant\nThe pass key is"))
        self._answer(out, value)
        return out.sequence()

    def pairs(self, n: int) -> Sequence:
        """Lines `key: value`, first each once, then again and again in random order."""
        draw = self.random
        words = draw.random() < 0.5
        table: dict[str, str] = {}
        for word in draw.sample(self.part.words, max(2, min(draw.randint(3, 30), (n - 10) // 14))):
            value = draw.choice(self.part.words) if draw.random() < 0.4 else self.digits(draw.randint(2, 5))
            table[word if words else self.digits(4)] = value
        out = Writer([self.bos])
        for key, value in table.items():
            out.add([*self.encode(f"{key}:"), *self.encode(f" {value}\n")], 0.3)
        keys = list(table)
        while len(out.ids) < n - 14:
            key = draw.choice(keys)
            out.add(self.encode(f"{key}:"), 0.3)
            first, *rest = self.encode(f" {table[key]}")
            out.add([first], 0.3)
            out.add(rest, 3.0)
            out.add(self.encode("\n"), 0.3)
        return out.sequence()

    def copy(self, n: int) -> Sequence:
        """A passage, other prose, and the passage again."""
        draw, tokens = self.random, self.part.tokens
        size = draw.randint(8, max(9, min(120, n // 3)))
        at = draw.randrange(max(1, len(tokens) - size))
        chance = draw.random() < 0.5
        piece = self.noise(size) if chance else tokens[at : at + size].tolist()
        gap = draw.randint(0, max(0, n - 2 * size - 3))
        at = draw.randrange(max(1, len(tokens) - gap))
        out = Writer([self.bos, *piece], 0.3)
        out.add(tokens[at : at + gap].tolist())
        out.add(piece[:2], 0.5)
        out.add(piece[2:], 2.0)
        return out.sequence()

    def repeat(self, n: int) -> Sequence:
        """Random tokens, sometimes mostly digits, over and over."""
        draw = self.random
        size = draw.randint(6, 40)
        piece = self.noise(size)
        if draw.random() < 0.4:
            piece = [draw.choice(self.digit_ids) if draw.random() < 0.6 else token for token in piece]
        out = Writer([self.bos, *piece], 0.1)
        out.add((piece * (n // size + 1))[: max(0, n - 1 - size)])
        return out.sequence()

    # ---- pieces --------------------------------------------------------------------------------------------

    def digits(self, n: int) -> str:
        return "".join(self.random.choices("0123456789", k=n))

    def noise(self, n: int) -> list[int]:
        return [self.random.randrange(self.n_plain) for _ in range(n)]

    def needle(self, kind: str, word: str, value: str) -> list[int]:
        return self.encode(f" The {kind} for {word} is {value}.")

    def question(self, kind: str, word: str) -> list[int]:
        """The end of a user's turn and the start of the answer, up to the number."""
        turn = [*self.encode(f"What is the {kind} for {word}?"), self.end, *self.encode("\n"), self.start]
        return turn + self.encode("assistant\n") + self.encode(f"The {kind} for {word} is")

    def filler(self, n: int, grass: bool | None = None) -> list[list[int]]:
        """Consecutive sentences of the corpus, or the pass-key test's, of at most n tokens together."""
        out: list[list[int]] = []
        used = missed = 0
        if self.random.random() < 0.15 if grass is None else grass:
            sentences = [self.encode(" " + sentence) for sentence in GRASS]
            while used + len(sentences[len(out) % len(sentences)]) <= n:
                out.append(sentences[len(out) % len(sentences)])
                used += len(out[-1])
            return out
        at = self.random.randrange(len(self.part.sentences))
        while missed < 4 and n - used >= 12:
            sentence = self.part.sentences[at % len(self.part.sentences)]
            at += 1
            if used + len(sentence) <= n:
                out.append(sentence)
                used += len(sentence)
            else:
                missed += 1
        return out

    def hide(self, needles: list[list[int]], filler: list[list[int]]) -> list[int]:
        """The needles in order at random places between the sentences, and a line end."""
        where = sorted(self.random.randrange(len(filler) + 1) for _ in needles)
        parts = list(filler)
        for place, said in reversed(list(zip(where, needles, strict=True))):
            parts.insert(place, said)
        # A line end may share a token with the full stop before it.
        parts[-1] = self.tok.encode(self.tok.decode(parts[-1]) + "\n").ids
        return [token for part in parts for token in part]

    def _kind(self) -> tuple[str, int, float]:
        return self.random.choices(KINDS, [kind[2] for kind in KINDS])[0]

    def _answer(self, out: Writer, value: str) -> None:
        first, *rest = self.encode(f" {value}")  # the first token is the space
        out.add([first])
        out.add(rest, ANSWER)
        out.add([*self.encode("."), self.end, *self.encode("\n")])

    def _size(self, length: int, share: float) -> int:
        most = max(96, int(length * share))
        if self.random.random() < 0.45 or most < length:
            return self.random.randint(96, most)
        return length


class Writer:
    """Tokens and their weights, side by side."""

    def __init__(self, ids: list[int], weight: float = 1.0) -> None:
        self.ids, self.weights = ids, [weight] * len(ids)

    def add(self, ids: list[int], weight: float = 1.0) -> None:
        self.ids += ids
        self.weights += [weight] * len(ids)

    def sequence(self) -> Sequence:
        return self.ids, self.weights
