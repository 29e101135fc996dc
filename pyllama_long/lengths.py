"""Lengths as people write them: 8192, 8k, 1.5K, 1m tokens, or 4x, times the trained length."""

from __future__ import annotations

import re

_FORM = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<unit>[kmx]?)", re.IGNORECASE)
_UNITS = {"": 1, "k": 1024, "m": 1024 * 1024}


class LengthError(ValueError):
    """A text that is not a length; the message is one line."""


class Times(int):
    """A multiple of a trained length that is not known yet. As a number it is 1."""

    times: float

    def __new__(cls, times: float) -> Times:
        found = super().__new__(cls, 1)
        found.times = times
        return found

    def of(self, n_train: int) -> int:
        """The length in tokens. Raises LengthError if the trained length is unknown, 0."""
        if not n_train:
            raise LengthError(f"the model does not say its trained length: write {self.times:g}x in tokens")
        return round(self.times * n_train)


def parse(text: str, least: int = 1, most: int = 2**31 - 1) -> int:
    """Tokens, or Times. Raises LengthError."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise LengthError(
            f"{text!r} is no length: write tokens (8192, 8k, 1m) or times the trained length (4x)"
        )
    number, unit = float(match["number"]), match["unit"].lower()
    tokens = int(match["number"]) if not unit and "." not in match["number"] else number * _UNITS.get(unit, 1)
    if unit == "x":
        if not 0 < number <= most:
            raise LengthError(f"{text} is not above 0x and at most {most:,}x")
        return Times(number)
    if tokens != int(tokens):
        raise LengthError(f"{text} is not a whole number of tokens")
    if not least <= tokens <= most:
        raise LengthError(f"{text} is not from {least:,} to {most:,} tokens")
    return int(tokens)


def in_tokens(length: int, n_train: int, most: int = 2**31 - 1) -> int:
    """A length that `parse` gave. Raises LengthError."""
    tokens = length.of(n_train) if isinstance(length, Times) else length
    if tokens > most:
        raise LengthError(f"{tokens:,} tokens are more than {most:,}")
    return tokens
