"""Values that models write without quotes, converted by the schema of their parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyllama_long.json_values import json_text

from .literals import parsed, plain


def typed(text: str, schema: Any, root: Any, depth: int = 0) -> Any:
    """Converts an unquoted value: its schema decides whether it is a text, a number, true, null or an object. If
    several fit, the first that the schema names is used, but null goes first."""
    if not isinstance(schema, dict) or depth > 8:
        return plain(text)
    if isinstance(schema.get("$ref"), str):
        found = _target(schema["$ref"], root)
        return typed(text, found, root, depth + 1) if found is not root else plain(text)
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(choices, list):
        return next((c for c in choices if (c if isinstance(c, str) else json_text(c)) == text), text)
    kinds = _kinds(schema, root, depth)
    if not kinds:
        return plain(text)
    value = plain(text.strip().lower() if text.strip() in ("True", "False", "None") else text)
    if value is None and "null" in kinds:
        return None
    for kind in kinds:
        if kind == "string":
            return text
        if kind in ("array", "object") and isinstance(value, str):
            value = parsed(text)
        if _fits(value, kind):
            return int(value) if kind == "integer" else value
    return text


def resolved(schema: Any, root: Any) -> dict[str, Any]:
    """The schema that a schema refers to, if it does nothing else; {} for what is not an object."""
    for _ in range(8):
        if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
            break
        schema = _target(schema["$ref"], root)
    return schema if isinstance(schema, dict) else {}


def _target(reference: str, root: Any) -> Any:
    found: Any = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        part = part.replace("~1", "/").replace("~0", "~")
        found = found.get(part) if isinstance(found, dict) and part else found
    return found


def _kinds(schema: Mapping[str, Any], root: Any, depth: int) -> list[str]:
    """The types that a schema names, in order."""
    if depth > 8:
        return []
    kinds = schema.get("type", [])
    found = [kinds] if isinstance(kinds, str) else [k for k in kinds if isinstance(k, str)]
    for key in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(key) or () if not found or key == "allOf" else ():
            if isinstance(part, dict):
                if isinstance(part.get("$ref"), str):
                    name = part["$ref"].rpartition("/")[2]
                    part = {**(root.get("$defs") or {}), **(root.get("definitions") or {})}.get(name) or {}
                found += _kinds(part, root, depth + 1)
    if not found and "properties" in schema:
        return ["object"]
    return found


def _fits(value: Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and (kind == "number" or float(value).is_integer())
    types: dict[str, Any] = {"boolean": bool, "null": type(None), "object": dict, "array": list}
    return isinstance(value, types.get(kind, ()))
