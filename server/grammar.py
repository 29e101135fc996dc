"""Structured output: JSON schemas to GBNF, with bounds on what a request may ask for."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

from llama_cpp.llama_grammar import BuiltinRule, SchemaConverter

from pyllama_long.server.errors import ApiError, bad
from pyllama_long.server.pattern import CONTROL, rewrite

MAX_BYTES = 1 << 18  # of a grammar
MAX_DEPTH = 32  # of a schema
MAX_NODES = 4096
MAX_REPEATS = 200  # llama.cpp's parser calls itself for each
MAX_PROPERTIES = 256
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
_REPEAT = re.compile(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}")
_LONG_LITERALS = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|#[^\n]*')

# Anything up to </think>, which ends it.
THINKING = r'( [^<] | "<" [^/] | "</" [^t] )* "</think>" [ \t\n]*'


# A character of a JSON string, which holds no control characters.
CHARACTER = rf'[^"\\{CONTROL}] | "\\" (["\\/bfnrt] | "u" {" ".join(["[0-9a-fA-F]"] * 4)})'
_ANY = {"type": ["object", "array", "string", "number", "boolean", "null"]}
_DATA = ("const", "enum", "default", "examples")  # keywords whose values are no schemas
_MAPS = ("properties", "patternProperties", "$defs", "definitions")  # whose values are schemas by name


class _Converter(SchemaConverter):
    """Whose strings are JSON, whatever stands in them."""

    def _format_literal(self, text: str) -> str:
        return literal(_readable(text))

    def _add_primitive(self, name: str, rule: Any) -> Any:
        return super()._add_primitive(name, BuiltinRule(CHARACTER) if name == "char" else rule)

    def _add_rule(self, name: str, rule: str) -> Any:
        return super()._add_rule(name, CHARACTER if name == "dot" else rule)  # type: ignore[no-untyped-call]

    def _visit_pattern(self, pattern: str, name: str) -> Any:
        return super()._visit_pattern(rewrite(pattern), name)  # type: ignore[no-untyped-call]


class Rules:
    """A grammar in the making. Raises ApiError for schemas that it cannot take."""

    def __init__(self) -> None:
        self._converter: Any = _Converter(  # type: ignore[no-untyped-call]
            prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False
        )
        self._schemas = 0

    def schema(self, schema: Any, param: str) -> str:
        """The name of a rule for JSON that fits the schema."""
        _check(schema, param)
        self._schemas += 1
        own = _with_own_definitions(schema, self._schemas)
        try:
            own = self._converter.resolve_refs(own, f"schema-{self._schemas}")
            return str(self._converter.visit(own, f"schema-{self._schemas}"))
        except ApiError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise bad(f"{param}: no grammar can be made of this schema: {reason}", param) from None

    def add(self, name: str, body: str) -> str:
        return str(self._converter._add_rule(name, body))

    def build(self, root: str) -> str:
        """The grammar, whose first rule is root."""
        self._converter._rules["root"] = root
        rules = self._converter._rules
        text = "\n".join(f"{name} ::= {rules[name]}" for name in ("root", *sorted(rules.keys() - {"root"})))
        return check(text, "response_format")


def literal(text: str) -> str:
    """A text in GBNF."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def _readable(text: str) -> str:
    """JSON with its characters as they are, but for halves of surrogate pairs."""
    plain = json_text(json.loads(text))
    try:
        plain.encode()
    except UnicodeEncodeError:
        return text
    return plain


def check(text: str, param: str) -> str:
    """A grammar that a client may give. Raises ApiError when it is too large or repeats too much."""
    if len(text.encode()) > MAX_BYTES:
        raise bad(f"{param}: the grammar is larger than {MAX_BYTES} bytes.", param, "grammar_too_large")
    depth = 0
    bare = _LONG_LITERALS.sub("", text)
    for c in bare:
        depth += (c in "([") - (c in ")]" and depth > 0)
        if depth > MAX_REPEATS + MAX_DEPTH:
            raise bad(f"{param}: the grammar is nested too deeply.", param, "grammar_too_large")
    total = 1
    for match in _REPEAT.finditer(bare):
        count = max(int(n[:9] or 0) for n in (match.group(1), match.group(2) or "0"))
        if count > MAX_REPEATS:
            raise bad(f"{param}: at most {MAX_REPEATS} repetitions.", param, "grammar_too_large")
        # Repetitions may stand inside one another, which multiplies what llama.cpp makes of them.
        total *= max(1, count)
        if total > 1_000_000:
            raise bad(f"{param}: the repetitions multiply to too many.", param, "grammar_too_large")
    return text


def _check(schema: Any, param: str) -> None:
    for nodes, (value, depth, kind) in enumerate(_walk(schema), 1):
        if depth > MAX_DEPTH:
            raise bad(
                f"{param}: the schema is nested deeper than {MAX_DEPTH} levels.", param, "schema_too_large"
            )
        if nodes > MAX_NODES:
            raise bad(f"{param}: the schema has more than {MAX_NODES} values.", param, "schema_too_large")
        if isinstance(value, dict) and kind == "schema":
            _check_object(value, param)


def _walk(schema: Any) -> Iterator[tuple[Any, int, str]]:
    """(value, depth, kind) of all values: those of kind "schema" are schemas, or lists of them."""
    stack = [(schema, 0, "schema")]
    while stack:
        value, depth, kind = stack.pop()
        yield value, depth, kind
        if isinstance(value, list):
            stack += [(item, depth + 1, kind) for item in value]
        elif isinstance(value, dict):
            for key, item in value.items():
                inner = kind if kind == "data" else "schema"
                if kind == "schema":
                    inner = "data" if key in _DATA else "map" if key in _MAPS else "schema"
                stack.append((item, depth + 1, inner))


def _check_object(value: dict[str, Any], param: str) -> None:
    for key in _COUNTS:
        count = value.get(key, 0)
        if isinstance(count, int) and not 0 <= count <= MAX_REPEATS:
            raise bad(f"{param}: {key} must be from 0 to {MAX_REPEATS}.", param, "schema_too_large")
    for key in ("enum", "anyOf", "oneOf"):
        if value.get(key) == []:
            raise bad(f"{param}: {key} is empty, so that nothing fits.", param)
    low, high = (value.get(key) for key in ("minItems", "maxItems"))
    low, high = (value.get(key) for key in ("minLength", "maxLength")) if high is None else (low, high)
    if isinstance(low, int) and isinstance(high, int) and low > high:
        raise bad(f"{param}: a minimum of {low} is above the maximum of {high}.", param)
    pattern = value.get("pattern")
    if isinstance(pattern, str):
        total = 1
        for match in _REPEAT.finditer(pattern):
            total *= max(int(n[:9] or 1) for n in (match.group(1) or "1", match.group(2) or "1"))
        if len(pattern) > 512 or total > MAX_REPEATS:
            raise bad(f"{param}: the pattern is too long or repeats too much.", param, "schema_too_large")
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError):
            raise bad(f"{param}: the pattern is no regular expression.", param) from None
    properties = value.get("properties")
    if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
        raise bad(f"{param}: more than {MAX_PROPERTIES} properties.", param, "schema_too_large")
    ref = value.get("$ref")
    if isinstance(ref, str) and not re.match(r"^#/(\$defs|definitions)/[^/]+$", ref):
        raise bad(f"{param}: $ref must point into #/$defs/.", param)


def _with_own_definitions(schema: Any, number: int) -> Any:
    """A copy as the converter takes it, whose definitions have the schema's number in their names: rules get these."""
    schema = copy.deepcopy(schema)
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:  # the converter would look for definitions no further
        schema["anyOf"] = [{"$ref": schema.pop("$ref")}]
    for key in ("$defs", "definitions"):
        if isinstance(schema.get(key), dict):
            schema[key] = {f"{name}-{number}": item for name, item in schema[key].items()}
    for value, _, kind in _walk(schema):
        if not isinstance(value, dict) or kind == "data":
            continue
        if kind == "schema" and isinstance(value.get("$ref"), str):
            value["$ref"] += f"-{number}"
        for key in [key for key, item in value.items() if item is True and _holds_schema(key, kind)]:
            value[key] = _ANY
    return schema


def _holds_schema(key: str, kind: str) -> bool:
    """Whether `true` at this key stands for a schema that all values fit."""
    return kind == "map" or key == "items"


def json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
