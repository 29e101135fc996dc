"""The parts of a grammar."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

Ranges: TypeAlias = tuple[tuple[int, int], ...]  # of code points, both ends included; ascending, apart

# What text can contain for llama.cpp: no NUL, which ends its strings, and no halves of surrogate pairs.
TEXT: Ranges = ((0x1, 0xD7FF), (0xE000, 0x10FFFF))


class Node:
    """A part of a rule. Two of them are never equal: analyses use the object itself as a key."""

    __slots__ = ()

    @property
    def parts(self) -> tuple[Node, ...]:
        return ()


@dataclass(frozen=True, slots=True, eq=False)
class Chars(Node):
    """One character of a class, which is never empty."""

    ranges: Ranges


@dataclass(frozen=True, slots=True, eq=False)
class Text(Node):
    """A literal of at least one character."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Token(Node):
    """One token by its id; negated: any other."""

    id: int
    negated: bool


@dataclass(frozen=True, slots=True, eq=False)
class Ref(Node):
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Seq(Node):
    """The parts one after another; none of them is EMPTY."""

    items: tuple[Node, ...]

    @property
    def parts(self) -> tuple[Node, ...]:
        return self.items


@dataclass(frozen=True, slots=True, eq=False)
class Alt(Node):
    items: tuple[Node, ...]

    @property
    def parts(self) -> tuple[Node, ...]:
        return self.items


@dataclass(frozen=True, slots=True, eq=False)
class Repeat(Node):
    """high: None for no end."""

    item: Node
    low: int
    high: int | None

    @property
    def parts(self) -> tuple[Node, ...]:
        return (self.item,)


EMPTY = Seq(())


def seq(items: Iterable[Node]) -> Node:
    flat = tuple(items)
    return flat[0] if len(flat) == 1 else Seq(flat)


def alt(items: Iterable[Node]) -> Node:
    flat = tuple(items)
    return flat[0] if len(flat) == 1 else Alt(flat)


def walk(node: Node) -> Iterator[Node]:
    """The node and all below it, in the order of the text."""
    stack = [node]
    while stack:
        top = stack.pop()
        yield top
        stack += reversed(top.parts)


def references(node: Node) -> Iterator[str]:
    return (part.name for part in walk(node) if isinstance(part, Ref))


def union(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """Makes one class of ranges in any order, without characters that text cannot contain."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(pairs):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return intersection(tuple(merged), TEXT)


def complement(ranges: Ranges) -> Ranges:
    """The characters that text can contain and the class does not."""
    gaps, after = [], 0
    for low, high in ranges:
        if low > after:
            gaps.append((after, low - 1))
        after = high + 1
    gaps.append((after, 0x10FFFF))
    return intersection(tuple(gap for gap in gaps if gap[0] <= gap[1]), TEXT)


def intersection(a: Ranges, b: Ranges) -> Ranges:
    common, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        low, high = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if low <= high:
            common.append((low, high))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return tuple(common)
