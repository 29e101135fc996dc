"""Reads calls whose arguments are unquoted between tags: Qwen3-Coder's, MiniMax's, GLM's and others'."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from pyllama_long.json_values import json_text

from .calls import Keyed, Tags
from .incoming import Call, Cut, Input, NotACall, Schemas, Unfinished, Waiting
from .literals import plain
from .values import typed

_AHEAD = 512  # characters that distinguish an end from a value that looks like one


def own(source: Input, mark: str, schemas: Schemas, form: Tags) -> Waiting:
    """Reads all calls after a mark of a format."""
    found: list[Call] = []
    if mark == form.call:
        return [(yield from call(source, schemas, form))]
    while True:
        yield from source.space()
        if not (yield from source.follows(form.call)):
            break
        source.skip(len(form.call))
        try:
            found.append((yield from call(source, schemas, form)))
        except Unfinished as unfinished:
            raise Unfinished(*found, *unfinished.calls) from None
    if not found:
        raise Unfinished if source.ended and form.call.startswith(source.text) else NotACall
    if source.ended and source.text and any(m.startswith(source.text) for m in (form.call, form.end)):
        source.skip(len(source.text))
    if form.end and (yield from source.follows(form.end)):
        source.skip(len(form.end))
    return found


def call(source: Input, schemas: Schemas, form: Tags) -> Waiting:
    """Reads a call after its first tag: a name, then values or a JSON object. A value may contain the format's own
    marks: it ends where it is followed by the next one or by the call's end."""
    heads: list[str] = []
    if not (yield from source.until((form.stop,), heads.append)):
        raise Unfinished
    name = "".join(heads).partition('"')[0].strip()
    if name not in schemas:
        raise NotACall
    schema = schemas[name]
    properties = schema.get("properties") or {}
    following, end = _behind(form)
    yield from source.space()
    if (yield from source.follows("{")):
        try:
            text = yield from source.value()
        except Cut as cut:
            raise Unfinished(Call(name, cut.text)) from None
        yield from source.until((form.called,), lambda _: None)
        value = plain(text)
        if isinstance(value, str):
            raise NotACall
        return Call(name, json_text(value))
    values: dict[str, Any] = {}
    while (yield from source.follows(form.key)):
        source.skip(len(form.key))
        heads = []
        if not (yield from source.until((form.stop,), heads.append)):
            raise Unfinished(part_of(name, values))
        head = "".join(heads)
        key = head.partition('"')[0].strip()
        parts: list[str] = []
        while True:
            if not (yield from source.until((form.valued,), parts.append)):
                raise Unfinished(part_of(name, values))
            ahead = yield from source.ahead(_AHEAD)
            match = following.match(ahead)
            known = match is not None and match[1] not in values and match[1] != key
            if match is not None and properties and match[1] not in properties:
                known = False
            if known or end.match(ahead) or (source.ended and not ahead.strip()):
                break
            parts.append(form.valued)
        text = "".join(parts)
        if form.pad:
            text = text.removeprefix(form.pad).removesuffix(form.pad)
        if form.cdata and text.startswith("<![CDATA[") and text.endswith("]]>"):
            text = text[9:-3]
        if form.typed and key not in properties:
            values[key] = text if 'string="true"' in head or 'type="string"' in head else plain(text)
        else:
            values[key] = typed(text, properties.get(key), schema)
        yield from source.space()
    if not (yield from source.follows(form.called)):
        if source.ended and form.called.startswith(source.text):
            raise Unfinished(part_of(name, values))
        raise NotACall
    source.skip(len(form.called))
    return Call(name, json_text(values))


@cache
def _behind(form: Tags) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What may follow a value: the next one, with its name, or the end of the call."""
    end = rf"\s{{0,64}}{re.escape(form.called)}"
    if form.end or not form.each:
        more = "" if form.each else rf"{re.escape(form.call)}|"
        end += rf"\s{{0,64}}(?:{more}{re.escape(form.end)}|\Z)"
    return re.compile(rf'\s{{0,64}}{re.escape(form.key)}([^>"\n]{{1,256}})[">]'), re.compile(end)


def own_keyed(source: Input, mark: str, schemas: Schemas, form: Keyed) -> Waiting:
    begin = form.tag("tool_call")
    if mark != begin:
        yield from source.space()
        if not (yield from source.follows(begin)):
            raise Unfinished if source.ended and begin.startswith(source.text) else NotACall
        source.skip(len(begin))
    return [(yield from keyed(source, schemas, form))]


def keyed(source: Input, schemas: Schemas, form: Keyed) -> Waiting:
    """name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>"""
    close, begin = form.tag("/tool_call"), form.tag("arg_key")
    heads: list[str] = []
    mark = yield from source.until((begin, close, "{"), heads.append)
    name = "".join(heads).strip()
    if form.separated:
        name = name.removesuffix(form.tag("tool_sep")).strip()
    if not mark or mark == "{" or name not in schemas:
        raise Unfinished if source.ended and not mark else NotACall
    values: dict[str, Any] = {}
    schema = schemas[name]
    properties = schema.get("properties") or {}
    while mark == begin:
        keys: list[str] = []
        parts: list[str] = []
        for texts, stop in ((keys, form.tag("/arg_key")), ([], form.tag("arg_value"))):
            if not (yield from source.until((stop,), texts.append)):
                raise Unfinished(part_of(name, values))
        while True:
            if not (yield from source.until((form.tag("/arg_value"),), parts.append)):
                raise Unfinished(part_of(name, values))
            ahead = (yield from source.ahead(_AHEAD)).lstrip()
            if ahead.startswith((begin, close)) or (source.ended and not ahead):
                break
            parts.append(form.tag("/arg_value"))
        key = "".join(keys).strip()
        values[key] = typed("".join(parts), properties.get(key), schema)
        mark = yield from source.until((begin, close), lambda _: None)
    return Call(name, json_text(values))


def part_of(name: str, values: dict[str, Any]) -> Call:
    """The call if its arguments end within a value."""
    return Call(name, json_text(values)[:-1])
