"""Regular parts as automata over positions, to find out where one lexeme continues and another may end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from pyllama_long.gbnf.tree import Alt, Chars, Node, Ranges, Ref, Repeat, Seq, Text, intersection

ALL = (1 << 256) - 1  # a set of bytes, one bit each
MARK = 1 << 0xFF  # the byte that marks tokens; no text contains it
MAX_DEPTH = 300  # depth of nested parts and rules
MAX_WORK = 100_000  # positions and their neighbours in one automaton, or in one comparison of two


class TooLarge(Exception):
    pass


class Budget:
    """Work that is left. Raises TooLarge when it is spent."""

    def __init__(self, work: int) -> None:
        self._left = work

    def spend(self, work: int) -> None:
        self._left -= work
        if self._left < 0:
            raise TooLarge


@dataclass(slots=True)
class Automaton:
    """Glushkov's automaton: one position per character of the expression. Repetitions with counts are treated as
    unlimited, which accepts more texts; conclusions about these also hold for fewer."""

    ranges: list[Ranges] = field(default_factory=list)  # by position
    bytes: list[int] = field(default_factory=list)  # by position: the first bytes of its characters
    follow: list[set[int]] = field(default_factory=list)  # by position
    first: set[int] = field(default_factory=set)
    last: set[int] = field(default_factory=set)
    nullable: bool = False

    @property
    def first_bytes(self) -> int:
        return self.bytes_of(self.first)

    def bytes_of(self, positions: set[int]) -> int:
        mask = 0
        for p in positions:
            mask |= self.bytes[p]
        return mask


@dataclass(frozen=True, slots=True)
class Meeting:
    """How lexemes a and b meet. a_then: the bytes with which b continues after a text of a; b_then: the other way
    round. both: whether some text belongs to both."""

    a_then: int
    b_then: int
    both: bool


NOTHING = Meeting(0, 0, False)
ANYTHING = Meeting(ALL, ALL, True)


def build(node: Node, rules: Mapping[str, Node]) -> Automaton:
    """The automaton of a part that refers to no rule in a circle. Raises TooLarge."""
    builder = _Builder(rules)
    a = builder.automaton
    a.first, a.last, a.nullable = builder.add(node, 0)
    return a


class _Builder:
    def __init__(self, rules: Mapping[str, Node]) -> None:
        self.automaton = Automaton()
        self._rules = rules
        self._spend = Budget(MAX_WORK).spend

    def add(self, node: Node, depth: int) -> tuple[set[int], set[int], bool]:
        """Its first and last positions, and whether it may be empty."""
        self._spend(1)
        if depth > MAX_DEPTH:
            raise TooLarge
        match node:
            case Ref(name):
                return self.add(self._rules[name], depth + 1)
            case Chars(ranges):
                place = {self._position(ranges)}
                return place, place, False
            case Text(text):
                places = [self._position(((ord(c), ord(c)),)) for c in text]
                for p, q in pairwise(places):
                    self.automaton.follow[p].add(q)
                return {places[0]}, {places[-1]}, False
            case Repeat(item, low, high):
                first, last, nullable = self.add(item, depth + 1)
                if high != 1:
                    self._join(last, first)
                return first, last, nullable or low == 0
            case Alt(items):
                parts = [self.add(item, depth + 1) for item in items]
                first = set().union(*(part[0] for part in parts))
                last = set().union(*(part[1] for part in parts))
                return first, last, any(part[2] for part in parts)
            case Seq(items):
                return self._sequence(items, depth)
        raise AssertionError(node)

    def _sequence(self, items: tuple[Node, ...], depth: int) -> tuple[set[int], set[int], bool]:
        first, last, nullable = set[int](), set[int](), True
        for item in items:
            begins, ends, empty = self.add(item, depth + 1)
            self._join(last, begins)
            if nullable:
                first = first | begins
            last = last | ends if empty else ends
            nullable = nullable and empty
        return first, last, nullable

    def _position(self, ranges: Ranges) -> int:
        a = self.automaton
        a.ranges.append(ranges)
        a.bytes.append(first_bytes(ranges))
        a.follow.append(set())
        self._spend(1)
        return len(a.ranges) - 1

    def _join(self, ends: set[int], begins: set[int]) -> None:
        self._spend(len(ends) * len(begins))
        for p in ends:
            self.automaton.follow[p] |= begins


def first_bytes(ranges: Ranges) -> int:
    """The first bytes of the characters in UTF-8."""
    mask = 0
    for low, high in ranges:
        begin, end = (chr(code).encode()[0] for code in (low, high))
        mask |= (1 << end + 1) - (1 << begin)
    return mask


def meet(a: Automaton, b: Automaton) -> Meeting:
    if not a.first_bytes & b.first_bytes:
        return NOTHING
    a_then = b_then = 0
    both, work = False, 0
    seen: set[tuple[int, int]] = set()
    stack: list[tuple[int, int]] = []

    def push(left: set[int], right: set[int]) -> None:
        for p in left:
            for q in right:
                if (p, q) not in seen and a.bytes[p] & b.bytes[q] and intersection(a.ranges[p], b.ranges[q]):
                    seen.add((p, q))
                    stack.append((p, q))

    if len(a.first) * len(b.first) > MAX_WORK:
        return ANYTHING
    push(a.first, b.first)
    while stack:
        p, q = stack.pop()
        if p in a.last:
            a_then |= b.bytes_of(b.follow[q])
        if q in b.last:
            b_then |= a.bytes_of(a.follow[p])
        both |= p in a.last and q in b.last
        work += len(a.follow[p]) * len(b.follow[q])
        if work > MAX_WORK:
            return ANYTHING
        push(a.follow[p], b.follow[q])
    return Meeting(a_then, b_then, both)
