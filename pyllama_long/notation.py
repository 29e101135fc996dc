"""The notation that plans and RoPE policies share: terms `name(value, key=value)` joined by `+`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

ALL = 2**31 - 1
MAX_LENGTH = 1 << 30  # PLONG_LONGEST: segment, rate, chunk or window at most
_DIGITS = 6  # of a percentage, after the point

_CALL = re.compile(r"([a-z][a-z0-9_-]*)\s*(?:\((.*)\))?", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """`name(args..., key=value...)`; the values are still text."""

    name: str
    args: tuple[str, ...]
    named: dict[str, str]


def split(text: str, separator: str) -> list[str]:
    """The pieces of text between separators outside parentheses, stripped."""
    pieces, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if char == separator and depth <= 0:
            pieces.append(text[start:i].strip())
            start = i + 1
    return [*pieces, text[start:].strip()]


def call(text: str, error: type[ValueError]) -> Call:
    """Reads one term; raises `error` when it does not have the form name or name(...)."""
    match = _CALL.fullmatch(text)
    if match is None or (match[2] or "").count("(") or (match[2] or "").count(")"):
        raise error(f"cannot read {text!r}: write name or name(value, key=value), joined by +")
    args: list[str] = []
    named: dict[str, str] = {}
    for piece in split(match[2], ",") if match[2] and match[2].strip() else []:
        key, equals, value = (s.strip() for s in piece.partition("="))
        if not piece or (equals and not (key and value)):
            raise error(f"cannot read {piece!r} in {text!r}: a value or key=value belongs there")
        if not equals:
            if named:
                raise error(f"{text!r}: put {piece!r} before the key=value pairs")
            args.append(piece)
        elif key in named:
            raise error(f"{text!r} sets {key} twice")
        else:
            named[key] = value
    return Call(match[1], tuple(args), named)


def integer(text: str, what: str, error: type[ValueError], low: int = 1) -> int:
    """Reads a whole number from low to ALL."""
    if not re.fullmatch(r"[0-9]+", text) or not low <= int(text) <= ALL:
        raise error(f"{what}: {text!r} is not a whole number from {low} to {ALL}")
    return int(text)


def number(text: str, what: str, error: type[ValueError]) -> float:
    """Reads a finite decimal number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise error(f"{what}: {text!r} is not a number")
    return value


def limits(call: Call, count: str, error: type[ValueError]) -> dict[str, float]:
    """The values of `name(64, 3%)`: a number, under the key `count`, a percentage, as `share` from 0 to 1, or both."""
    found: dict[str, float] = {}
    for text in call.args:
        key = "share" if text.endswith("%") else count
        if key in found:
            raise error(f"{call.name}: {text!r} is a second limit of the same kind")
        if key == "share":
            found[key] = round(number(text[:-1], call.name, error) / 100, _DIGITS + 2)
        else:
            found[key] = integer(text, call.name, error)
    return found


def percents(share: float) -> list[str]:
    """A share as it is written, `3%`; nothing for all."""
    return [f"{show(round(100 * share, _DIGITS))}%"] if share < 1 else []


def show(value: float) -> str:
    """The shortest text that reads back as the same number: 4, 1.5."""
    return repr(float(value)).removesuffix(".0")
