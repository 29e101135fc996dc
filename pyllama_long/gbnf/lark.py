"""Writes a grammar in llguidance's dialect of Lark."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pyllama_long.gbnf.cut import Cut
from pyllama_long.gbnf.tree import EMPTY, Alt, Chars, Node, Ranges, Ref, Repeat, Seq, Text, Token

MAX_CHAIN = 1000  # depth of nested rules and groups: llguidance's compiler recurses for each
_MAX_PARENTHESES = 8  # nested parentheses; deeper ones become a rule, as llguidance accepts at most 32


class Writer:
    """Names are r1, r2 for rules, and T1, T2 for lexemes and parts of them."""

    def __init__(self, cut: Cut, ends: Sequence[int] = ()) -> None:
        """ends: tokens that end a text; a negated token never stands for them."""
        self._cut, self._ends = cut, sorted(ends)
        self._names: dict[tuple[Node, bool], str] = {(cut.rules["root"], False): "start"}
        self._todo: list[tuple[Node, bool]] = [(cut.rules["root"], False)]
        # by name: the names in it, and how many parentheses they are in
        self._uses: dict[str, list[tuple[str, int]]] = {}
        self._here: list[tuple[str, int]] = []

    def text(self) -> str:
        """Raises ValueError if rules are nested too deeply."""
        lines = []
        while self._todo:
            node, inner = self._todo.pop()
            name = self._names[node, inner]
            self._here = self._uses[name] = []
            if isinstance(node, Alt) and (inner or not self._cut.is_lexeme(node)):
                body = " | ".join([self._write(item, inner, 0) for item in node.items])
            elif inner:
                body = self._parts(node, inner, 0)
            else:
                body = self._write(node, inner, 0)
            lines.append(f"{name}: {body}\n")
        self._check_chains()
        return "".join(lines)

    def _write(self, node: Node, inner: bool, depth: int) -> str:
        """inner: whether this is a part of a lexeme. depth: how many parentheses it is in."""
        if node is EMPTY:
            return '""'
        match node:
            case Chars(ranges):
                return _class(ranges)
            case Token():
                return self._token(node)
            case Ref(name):
                return self._name(self._cut.rules[name], inner or self._cut.is_lexeme(node), depth)
            case Text(text) if inner or self._cut.is_lexeme(node):
                return _literal(text)
        if not inner and self._cut.is_lexeme(node):
            return self._name(node, True, depth)
        return self._parts(node, inner, depth)

    def _parts(self, node: Node, inner: bool, depth: int) -> str:
        match node:
            case Repeat(item, low, high):
                return self._item(item, inner, depth) + _suffix(low, high)
            case Alt(items):
                if depth == _MAX_PARENTHESES:
                    return self._name(node, inner, depth)
                return f"({' | '.join([self._write(item, inner, depth + 1) for item in items])})"
            case Seq() | Text():
                return " ".join([self._write(part, inner, depth) for part in self._cut.parts(node)])
        return self._write(node, inner, depth)

    def _item(self, node: Node, inner: bool, depth: int) -> str:
        """Writes a part that a repetition can follow."""
        several = isinstance(node, Seq | Text | Repeat)
        if not several or node is EMPTY or (not inner and self._cut.is_lexeme(node)):
            return self._write(node, inner, depth)
        if isinstance(node, Text) and inner:
            return _literal(node.text)
        if depth == _MAX_PARENTHESES:
            return self._name(node, inner, depth)
        return f"({self._write(node, inner, depth + 1)})"

    def _name(self, node: Node, inner: bool, depth: int) -> str:
        key = (node, inner)
        if key not in self._names:
            self._names[key] = f"{'T' if inner else 'r'}{len(self._names)}"
            self._todo.append(key)
        self._here.append((self._names[key], depth))
        return self._names[key]

    def _token(self, node: Token) -> str:
        ids = sorted({node.id, *self._ends}) if node.negated else [node.id]
        return f"<[{'^' if node.negated else ''}{','.join(map(str, ids))}]>"

    def _check_chains(self) -> None:
        """The depth of a rule: llguidance's compiler descends into a name where it first meets it."""
        seen = {"start"}
        stack = [(iter(self._uses["start"]), 0)]
        while stack:
            uses, depth = stack[-1]
            for name, parentheses in uses:
                if name not in seen:
                    seen.add(name)
                    below = depth + 1 + parentheses
                    if below > MAX_CHAIN:
                        raise ValueError(
                            f"the grammar's rules use one another deeper than {MAX_CHAIN} levels"
                        )
                    stack.append((iter(self._uses[name]), below))
                    break
            else:
                stack.pop()


def _suffix(low: int, high: int | None) -> str:
    short = {(0, None): "*", (1, None): "+", (0, 1): "?"}.get((low, high))
    return short or f"{{{low},{'' if high is None else high}}}"


def _literal(text: str) -> str:
    """Writes a string as in JSON, except for characters that llguidance does not accept in strings."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _class(ranges: Ranges) -> str:
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _literal(chr(ranges[0][0]))
    inside = "".join(_code(low) if low == high else f"{_code(low)}-{_code(high)}" for low, high in ranges)
    return f"/[{inside}]/"


def _code(code: int) -> str:
    return chr(code) if code < 0x80 and chr(code).isalnum() else f"\\x{{{code:X}}}"
