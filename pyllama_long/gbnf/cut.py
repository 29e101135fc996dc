"""Decides where lexemes begin and end: llguidance's lexer always continues with the longest one.

It is best if a regular part of a grammar is one lexeme, whose automaton is followed byte by byte without a parser.
But if one lexeme may end where another (or itself) could also take the next byte, the lexer does the latter and
refuses texts of the grammar. Such lexemes are split into their parts, in the end into single characters, where this
cannot happen. What may follow what decides which lexemes can meet. Where that is too coarse, or too much work, a
lexeme is split unnecessarily: steps are then slower, but the language is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from pyllama_long.gbnf.automaton import Budget, TooLarge
from pyllama_long.gbnf.round import Machines, Round
from pyllama_long.gbnf.tree import (
    EMPTY,
    Alt,
    Chars,
    Node,
    Ref,
    Repeat,
    Seq,
    Text,
    Token,
    alt,
    references,
    seq,
    walk,
)

_MAX_ROUNDS = 30
_MAX_WORK = 300_000  # under a second
# Parts in a row, including those of the rules that they name. llguidance joins them into one list, and if each may be
# empty, its work and memory grow with the square of the length (4,096: 0.1 s).
_MAX_PARTS = 4096


class Cut:
    """The rules, and which of their parts are lexemes: `is_lexeme`."""

    def __init__(self, rules: Mapping[str, Node]) -> None:
        self.rules = {name: _loop(name, body) for name, body in rules.items()}
        self._regular = _regular_rules(self.rules)
        self._is_regular: dict[Node, bool] = {}
        self._n_parts: dict[Node, int] = {}
        self.rules = {name: self._grouped(body) for name, body in self.rules.items()}
        self._broken: set[Node] = set()
        self._characters_of: dict[Node, tuple[Node, ...]] = {}
        self._characters = False  # whether only single ones are lexemes
        machines: Machines = {}
        budget = Budget(_MAX_WORK)
        for _ in range(_MAX_ROUNDS):
            try:
                found = Round(self, machines, budget).conflicts()
            except TooLarge:
                break
            if not found:
                return
            self._broken |= found
            self._broken |= {self.rules[node.name] for node in found if isinstance(node, Ref)}
        self._characters = True

    def is_lexeme(self, node: Node) -> bool:
        if isinstance(node, Chars):
            return True
        whole = not self._characters and node not in self._broken and node is not EMPTY
        return whole and self.is_regular(node) and self._parts_in_a_row(node) <= _MAX_PARTS

    def is_regular(self, node: Node) -> bool:
        found = self._is_regular.get(node)
        if found is None:
            if isinstance(node, Ref):
                found = node.name in self._regular
            else:
                found = not isinstance(node, Token) and all(map(self.is_regular, node.parts))
            self._is_regular[node] = found
        return found

    def _parts_in_a_row(self, node: Node) -> int:
        """For a regular part, in which no rule contains itself."""
        stack = [node]
        while stack:
            at = stack[-1]
            inside: tuple[Node, ...] = at.parts if isinstance(at, Seq) else ()
            if isinstance(at, Ref):
                inside = (self.rules[at.name],)
            if todo := [part for part in inside if part not in self._n_parts]:
                stack += todo
                continue
            stack.pop()
            self._n_parts[at] = min(
                _MAX_PARTS + 1, sum(self._n_parts[part] for part in inside) if inside else 1
            )
        return self._n_parts[node]

    def parts(self, node: Node) -> tuple[Node, ...]:
        """The parts of something that is not a lexeme. Those of a literal are its characters."""
        if not isinstance(node, Text):
            return node.parts
        if node not in self._characters_of:
            self._characters_of[node] = tuple(Chars(((ord(c), ord(c)),)) for c in node.text)
        return self._characters_of[node]

    def _grouped(self, node: Node) -> Node:
        """Joins regular neighbours into one part."""
        if self.is_regular(node):
            return node
        match node:
            case Repeat(item, low, high):
                return Repeat(self._grouped(item), low, high)
            case Alt(items):
                regular = [item for item in items if self.is_regular(item)]
                others = [self._grouped(item) for item in items if not self.is_regular(item)]
                return alt([alt(regular), *others] if regular else others)
            case Seq(items):
                parts: list[Node] = []
                run: list[Node] = []
                for item in items:
                    if self.is_regular(item):
                        run.append(item)
                        continue
                    parts += [seq(run)] if run else []
                    parts.append(self._grouped(item))
                    run = []
                return seq([*parts, seq(run)] if run else parts)
        return node


def _regular_rules(rules: Mapping[str, Node]) -> set[str]:
    """The rules that contain no tokens, and refer to no rule that does or that refers to itself."""
    waits = {name: set(references(body)) for name, body in rules.items()}
    users: dict[str, list[str]] = {}
    for name, used in waits.items():
        for other in used:
            users.setdefault(other, []).append(name)
    texts = {name for name, body in rules.items() if not any(isinstance(part, Token) for part in walk(body))}
    ready = [name for name in texts if not waits[name]]
    regular = set[str]()
    while ready:
        name = ready.pop()
        regular.add(name)
        for user in users.get(name, ()):
            waits[user].discard(name)
            if not waits[user] and user in texts:
                ready.append(user)
    return regular


def _loop(name: str, body: Node) -> Node:
    """A rule that refers to itself only at its end, as a repetition: `r ::= "a" r | "b"` is `"a"* "b"`."""
    if name not in references(body):
        return body
    split = _split(body, name)
    if split is None:
        return body
    again = [seq(parts) for parts in split[0] if parts]
    ends = alt([seq(parts) for parts in split[1]]) if split[1] else None
    if not again or ends is None:
        return body
    return seq([Repeat(alt(again), 0, None), ends])


_Paths: TypeAlias = list[tuple[Node, ...]]


def _split(node: Node, name: str) -> tuple[_Paths, _Paths] | None:
    """What comes before the rule's own name at its end, and the alternatives without it; None if the name occurs
    elsewhere."""
    if name not in references(node):
        return [], [(node,)]
    match node:
        case Ref():
            return [()], []
        case Repeat(item, 0, 1):
            inner = _split(item, name)
            return None if inner is None else (inner[0], [*inner[1], ()])
        case Alt(items):
            halves = [_split(item, name) for item in items]
            again: _Paths = []
            ends: _Paths = []
            for half in halves:
                if half is None:
                    return None
                again += half[0]
                ends += half[1]
            return again, ends
        case Seq(items):
            if any(name in references(item) for item in items[:-1]):
                return None
            inner = _split(items[-1], name)
            if inner is None:
                return None
            before = items[:-1]
            return [(*before, *path) for path in inner[0]], [(*before, *path) for path in inner[1]]
    return None
