"""Structured output: JSON schemas and the texts around them as one grammar, within bounds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from pyllama_long.grammar import Lark, json_error
from pyllama_long.json_values import json_text

from .errors import bad

MAX_DEPTH = 64  # levels of a schema
MAX_NODES = 20_000
MAX_PROPERTIES = 1000
MAX_PATTERN = 8192  # characters
MAX_MULTIPLE = 10_000  # since each remainder is a state
MAX_LEAST = 1_000_000  # the most items or characters that a schema may require
# patterns that may apply to one value before the compilation is tried in a process that can be ended
_PATTERNS = 4
_TRIAL_S = 2.0

_DATA = ("const", "enum", "default", "examples")  # keywords whose values are not schemas
# keywords with schemas by name
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_OPEN = ("additionalProperties", "patternProperties", "unevaluatedProperties")
_BESIDE_REFERENCE = {"$ref", "$defs", "definitions", "title", "description", "default", "examples"}
_WHITE = r" |\n[ \t]{0,20}"  # white space between the tokens of JSON: what models write, but never endless
# Formats of the JSON Schema standard; others are notes, as the standard has it.
_FORMATS = frozenset(
    "date-time date time duration email idn-email hostname idn-hostname ipv4 ipv6 uri uri-reference iri "
    "iri-reference uuid uri-template json-pointer relative-json-pointer regex".split()
)


class Rules:
    """Builds a grammar in llguidance's Lark. controls: ids of control tokens by name, since they are not text. Raises
    ApiError for schemas that it cannot express."""

    def __init__(self, controls: Mapping[str, int] | None = None) -> None:
        self._rules: dict[str, str] = {}
        self._controls = dict(controls or {})
        names = sorted(self._controls, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, names))) if names else None

    def schema(self, schema: Any, param: str) -> str:
        """The name of a rule for JSON that fits the schema."""
        return self.add("json", f"%json {json.dumps(checked(schema, param))}")

    def add(self, name: str, body: str) -> str:
        """Adds a rule and returns its name, which begins with `name`."""
        name = f"{name}_{len(self._rules)}"
        self._rules[name] = body
        return name

    def literal(self, text: str) -> str:
        """A literal text; names of control tokens in it become those tokens."""
        if self._control is None:
            return json_text(text)
        parts, at = [], 0
        for found in self._control.finditer(text):
            parts += [json_text(text[at : found.start()])] if found.start() > at else []
            parts.append(f"<[{self._controls[found.group()]}]>")
            at = found.end()
        parts += [json_text(text[at:])] if at < len(text) or not parts else []
        return " ".join(parts)

    def until(self, end: str) -> str:
        """A rule for any text up to the first `end`, which it includes."""
        if self._control is not None and self._control.match(end):
            return self.add("text", f"/(?s:.*)/ {self.literal(end)}")
        name = self.add("text", "/(?s:.*)/")
        self._rules[f"{name}[suffix={json_text(end)}]"] = self._rules.pop(name)
        return name

    def build(self, root: str) -> Lark:
        return Lark("\n".join([f"start: {root}", *(f"{name}: {body}" for name, body in self._rules.items())]))


def checked(schema: Any, param: str) -> Any:
    """The schema for llguidance: without options of its own, and with keywords that it would ignore refused. Raises
    ApiError that names the keyword."""
    schema = json.loads(json.dumps(schema))  # a copy
    patterns, merged = 0, False
    for nodes, (value, depth, kind) in enumerate(_walk(schema), 1):
        if depth > MAX_DEPTH:
            message = f"{param}: the schema is nested deeper than {MAX_DEPTH} levels."
            raise bad(message, param, "schema_too_large")
        if nodes > MAX_NODES:
            raise bad(f"{param}: the schema has more than {MAX_NODES} values.", param, "schema_too_large")
        if isinstance(value, dict) and kind == "schema":
            _check_object(value, param)
            patterns += sum(key in value for key in ("pattern", "format", "patternProperties"))
            merged = merged or _is_merged(value)
    if not isinstance(schema, dict):
        if not isinstance(schema, bool):
            raise bad(f"{param}: a schema is an object, true or false.", param)
        schema = {} if schema else {"not": {}}
    if not merged:
        _close(schema)
    schema["x-guidance"] = {"whitespace_pattern": _WHITE}
    text = json.dumps(schema)
    if patterns > _PATTERNS and merged and not _is_quick(text):
        raise bad(f"{param}: too many patterns meet in one value.", param, "schema_too_large")
    error = json_error(text)
    if error.startswith("oneOf"):
        error = "oneOf is taken only where at most one of its schemas can fit: use anyOf"
    if error:
        raise bad(f"{param}: no grammar can be made of this schema: {error}", param)
    return schema


def _is_merged(value: dict[str, Any]) -> bool:
    """Whether keywords from several places constrain one value."""
    if "allOf" in value or ("properties" in value and ("anyOf" in value or "oneOf" in value)):
        return True
    return "$ref" in value and not value.keys() <= _BESIDE_REFERENCE


def _close(schema: dict[str, Any]) -> None:
    """Allows no properties besides those that the schema names, unless it says so: models would keep inventing
    them."""
    for value, _, kind in _walk(schema):
        if kind != "schema" or not isinstance(value, dict) or not isinstance(value.get("properties"), dict):
            continue
        named = value["properties"].keys()
        if value.keys().isdisjoint(_OPEN) and set(_texts(value.get("required"))) <= named:
            value["additionalProperties"] = False


def _is_quick(text: str) -> bool:
    """Whether a compilation ends in time, tried in a process that can be ended: the cost of some patterns doubles
    with each one."""
    program = (
        "import sys, llguidance as l; "
        "l.LLMatcher.validate_grammar(l.LLMatcher.grammar_from_json_schema(sys.stdin.read()))"
    )
    try:
        subprocess.run(
            [sys.executable, "-I", "-c", program], input=text.encode(), timeout=_TRIAL_S, capture_output=True
        )
    except subprocess.TimeoutExpired:
        return False
    return True


def _check_object(value: dict[str, Any], param: str) -> None:
    value.pop("x-guidance", None)
    for key in ("anyOf", "oneOf", "allOf", "enum"):
        if key in value and value[key] == []:
            raise bad(f"{param}: {key} is empty: nothing fits it.", param)
    properties = value.get("properties")
    if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
        raise bad(f"{param}: more than {MAX_PROPERTIES} properties.", param, "schema_too_large")
    for key in ("minItems", "minLength"):
        if isinstance(value.get(key), int) and value[key] > MAX_LEAST:
            raise bad(
                f"{param}: {key} is above {MAX_LEAST}: no answer is that long.", param, "schema_too_large"
            )
    multiple = value.get("multipleOf")
    if isinstance(multiple, (int, float)) and abs(multiple) > MAX_MULTIPLE:
        raise bad(f"{param}: multipleOf is above {MAX_MULTIPLE}.", param, "schema_too_large")
    pattern = value.get("pattern")
    if isinstance(pattern, str) and len(pattern) > MAX_PATTERN:
        raise bad(f"{param}: a pattern is longer than {MAX_PATTERN} characters.", param, "schema_too_large")
    if isinstance(value.get("format"), str) and value["format"] not in _FORMATS:
        del value["format"]
    if isinstance(value.get("$ref"), str):
        value["$ref"] = quote(value["$ref"], safe="#/$%~:?&=+,;@!*'()[]-._")
    least = value.get("minProperties")
    if isinstance(least, int) and least <= len(set(_texts(value.get("required")))):
        del value["minProperties"]
    elif least is not None:
        raise bad(f"{param}: no grammar can be made of minProperties.", param)


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _walk(schema: Any) -> Iterator[tuple[Any, int, str]]:
    """Yields (value, depth, kind) for all values; those of kind "schema" are schemas or lists of schemas."""
    stack = [(schema, 0, "schema")]
    while stack:
        value, depth, kind = stack.pop()
        yield value, depth, kind
        if isinstance(value, list):
            stack += [(item, depth + 1, kind) for item in value]
        elif isinstance(value, dict):
            stack += [(item, depth + 1, _kind(key, kind)) for key, item in value.items()]


def _kind(key: str, kind: str) -> str:
    """The kind of the value at `key` in a value of a kind."""
    if kind == "schema":
        return "data" if key in _DATA else "map" if key in _MAPS else "schema"
    return "schema" if kind == "map" else "data"
