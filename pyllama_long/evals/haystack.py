"""The text that needles are hidden in: endless sentences, and its words as keys."""

from __future__ import annotations

import itertools
import keyword
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from pyllama_long import filler
from pyllama_long.evals import EvalError

__all__ = ["Haystack"]

_SENTENCE = re.compile(r"""\S.*?(?:[.!?]["')\]]*(?= |$)|$)""")
_WORD = re.compile(r"(?<![\w'-])[a-z]{4,9}(?![\w'-])")
_MAX_WORDS = 60  # of a sentence; what comes after them is another one
_COMMONEST = 300  # the most words that count as too common to be keys
_MIN_KEYS = 50
# Words that a model mistakes for code: if the question is about "the code for return", it writes a program.
_CODE = frozenset(keyword.kwlist) | set(
    "array boolean byte case catch char code const data default define double echo enum equals error exec false file "
    "final float function goto index input integer interface java javascript json kernel list local loop main module "
    "null object output package parse print private process program protected public python query root script select "
    "shell short signed static string struct super switch syntax system table template this throw throws true tuple "
    "type typedef undefined union unsigned value variable virtual void volatile where".split()
)


@dataclass(frozen=True)
class Haystack:
    """sentences: in the order of the text; words: its lower-case words of 4 to 9 letters, all different."""

    sentences: tuple[str, ...]
    words: tuple[str, ...]

    @classmethod
    def of_filler(cls) -> Haystack:
        return cls.of_sentences(filler.sentences())

    @classmethod
    def of_text(cls, text: str) -> Haystack:
        """Raises EvalError when the text has too few words to take keys from."""
        found = []
        for paragraph in re.split(r"\n\s*\n", text):
            for sentence in _SENTENCE.findall(" ".join(paragraph.split())):
                words = sentence.split()
                found += [" ".join(words[i : i + _MAX_WORDS]) for i in range(0, len(words), _MAX_WORDS)]
        return cls.of_sentences(tuple(found))

    @classmethod
    def of_sentences(cls, sentences: tuple[str, ...]) -> Haystack:
        count = Counter(word for sentence in sentences for word in _WORD.findall(sentence))
        words = [word for word, _ in count.most_common() if word not in _CODE]
        words = words[min(_COMMONEST, len(words) // 10) :]
        if len(words) < _MIN_KEYS:
            raise EvalError(
                f"the text has {len(words)} words that can be keys, {_MIN_KEYS} are needed: give a longer one"
            )
        return cls(sentences, tuple(words))

    def stream(self, chance: random.Random) -> Iterator[str]:
        """The sentences from a random place on; they repeat once all have been given."""
        start = chance.randrange(len(self.sentences))
        return itertools.cycle(self.sentences[start:] + self.sentences[:start])

    def keys(self, chance: random.Random) -> Iterator[str]:
        """Distinct keys: the words in random order, then two of them joined with a hyphen."""
        words = chance.sample(self.words, len(self.words))
        yield from words
        for step in range(1, len(words)):
            for i, word in enumerate(words):
                yield f"{word}-{words[i - step]}"
        raise EvalError("the text has too few words for so many keys: give a longer one")
