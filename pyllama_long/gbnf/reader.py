"""Reads GBNF as llama.cpp's parser does (src/llama-grammar.cpp)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn

from pyllama_long.gbnf.tree import EMPTY, Chars, Node, Ref, Repeat, Text, Token, alt, complement, seq, union

MAX_BYTES = 1 << 18  # the longest grammar
MAX_DEPTH = 200  # depth of nested parts: a repeated group with alternatives counts three
MAX_REPEATS = 2000  # repetitions of one part, as in llama.cpp

_NAME = re.compile(r"[a-zA-Z0-9-]+")
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_OR_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NUMBER = re.compile(r"[0-9]+")
_TOKEN_ID = re.compile(r"<\[([0-9]{1,10})\]>")
_TOKEN_TEXT = re.compile(r"<[^>]*>")
_HEX = {"x": 2, "u": 4, "U": 8}
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n", **{c: c for c in '\\"[]-'}}
_SUFFIXES: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


def read(text: str, token_id: Callable[[str], int] | None = None) -> dict[str, Node]:
    """The rules by name, in the order of the text. token_id: returns the id of the one token with a text such as
    "<think>", or raises ValueError. Raises ValueError, which names the line."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("the grammar cannot be read: it holds half of a surrogate pair") from None
    if size > MAX_BYTES:
        raise ValueError(f"the grammar is longer than {MAX_BYTES} bytes")
    return _Reader(text, token_id).rules()


class _Reader:
    def __init__(self, text: str, token_id: Callable[[str], int] | None) -> None:
        self._text, self._at = text, 0
        self._token_id = token_id
        self._depths: dict[Node, int] = {}  # depth of the parts below one; 0 for those without an entry
        self._used: dict[str, int] = {}  # where a name first occurs

    def rules(self) -> dict[str, Node]:
        found: dict[str, Node] = {}
        self._space(lines=True)
        while self._here():
            start = self._at
            name = self._name()
            if name in found:
                self._fail(f"the rule {name} is defined twice", start)
            self._space()
            if not self._text.startswith("::=", self._at):
                self._fail(f"expected ::= after {name}")
            self._at += 3
            self._space(lines=True)
            found[name] = self._body()
            if self._here() not in ("", "\r", "\n"):
                self._fail("expected the end of the line")
            self._space(lines=True)
        for name, at in self._used.items():
            if name not in found:
                self._fail(f"the rule {name} is not defined", at)
        if "root" not in found:
            raise ValueError("the grammar cannot be read: it has no rule called root")
        return found

    def _body(self) -> Node:
        """Reads alternatives up to the end of the rule."""
        # For each open group: the alternatives that are complete, and the parts of the next one.
        groups: list[tuple[list[Node], list[Node]]] = [([], [])]
        while True:
            choices, parts = groups[-1]
            nested = len(groups) > 1
            c = self._here()
            if c == '"':
                parts.append(self._literal())
            elif c == "[":
                parts.append(self._class())
            elif c in ("<", "!"):
                parts.append(self._token())
            elif _NAME.match(c):
                self._used.setdefault(name := self._peek_name(), self._at)
                self._at += len(name)
                parts.append(Ref(name))
            elif c == ".":
                self._at += 1
                parts.append(Chars(complement(())))
            elif c and c in "*+?{":
                self._repeat(parts)
            elif c == "(":
                self._at += 1
                groups.append(([], []))
                if len(groups) > MAX_DEPTH:
                    self._fail(f"the groups are nested deeper than {MAX_DEPTH} levels")
                self._space(lines=True)
                continue
            elif c == "|":
                self._at += 1
                choices.append(self._sequence(parts))
                parts.clear()
                self._space(lines=True)
                continue
            elif nested:
                if c != ")":
                    self._fail("expected ) to end a group")
                self._at += 1
                groups.pop()
                groups[-1][1].append(self._alternatives(choices, parts))
            else:
                return self._alternatives(choices, parts)
            self._space(lines=len(groups) > 1)

    def _alternatives(self, choices: list[Node], parts: list[Node]) -> Node:
        return self._measured(alt([*choices, self._sequence(parts)]))

    def _sequence(self, parts: list[Node]) -> Node:
        filled = [part for part in parts if part is not EMPTY]
        return self._measured(seq(filled)) if filled else EMPTY

    def _measured(self, node: Node) -> Node:
        if node.parts and node not in self._depths:
            self._depths[node] = depth = 1 + max(self._depths.get(part, 0) for part in node.parts)
            if depth > MAX_DEPTH:
                self._fail(f"groups and repetitions are nested deeper than {MAX_DEPTH} levels")
        return node

    def _repeat(self, parts: list[Node]) -> None:
        start = self._at
        low, high = self._count()
        if not parts:
            self._fail("nothing stands before this repetition to be repeated", start)
        if high is not None and low > high:
            self._fail(f"a repetition of at least {low} and at most {high}", start)
        if max(low, high or 0) > MAX_REPEATS:
            self._fail(f"at most {MAX_REPEATS} repetitions are allowed", start)
        if parts[-1] is EMPTY:
            return
        parts[-1] = self._measured(Repeat(parts[-1], low, high)) if high != 0 else EMPTY

    def _count(self) -> tuple[int, int | None]:
        suffix = self._here()
        self._at += 1
        if suffix != "{":
            return _SUFFIXES[suffix]
        self._space(lines=True)
        low = self._number()
        self._space(lines=True)
        high: int | None = low
        if self._here() == ",":
            self._at += 1
            self._space(lines=True)
            high = self._number() if _NUMBER.match(self._here()) else None
            self._space(lines=True)
        if self._here() != "}":
            self._fail("expected } to end a repetition")
        self._at += 1
        return low, high

    def _number(self) -> int:
        found = _NUMBER.match(self._text, self._at)
        if not found:
            self._fail("expected a number of repetitions")
        self._at = found.end()
        return int(found.group().lstrip("0")[:9] or 0)

    def _literal(self) -> Node:
        start = self._at
        self._at += 1
        chars = []
        while self._here() != '"':
            place = self._at
            code = self._char(start, "literal")
            if not union([(code, code)]):
                self._fail(f"no text holds the character U+{code:04X}", place)
            chars.append(chr(code))
        self._at += 1
        return Text("".join(chars)) if chars else EMPTY

    def _class(self) -> Node:
        start = self._at
        self._at += 1
        negated = self._here() == "^"
        self._at += negated
        ranges = []
        while self._here() != "]":
            place = self._at
            low = high = self._char(start, "character class")
            if self._here() == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                high = self._char(start, "character class")
            if low > high:
                self._fail(f"the range from U+{low:04X} to U+{high:04X} is in the wrong order", place)
            ranges.append((low, high))
        self._at += 1
        if not ranges:  # llama.cpp makes nothing of [] and [^]
            return EMPTY
        found = complement(union(ranges)) if negated else union(ranges)
        if not found:
            self._fail("no character is in this class", start)
        return Chars(found)

    def _char(self, start: int, what: str) -> int:
        """Reads the code point of a character, which may be escaped. start: where the surrounding part began."""
        c = self._here()
        if not c:
            self._fail(f"this {what} has no end", start)
        self._at += 1
        if c != "\\":
            return ord(c)
        kind = self._here()
        self._at += 1
        if kind in _ESCAPES:
            return ord(_ESCAPES[kind])
        if kind not in _HEX:
            self._fail(f"unknown escape \\{kind}", self._at - 2)
        digits = self._text[self._at : self._at + _HEX[kind]]
        if not re.fullmatch(f"[0-9a-fA-F]{{{_HEX[kind]}}}", digits):
            self._fail(f"expected {_HEX[kind]} hexadecimal digits after \\{kind}", self._at - 2)
        self._at += len(digits)
        return int(digits, 16)

    def _token(self) -> Node:
        start = self._at
        negated = self._here() == "!"
        self._at += negated
        if found := _TOKEN_ID.match(self._text, self._at):
            self._at = found.end()
            return Token(int(found[1]), negated)
        found = _TOKEN_TEXT.match(self._text, self._at)
        if not found or found.group().startswith("<["):
            self._fail("expected a token, such as <[1000]> or <think>", start)
        self._at = found.end()
        if self._token_id is None:
            self._fail(f"the token {found.group()} must be given by its id, such as <[1000]>", start)
        try:
            return Token(self._token_id(found.group()), negated)
        except ValueError as error:
            self._fail(str(error), start)

    def _name(self) -> str:
        name = self._peek_name()
        if not name:
            self._fail("expected the name of a rule: letters, digits and dashes")
        self._at += len(name)
        return name

    def _peek_name(self) -> str:
        found = _NAME.match(self._text, self._at)
        return found.group() if found else ""

    def _here(self) -> str:
        """The next character; empty at the end."""
        return self._text[self._at : self._at + 1]

    def _space(self, lines: bool = False) -> None:
        found = (_SPACE_OR_LINES if lines else _SPACE).match(self._text, self._at)
        assert found is not None
        self._at = found.end()

    def _fail(self, why: str, at: int | None = None) -> NoReturn:
        at = self._at if at is None else at
        line = len(re.findall(r"\r\n|\r|\n", self._text[:at])) + 1
        column = at - max(self._text.rfind("\n", 0, at), self._text.rfind("\r", 0, at))
        raise ValueError(f"the grammar cannot be read: line {line}, column {column}: {why}")
