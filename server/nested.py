"""Reads calls whose arguments are nested elements: MiniMax M3's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyllama_long.json_values import json_text

from .calls import Nested
from .incoming import Call, Input, NotACall, Schemas, Unfinished, Waiting
from .tagged import part_of
from .values import resolved, typed

_DEPTH = 64
_LONGEST_NAME = 256


def read(source: Input, mark: str, schemas: Schemas, form: Nested) -> Waiting:
    """Reads all calls after the first mark."""
    found: list[Call] = []
    try:
        while True:
            yield from source.space()
            if found and (yield from source.follows(form.end)):
                source.skip(len(form.end))
                return found
            if not (yield from source.follows(form.call)):
                if not found:
                    raise Unfinished if source.ended and form.call.startswith(source.text) else NotACall
                return found
            source.skip(len(form.call))
            found.append((yield from _call(source, schemas, form)))
    except Unfinished as unfinished:
        raise Unfinished(*found, *unfinished.calls) from None


def _call(source: Input, schemas: Schemas, form: Nested) -> Waiting:
    name = yield from _name(source)
    name = name.removesuffix('"')
    if name not in schemas:
        raise NotACall
    schema, values = schemas[name], dict[str, Any]()
    try:
        while True:
            yield from source.space()
            if (yield from source.follows(form.called)):
                source.skip(len(form.called))
                return Call(name, json_text(values))
            key = yield from _opened(source, form)
            values[key] = yield from _value(source, form, key, _of(schema, key, schema), schema, 0)
    except Unfinished:
        raise Unfinished(part_of(name, values)) from None


def _opened(source: Input, form: Nested) -> Waiting:
    """Reads the name of the element that begins here."""
    if not (yield from source.follows(f"{form.space}<")):
        raise Unfinished if source.ended and f"{form.space}<".startswith(source.text) else NotACall
    source.skip(len(form.space) + 1)
    return (yield from _name(source))


def _name(source: Input) -> Waiting:
    """Reads up to a tag's end."""
    while ">" not in source.text[:_LONGEST_NAME] and len(source.text) < _LONGEST_NAME and not source.ended:
        source.looked += len(source.text)
        yield
    name, end, _ = source.text[:_LONGEST_NAME].partition(">")
    if not end:
        raise Unfinished if source.ended else NotACall
    source.skip(len(name) + 1)
    return name


def _value(source: Input, form: Nested, key: str, schema: Any, root: Any, depth: int) -> Waiting:
    """Reads the contents of an element, which are a text or elements, and its end."""
    if depth > _DEPTH:
        raise NotACall
    close = f"</{key}>"
    parts: list[str] = []
    while True:
        if not (yield from source.until((form.space,), parts.append)):
            raise Unfinished
        if (yield from source.follows(close)):
            source.skip(len(close))
            return _leaf("".join(parts), schema, root)
        if not "".join(parts).strip() and (yield from source.follows("<")):
            break
        parts.append(form.space)
    found: list[tuple[str, Any]] = []
    source.skip(1)
    while True:
        name = yield from _name(source)
        inner = _items(schema, root) if name == "item" else _of(schema, name, root)
        found.append((name, (yield from _value(source, form, name, inner, root, depth + 1))))
        yield from source.space()
        if (yield from source.follows(form.space + close)):
            source.skip(len(form.space) + len(close))
            break
        if not (yield from source.follows(f"{form.space}<")):
            raise Unfinished if source.ended else NotACall
        source.skip(len(form.space) + 1)
    if all(name == "item" for name, _ in found):
        return [value for _, value in found]
    return dict(found)


def _leaf(text: str, schema: Any, root: Any) -> Any:
    kind = resolved(schema, root).get("type")
    if not text.strip() and kind in ("object", "array"):
        return {} if kind == "object" else []
    return typed(text, schema, root)


def _of(schema: Any, key: str, root: Any) -> Any:
    properties = resolved(schema, root).get("properties")
    return properties.get(key) if isinstance(properties, Mapping) else None


def _items(schema: Any, root: Any) -> Any:
    return resolved(schema, root).get("items")
