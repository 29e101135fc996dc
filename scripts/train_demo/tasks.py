"""Training sequences: prose, and small tasks whose answer is in the context.

Each token has a weight in the loss: those of an answer have the most, unpredictable ones little. Tokens that an
answer needs are marked as kept; all others are filler, of which a longer text has more (model.Far).

    needles.py   chats: facts hidden in prose, key-value lines, two hops, counting, small talk
    passkey      the pass-key prompt of landmark attention (arXiv 2305.16300), plain or as a chat
    pairs        `key: value` lines that come back in random order
    copy         a passage that comes again after a gap
    repeat       a short piece over and over
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from train_demo import needles
from train_demo.corpus import MARKS, Corpus, Part, forms
from train_demo.writer import ANSWER, Writer

GRASS = "The grass is green.|The sky is blue.|The sun is yellow.|Here we go.|There and back again.".split("|")
INTRO = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there.\n"
)
Batch = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]


class Tasks:
    """Draws sequences from one side of a corpus.

    phase 0 shows more tasks, mostly repetition, from which a model learns to look back; phase 1 is the real
    mixture. plain: the share of its sequences that are prose without a task.
    """

    def __init__(self, corpus: Corpus, part: Part, seed: int = 0, plain: float = 0.4) -> None:
        self.tok, self.part, self.phase, self.plain = corpus.tokenizer, part, 1, plain
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

    def batch(self, n: int, length: int, share: float = 1.0) -> Batch:
        """n sequences: tokens, weights and marks of kept ones, each [n, length]. share: the longest task, as a share
        of length."""
        drawn = [self.sequence(length, share) for _ in range(n)]
        return (
            np.array([out.ids for out in drawn]).astype(np.int64),
            np.array([out.weights for out in drawn]).astype(np.float32),
            np.array([out.kept for out in drawn]).astype(np.bool_),
        )

    def sequence(self, length: int, share: float = 1.0) -> Writer:
        """Prose, or tasks one after the other, exactly `length` tokens."""
        if self.random.random() < (self.plain if self.phase else 1 - (1 - self.plain) * 4 / 3):
            return self.prose(length)
        out = Writer()
        while len(out.ids) < length:
            left = length - len(out.ids)
            out.extend(self.prose(left) if left < 90 else self.task(min(left, self._size(length, share))))
        return out.cut(length)

    def task(self, n: int) -> Writer:
        """One task of about n tokens, drawn from the phase's mixture."""
        chat = [(lambda n, make=make: make(self, n), share) for make, share in needles.MIXTURE]
        mixture: list[tuple[Callable[[int], Writer], float]] = (
            [*chat, (self.passkey, 0.06), (self.pairs, 0.1), (self.copy, 0.1), (self.repeat, 0.04)]
            if self.phase
            else [
                (self.repeat, 0.4),
                (self.pairs, 0.2),
                *((make, 0.3 * share) for make, share in chat),
                (self.copy, 0.1),
            ]
        )
        makes, chances = [make for make, _ in mixture], [chance for _, chance in mixture]
        return self.random.choices(makes, chances)[0](n)

    def prose(self, n: int) -> Writer:
        """The corpus from a random place on."""
        at = self.random.randrange(max(1, len(self.part.tokens) - n))
        return Writer([self.bos], kept=True).add(self.part.tokens[at : at + n - 1].tolist())

    def passkey(self, n: int) -> Writer:
        """One number in a text without other content, with the question of the usual test."""
        value = self.digits(5)
        said = self.encode(f" The pass key is {value}. Remember it. {value} is the pass key.")
        intro, ask = self.encode(INTRO), self.encode("What is the pass key? The pass key is")
        grass = self.random.random() < 0.5
        room = max(0, n - len(intro) - len(said) - len(ask) - 14)
        plain = self.random.random() < 0.5
        out = Writer([self.bos], kept=True)
        if not plain:
            out.add([self.start, *self.encode("user\n")], kept=True)
        out.add(intro)
        self.hide(out, [(said, True)], self.filler(room, grass))
        if plain:
            out.add(ask)
        else:
            out.add([*self.encode("What is the pass key?"), self.end, *self.encode("\n"), self.start])
            out.add(self.encode("assistant\nThe pass key is"))
        out.add([*self.encode(" ")], 1.0)
        out.add(self.encode(value), ANSWER)
        return out.add([*self.encode("."), self.end, *self.encode("\n")])

    def pairs(self, n: int) -> Writer:
        """Lines `key: value`, first each once, then again and again in random order."""
        draw = self.random
        words = draw.random() < 0.5
        table: dict[str, str] = {}
        for word in draw.sample(self.part.words, max(2, min(draw.randint(3, 30), (n - 10) // 14))):
            value = draw.choice(self.part.words) if draw.random() < 0.4 else self.digits(draw.randint(2, 5))
            table[word if words else self.digits(4)] = value
        out = Writer([self.bos], kept=True)
        for key, value in table.items():
            out.add([*self.encode(f"{key}:"), *self.encode(f" {value}\n")], 0.3, kept=True)
        keys = list(table)
        while len(out.ids) < n - 14:
            key = draw.choice(keys)
            out.add(self.encode(f"{key}:"), 0.3)
            first, *rest = self.encode(f" {table[key]}")
            out.add([first], 0.3 if rest else 3.0)
            out.add(rest, 3.0)
            out.add(self.encode("\n"), 0.3)
        return out

    def copy(self, n: int) -> Writer:
        """A passage, other prose, and the passage again."""
        draw, tokens = self.random, self.part.tokens
        size = draw.randint(8, max(9, min(120, n // 3)))
        at = draw.randrange(max(1, len(tokens) - size))
        chance = draw.random() < 0.5
        piece = self.noise(size) if chance else tokens[at : at + size].tolist()
        gap = draw.randint(0, max(0, n - 2 * size - 3))
        at = draw.randrange(max(1, len(tokens) - gap))
        out = Writer([self.bos, *piece], 0.3, kept=True)
        out.add(tokens[at : at + gap].tolist())
        return out.add(piece[:2], 0.5).add(piece[2:], 2.0)

    def repeat(self, n: int) -> Writer:
        """Random tokens, sometimes mostly digits, over and over."""
        draw = self.random
        size = draw.randint(6, 40)
        piece = self.noise(size)
        if draw.random() < 0.4:
            piece = [draw.choice(self.digit_ids) if draw.random() < 0.6 else token for token in piece]
        out = Writer([self.bos, *piece], 0.1, kept=True)
        return out.add((piece * (n // size + 1))[: max(0, n - 1 - size)])

    # ---- pieces --------------------------------------------------------------------------------------------

    def digits(self, n: int) -> str:
        return "".join(self.random.choices("0123456789", k=n))

    def noise(self, n: int) -> list[int]:
        return [self.random.randrange(self.n_plain) for _ in range(n)]

    def filler(self, n: int, grass: bool | None = None) -> list[list[int]]:
        """Consecutive sentences of the corpus, or the pass-key test's, of at most n tokens together."""
        out: list[list[int]] = []
        used = missed = 0
        if self.random.random() < 0.08 if grass is None else grass:
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

    def lures(self, words: list[str], n: int) -> list[list[int]]:
        """Sentences of at most n tokens in all that contain other forms or pieces of the words. A long text has many
        of them, and they draw an answer away from its needle once a piece of it is said."""
        draw = self.random
        out: list[list[int]] = []
        for word in words:
            for _ in range(draw.choice((0, 1, 1, 2, 3))):
                pieces = self.encode(" " + word if draw.random() < 0.8 else word)
                if draw.random() < 0.4:
                    sentence = self.with_word(draw.choice(forms(word.split("-")[0])))
                else:
                    sentence = self.part.sentences.having(draw.choice((pieces[0], draw.choice(pieces))), draw)
                if 0 < len(sentence) <= min(60, n):
                    out.append(sentence)
                    n -= len(sentence)
        return out

    def with_word(self, word: str) -> list[int]:
        """A sentence of the corpus in which the word replaces another."""
        sentences = self.part.sentences
        said = self.tok.decode(sentences[self.random.randrange(len(sentences))]).split(" ")
        at = self.random.randrange(1, max(2, len(said)))  # the first is empty: a sentence begins with a space
        said[at : at + 1] = [word + (said[at][-1] if at < len(said) and said[at][-1:] in (".", ",") else "")]
        return list(self.tok.encode(" ".join(said)).ids)

    def hide(self, out: Writer, said: list[tuple[list[int], bool]], filler: list[list[int]]) -> None:
        """Writes the needles (tokens, whether kept) in order at random places between the sentences, the last
        one sometimes at the very end, and a line end."""
        where = sorted(self.random.randrange(len(filler) + 1) for _ in said)
        if said and self.random.random() < 0.2:
            where[-1] = len(filler)
        parts = [(sentence, False) for sentence in filler]
        for place, needle in reversed(list(zip(where, said, strict=True))):
            parts.insert(place, needle)
        if not parts:
            return
        # A line end may share a token with the full stop before it.
        last, kept = parts[-1]
        parts[-1] = (self.tok.encode(self.tok.decode(last) + "\n").ids, kept)
        for ids, kept in parts:
            out.add(ids, kept=kept)

    def _size(self, length: int, share: float) -> int:
        most = max(96, int(length * share))
        if self.random.random() < 0.45 or most < length:
            return self.random.randint(96, most)
        return length
