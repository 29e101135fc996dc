#!/usr/bin/env python3
"""Functions of `ggml_ext/` with more than seven parameters: one line each, then how many.

A long list of arguments is read by counting; a struct has names (`CONTRIBUTING.md`). Definitions and declarations are
found in the text, without a compiler, so that files of every instruction set are seen on every machine. Function-like
macros, calls and lambdas are not looked at. Exit status 1 where there is such a function.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

LIMIT = 7

# Everything that is not code: comments, strings and characters, and preprocessor lines with their continuations.
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_STRING = re.compile(r'"(?:\\.|[^"\\\n])*"' + r"|'(?:\\.|[^'\\\n])*'")
_DIRECTIVE = re.compile(r"^[ \t]*#(?:\\\n|[^\n])*", re.MULTILINE)

# A type or a qualifier, then a name and its list: calls have an operator, a bracket or a `return` before their name.
_HEAD = re.compile(r"([\w>*&])(\s*[\s*&]\s*)([A-Za-z_][\w:]*)\s*\(")
_NO_TYPE = {"return", "else", "case", "new", "throw", "goto", "delete", "do"}


def functions(text: str) -> Iterator[tuple[int, str, int]]:
    """(line, name, number of parameters) of each definition and declaration in C or C++ text."""
    text = _blank(_DIRECTIVE, _blank(_STRING, _blank(_COMMENT, text)))
    for head in _HEAD.finditer(text):
        before = re.search(r"\w*$", text[: head.end(1)])
        if before is not None and before.group() in _NO_TYPE:
            continue
        parameters, end = _list(text, head.end())
        after = text[end : end + 40].lstrip()
        if after.startswith(("{", ";", "const", "noexcept", "override", ":")):
            yield text.count("\n", 0, head.start(3)) + 1, head.group(3), parameters


def _blank(what: re.Pattern[str], text: str) -> str:
    """The text with each match replaced by spaces; its lines stay where they are."""
    return what.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), text)


def _list(text: str, at: int) -> tuple[int, int]:
    """The number of parameters of a list that begins at `at`, and where it has ended."""
    depth, commas, angles, start = 1, 0, 0, at
    while at < len(text) and depth:
        char = text[at]
        depth += (char in "([{") - (char in ")]}")
        angles = max(0, angles + (char == "<") - (char == ">"))
        commas += char == "," and depth == 1 and not angles
        at += 1
    inside = text[start : at - 1].strip()
    return (0 if inside in ("", "void") else commas + 1), at


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    total = over = 0
    for path in sorted((root / "ggml_ext").rglob("*")):
        if path.suffix not in (".c", ".h", ".cpp"):
            continue
        for line, name, parameters in functions(path.read_text(encoding="utf-8")):
            total += 1
            if parameters > LIMIT:
                over += 1
                print(f"{path.relative_to(root)}:{line}: {name} has {parameters} parameters")
    print(f"{over} of {total} definitions and declarations have more than {LIMIT} parameters")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
