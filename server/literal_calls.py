"""Reads calls whose arguments are literals: Python's as LFM2 writes them, and Gemma's."""

from __future__ import annotations

import re
from typing import Any

from pyllama_long.json_values import json_text

from .calls import Gemma, Python
from .incoming import Call, Cut, Input, NotACall, Schemas, Unfinished, Waiting
from .literals import quoted, value
from .values import typed

_NAME = re.compile(r"[\w.\-]{0,256}")


def python(source: Input, mark: str, schemas: Schemas, form: Python) -> Waiting:
    """[name(key="value"), ...], or one call without the brackets."""
    found: list[Call] = []
    try:
        yield from source.space()
        listed = yield from source.follows("[")
        source.skip(len(listed))
        while True:
            yield from source.space()
            if found and listed and (yield from source.follows("]")):
                source.skip(1)
                break
            if found:
                if not listed or not (yield from source.follows(",")):
                    break
                source.skip(1)
                yield from source.space()
            name = yield from _name(source)
            if name not in schemas or not (yield from source.follows("(")):
                raise Unfinished if source.ended and not source.text else NotACall
            source.skip(1)
            found.append((yield from _call(source, name, schemas, "=", ")", ("'", '"'))))
    except Unfinished as unfinished:
        raise Unfinished(*found, *unfinished.calls) from None
    yield from _end(source, form.end)
    return found


def gemma(source: Input, mark: str, schemas: Schemas, form: Gemma) -> Waiting:
    """name{key:<|"|>value<|"|>}"""
    name = yield from _name(source)
    if name not in schemas or not (yield from source.follows("{")):
        raise Unfinished if source.ended and not source.text else NotACall
    source.skip(1)
    call = yield from _call(source, name, schemas, ":", "}", (form.quote, '"'))
    yield from _end(source, form.end)
    return [call]


def _end(source: Input, mark: str) -> Waiting:
    yield from source.space()
    if (yield from source.follows(mark)):
        source.skip(len(mark))
    elif source.ended and mark.startswith(source.text):
        source.skip(len(source.text))


def _name(source: Input) -> Waiting:
    while True:
        match = _NAME.match(source.text)
        n = 0 if match is None else match.end()
        source.looked += n + 1
        if n < len(source.text) or source.ended:
            return source.skip(n)
        yield


def _call(
    source: Input, name: str, schemas: Schemas, equals: str, close: str, quotes: tuple[str, ...]
) -> Waiting:
    """Reads the arguments of a call up to the mark that closes them. Raises Unfinished with the part that is
    there."""
    schema, values = schemas[name], dict[str, Any]()
    properties = schema.get("properties") or {}

    def part(more: str = "") -> Unfinished:
        text = json_text(values)[:-1] + (", " if more and values else "") + more
        return Unfinished(Call(name, text))

    while True:
        yield from source.space()
        if (yield from source.follows(close)):
            source.skip(1)
            return Call(name, json_text(values))
        if values and (yield from source.follows(",")):
            source.skip(1)
            yield from source.space()
        if source.ended and not source.text:
            raise part()
        quote = yield from source.follows(*quotes)
        try:
            key = yield from (quoted(source, quote, quotes) if quote else _name(source))
            yield from source.space()
            if source.ended and not source.text:
                raise part()
            if not key or not (yield from source.follows(equals)):
                raise NotACall
            source.skip(1)
            yield from source.space()
        except Cut:
            raise part() from None
        try:
            found, text = yield from value(source, quotes, 0)
        except Cut as cut:
            raise part(f"{json_text(key)}: {cut.text}" if cut.text else "") from None
        values[key] = found if text is None else typed(text, properties.get(key), schema)
        if text is not None and key not in properties:
            values[key] = found
