"""The sentences that hide a fact in a text, the questions that ask for it, and the answers.

The embedded model was trained on these forms (scripts/train_demo/needles.py), with other numbers, words and places;
the prose of `pyllama-long eval` is a small part of its training text. An answer ends in the words of the needle and
its value, as a person would say it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["OPENING", "PAIRS", "PHRASINGS", "Phrasing", "sentence_case"]

OPENING = "Read the text and remember the numbers.\n"  # opens a document, before its first sentence


@dataclass(frozen=True)
class Phrasing:
    """say, ask and answer with {key}, {Key} and {value}; asks: the question in other words.

    values: `digits`, or `word` for a word from the list of keys.
    """

    name: str
    say: str
    asks: tuple[str, ...]
    answer: str
    values: str = "digits"

    def needle(self, key: str, value: str) -> str:
        return _fill(self.say, key, value)

    def question(self, key: str, variant: int = 0) -> str:
        return _fill(self.asks[variant % len(self.asks)], key, "")

    def reply(self, key: str, value: str) -> str:
        return _fill(self.answer, key, value)


def sentence_case(key: str) -> str:
    return key[:1].upper() + key[1:]


def _fill(template: str, key: str, value: str) -> str:
    return template.format(key=key, Key=sentence_case(key), value=value)


def _of(kind: str) -> Phrasing:
    said = f"The {kind} for {{key}} is {{value}}."
    asks = (f"What is the {kind} for {{key}}?", f"Tell me the {kind} for {{key}}.")
    return Phrasing(kind.replace(" ", "-"), said, asks, said)


PHRASINGS: tuple[Phrasing, ...] = (
    _of("pass key"),
    _of("magic number"),
    _of("code"),
    _of("secret number"),
    Phrasing(
        "special",
        "One of the special magic numbers for {key} is: {value}.",
        (
            "What is the special magic number for {key} mentioned in the provided text?",
            "Which special magic number for {key} stands in the text?",
        ),
        "The special magic number for {key} is: {value}.",
    ),
    Phrasing(
        "remember",
        "Remember this: the number of the {key} is {value}.",
        ("Which number does the {key} have?", "What is the number of the {key}?"),
        "The number of the {key} is {value}.",
    ),
    Phrasing(
        "person",
        "{Key} wrote down the number {value}.",
        ("Which number did {Key} write down?", "What did {Key} write down?"),
        "{Key} wrote down the number {value}.",
    ),
    Phrasing(
        "open",
        "To open the {key}, use {value}.",
        ("How can I open the {key}?", "What do I use to open the {key}?"),
        "To open the {key}, use {value}.",
    ),
    Phrasing(
        "room",
        "The {key} is kept in room {value}.",
        ("Where is the {key} kept?", "In which room is the {key}?"),
        "The {key} is kept in room {value}.",
    ),
    Phrasing(
        "pass-word",
        "The password of the {key} is {value}.",
        ("What is the password of the {key}?", "Tell me the password of the {key}."),
        "The password of the {key} is {value}.",
        values="word",
    ),
)

# Key-value lines. In quotes, the key has the same tokens as at the beginning of a line.
_VALUE = ('What is the value of "{key}"?', 'Which value belongs to "{key}"?')
PAIRS: tuple[Phrasing, ...] = (
    Phrasing("colon", "{key}: {value}", _VALUE, "{key}: {value}"),
    Phrasing("equals", "{key} = {value}", _VALUE, "{key} = {value}"),
    Phrasing("json", '  "{key}": "{value}",', _VALUE, 'The value of "{key}" is "{value}".'),
)
