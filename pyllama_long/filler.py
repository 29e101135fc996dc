"""Plain prose that comes with every Python: the language reference (pydoc_data.topics) without markup and code.

About 50,000 tokens of the embedded model's vocabulary. Where the module is missing, sentences are generated.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from functools import lru_cache

_SENTENCE = re.compile(r"[^.!?]+[.!?](?= |$)")
_PROSE = re.compile(r"[A-Z][A-Za-z ,;:'\-]*[.!?]")
_SUBSTITUTIONS = (
    (re.compile(r"\(see [^()]*\)"), ""),
    (re.compile(r"[\"*`]|__|\(\)|->"), ""),
    (re.compile(r"_"), " "),
    (re.compile(r" ?[()]"), ","),  # an aside in brackets becomes one in commas
    (re.compile(r",(?=\w)"), ", "),
    (re.compile(r"\s+(?=[.,;:])"), ""),
    (re.compile(r",+(?=[.,;:])"), ""),
    (re.compile(r"(?<=[a-z])\.(?=[a-z])"), " "),  # dotted.names
)
_GENERATED = tuple(
    words.split("|")
    for words in (
        "The miller|An old sailor|My neighbour|The doctor|A young clerk|Her sister|The innkeeper|A stranger",
        "walked slowly to|spoke at length about|never forgot|had often seen|painted|asked for|dreamt of",
        "the river|the long road|a quiet garden|the harbour|that winter|the empty house|a letter from home",
        "before the rain came|in the evening|when the bells rang|all the same|without a word|in those days",
        "and nobody asked why|as people did then|for it was late|while the others slept|and smiled",
    )
)
_MAX_WORDS = 60
_MAX_WORD = 20


@lru_cache(maxsize=1)
def sentences() -> tuple[str, ...]:
    """Distinct sentences of 5 to 60 words, letters and plain punctuation only, in the order of the text."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave the module out
        return tuple(dict.fromkeys(_generated(4000)))
    found: dict[str, None] = {}
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            text = " ".join(paragraph.split())
            for pattern, replacement in _SUBSTITUTIONS:
                text = pattern.sub(replacement, text)
            for match in _SENTENCE.finditer(text):
                sentence = " ".join(match.group().lstrip(" -").split())
                if _is_prose(sentence):
                    found[sentence] = None
    return tuple(found)


def stream(seed: int) -> Iterator[str]:
    """Endless sentences, starting at a place that the seed chooses; they repeat once all have been used."""
    found = sentences()
    start = random.Random(seed).randrange(len(found))
    return itertools.cycle(found[start:] + found[:start])


def _is_prose(sentence: str) -> bool:
    words = sentence.split()
    return (
        5 <= len(words) <= _MAX_WORDS
        and max(map(len, words)) <= _MAX_WORD
        and _PROSE.fullmatch(sentence) is not None
        and "in version" not in sentence
    )


def _generated(n: int) -> Iterator[str]:
    chance = random.Random(1)
    for _ in range(n):
        who, did, what, when, why = (chance.choice(words) for words in _GENERATED)
        yield f"{who} {did} {what} {when}, {why}."
