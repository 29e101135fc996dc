"""Rules for one value of a call's arguments: as JSON, or as a text between marks."""

from __future__ import annotations

import re
from typing import Any

from llguidance import regex_to_lark

from pyllama_long.json_values import json_text

from .errors import bad
from .grammar import Rules

_BOUND = ("pattern", "minLength", "maxLength")
_MAX_REFERENCES = 8  # references that are followed to the schema of a parameter


def is_text(own: Any) -> bool:
    if not isinstance(own, dict):
        return False
    if "enum" in own or "const" in own:
        return all(isinstance(item, str) for item in own.get("enum", [own.get("const")]))
    kinds = own.get("type")
    return kinds == "string" or (isinstance(kinds, list) and "string" in kinds)


def json_kind(own: Any) -> str:
    kind = own.get("type") if isinstance(own, dict) else None
    kind = {"integer": "number"}.get(kind, kind) if isinstance(kind, str) else None
    return kind if kind in ("number", "boolean", "array", "null") else "object"


def json_value(rules: Rules, value: Any, schema: dict[str, Any], param: str) -> str:
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    return rules.schema({**definitions, **value} if isinstance(value, dict) else value, param)


def text_or_json(rules: Rules, value: Any, schema: dict[str, Any], param: str, end: str, mark: str) -> str:
    """A parameter's value with the text that ends it. Texts are written unchanged, without the mark in them, other
    values as JSON."""
    own, close = resolved(value, schema), rules.literal(end)
    if isinstance(own, dict) and ("enum" in own or "const" in own):
        values = own["enum"] if "enum" in own else [own["const"]]
        shown = [item if isinstance(item, str) else json_text(item) for item in values]
        return f"({' | '.join(map(rules.literal, shown))}) {close}"
    if not is_text(own):
        return f"{json_value(rules, value, schema, param)} {close}"
    if not any(key in own for key in _BOUND):
        return rules.until(end)
    least, most = own.get("minLength", 0), own.get("maxLength", "")
    without = re.escape(mark).replace("/", r"\/")
    text = [f"/(?s:.{{{least},{most}}})/", rf"~/(?s:.*){without}(?s:.*)/"]
    if "pattern" in own:
        text.append(_whole(own["pattern"], param))
    return f"{rules.add('TEXT', ' & '.join(text))} {close}"


def resolved(value: Any, schema: dict[str, Any]) -> Any:
    """The schema that a schema refers to, if it does nothing else."""
    for _ in range(_MAX_REFERENCES):
        found = isinstance(value, dict) and re.fullmatch(
            r"#/(\$defs|definitions)/([^/~]+)", str(value.get("$ref"))
        )
        if not found:
            break
        value = (schema.get(found.group(1)) or {}).get(found.group(2))
    return value


def _whole(pattern: str, param: str) -> str:
    """Turns a pattern that may be found anywhere into an expression for the whole text. Raises ApiError."""
    found = []
    for part in _alternatives(pattern):
        begins, ends = part.startswith("^"), re.search(r"(?<!\\)(\\\\)*\$$", part) is not None
        inner = part[begins : len(part) - ends]
        if re.search(r"(?<![\\\[])[\^$]", re.sub(r"\\.", "", inner)):
            raise bad(f"{param}: a pattern has ^ at its beginning and $ at its end only.", param)
        found.append(f"{'' if begins else '(?s:.*)'}(?:{inner}){'' if ends else '(?s:.*)'}")
    return f"/{regex_to_lark('|'.join(found), 'dw')}/"


def _alternatives(pattern: str) -> list[str]:
    """The alternatives between the outermost |."""
    parts, depth, begin, at, in_class = [], 0, 0, 0, False
    while at < len(pattern):
        c = pattern[at]
        if c == "\\":
            at += 1
        elif in_class:
            in_class = c != "]"
        elif c == "[":
            in_class = True
        elif c in "()":
            depth += 1 if c == "(" else -1
        elif c == "|" and depth == 0:
            parts.append(pattern[begin:at])
            begin = at + 1
        at += 1
    return [*parts, pattern[begin:]]
