"""Text that arrives in pieces, for readers that are generators: they yield when they need more of it, and look at
each character only a few times."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

Schemas = Mapping[str, Mapping[str, Any]]  # schemas of the arguments of each function
Waiting = Generator[None, None, Any]  # a generator that yields when it needs more text

_STRUCTURE = re.compile(r'["{}\[\]]|[^\s\w.,:+\-]')
_IN_STRING = re.compile(r'["\\]')


@dataclass(frozen=True)
class Call:
    """arguments: JSON text."""

    name: str
    arguments: str


class NotACall(Exception):
    """What looked like the beginning of a call turned out to be text."""


class Unfinished(Exception):
    """The answer ended within a call. calls: the whole ones, and the part of the last one, whose arguments end where
    the answer does."""

    def __init__(self, *calls: Call) -> None:
        self.calls = list(calls)


class Cut(Unfinished):
    """The answer ended within a value. text: the part that is there."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


@dataclass
class Input:
    """text: what has arrived and is not read yet; taken: what has been read since a call began. looked: characters
    that were searched, for tests."""

    text: str = ""
    ended: bool = False
    taken: list[str] = field(default_factory=list)
    looked: int = 0

    def skip(self, n: int) -> str:
        read, self.text = self.text[:n], self.text[n:]
        self.taken.append(read)
        return read

    def until(self, marks: tuple[str, ...], sink: Callable[[str], object]) -> Waiting:
        """Reads up to the first of the marks, passing the text before it to the sink; returns the mark, or "" at the
        end."""
        pattern = _pattern(marks)
        while True:
            self.looked += len(self.text)
            match = pattern.search(self.text)
            if match is not None:
                sink(self.skip(match.start()))
                return self.skip(len(match[0]))
            kept = 0 if self.ended else overlap(self.text, marks)
            sink(self.skip(len(self.text) - kept))
            if self.ended:
                return ""
            yield

    def space(self) -> Waiting:
        """Skips white space."""
        while True:
            rest = self.text.lstrip()
            self.looked += len(self.text) - len(rest) + 1
            self.skip(len(self.text) - len(rest))
            if rest or self.ended:
                return None
            yield

    def ahead(self, n: int) -> Waiting:
        """Returns the next n characters, or as many as there are, without reading them."""
        while len(self.text) < n and not self.ended:
            yield
        self.looked += min(n, len(self.text))
        return self.text[:n]

    def follows(self, *options: str) -> Waiting:
        """Returns the option that comes next, without reading it; "" if none does."""
        while True:
            self.looked += max(map(len, options))
            found = next((o for o in options if self.text.startswith(o)), "")
            if found or self.ended or not any(o.startswith(self.text) for o in options):
                return found
            yield

    def value(self) -> Waiting:
        """Reads the text of a JSON object or list. Raises NotACall, Unfinished and Cut."""
        yield from self.space()
        if self.text[:1] not in ("{", "["):
            raise Unfinished if self.ended and not self.text else NotACall
        parts: list[str] = []
        depth, quoted, escaped = 0, False, False
        while True:
            text, i = self.text, 0
            self.looked += len(text)
            while i < len(text):
                if escaped:
                    i, escaped = i + 1, False
                    continue
                match = (_IN_STRING if quoted else _STRUCTURE).search(text, i)
                if match is None:
                    i = len(text)
                    break
                i, c = match.end(), match[0]
                if c == '"':
                    quoted = not quoted
                elif quoted:
                    escaped = True
                elif c in "{[":
                    depth += 1
                elif c in "}]":
                    depth -= 1
                else:
                    self.skip(match.start())  # so that the decision does not depend on how much has arrived
                    raise NotACall
                if depth == 0:
                    parts.append(self.skip(i))
                    return "".join(parts)
            parts.append(self.skip(i))
            if self.ended:
                raise Cut("".join(parts))
            yield


@cache
def _pattern(marks: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or "(?!)")


@cache
def _measures(marks: tuple[str, ...]) -> tuple[int, frozenset[str]]:
    """The length of the longest, and their first characters."""
    return max(map(len, marks), default=0), frozenset(mark[:1] for mark in marks)


def overlap(text: str, marks: tuple[str, ...]) -> int:
    """Length of the longest end of the text that begins one of the marks without completing it."""
    longest, firsts = _measures(marks)
    tail = text[-(longest - 1) :] if longest > 1 else ""
    for i, first in enumerate(tail):
        if first in firsts and any(mark.startswith(tail[i:]) for mark in marks):
            return len(tail) - i
    return 0
