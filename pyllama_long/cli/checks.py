"""Checks of options' values; a wrong value is a usage error of one line."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import typer

from pyllama_long import lengths

MAX_CTX = 2**31 - 1


def one_of(known: Sequence[str]) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in known:
            raise typer.BadParameter(f"{value!r}; known: {', '.join(known)}")
        return value

    return check


def finite(value: float) -> float:
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def positive(value: float) -> float:
    if finite(value) <= 0:
        raise typer.BadParameter(f"{value:g} is not above 0")
    return value


def length(least: int = 1, most: int = MAX_CTX, times: bool = True) -> Callable[[str], int]:
    """A parser for options that are lengths. times: multiples of the trained length are allowed too."""

    def parse(value: str | int) -> int:
        try:
            found = lengths.parse(str(value), least, most) if not isinstance(value, int) else value
        except lengths.LengthError as error:
            raise typer.BadParameter(str(error)) from None
        if isinstance(found, lengths.Times) and not times:
            raise typer.BadParameter(
                f"{value} is in times of a trained length, and there is no model: give tokens"
            )
        return found

    return parse
