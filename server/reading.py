"""Reads tool calls from an answer that arrives in pieces: each character is looked at only a few times, however long
the call is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from pyllama_long.json_values import json_text, loads

from . import literal_calls, nested, tagged
from .call_formats import SEED
from .calls import (
    Addressed,
    Format,
    Gemma,
    Keyed,
    Named,
    Nested,
    Objects,
    Python,
    Recipients,
    Tags,
    Xml,
)
from .incoming import Call, Cut, Input, NotACall, Schemas, Unfinished, Waiting

_SEP, _CALL_END = "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")
_KIMI = ("<|tool_calls_section_begin|>", "<|tool_call_begin|>")
MARKS = (  # recognized in the answers of all models
    "<tool_call>",
    "<seed:tool_call>",
    "<function=",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    *_DEEPSEEK,
    *_KIMI,
)
ENDS = ("<｜tool▁calls▁end｜>", "<|tool_calls_section_end|>")  # ends of lists of calls
_LONGEST_NAME = 256
_NAMES = ("name", "tool_name")
_ARGUMENTS = ("arguments", "parameters")
_TEXT = r'"(?:[^"\\]|\\.){0,256}"'
_BEGUN = re.compile(
    rf'\s*\{{\s*(?:"tool_call_id"\s*:\s*{_TEXT}\s*,\s*)?"(?:{"|".join(_NAMES)})"\s*:\s*({_TEXT})\s*'
    rf'(?:,\s*"(?:{"|".join(_ARGUMENTS)})"\s*:\s*)?'
)
_BEGUN_BY_NAME = re.compile(rf"\s*\{{\s*({_TEXT})\s*:\s*")


def read(source: Input, mark: str, schemas: Schemas, form: Format) -> Waiting:
    """Reads the calls after a mark. Raises NotACall and Unfinished."""
    if mark and mark not in MARKS:
        return (yield from _OWN[type(form)](source, mark, schemas, form))
    if mark in ("<tool_call>", "<seed:tool_call>"):
        return (yield from _any_tags(source, mark, schemas))
    if mark == "<function=":
        return [(yield from tagged.call(source, schemas, Xml(begin="", end="")))]
    if mark == "[TOOL_CALLS]":
        return (yield from _mistral(source))
    if mark in _DEEPSEEK:
        return (yield from _deepseek(source, mark))
    if mark in _KIMI:
        return (yield from _kimi(source, mark))
    yield from source.space()
    calls = yield from objects(source, schemas)
    while (yield from source.follows(";")):
        source.skip(1)
        yield from source.space()
    return calls


def objects(source: Input, schemas: Schemas, by_name: bool = False) -> Waiting:
    """Reads calls as JSON: an object, or a list of objects. by_name: an object is {name: arguments}."""
    yield from source.space()
    if not (yield from source.follows("[")):
        return [(yield from _object(source, by_name, []))]
    source.skip(1)
    found: list[Call] = []
    while True:
        yield from source.space()
        if source.ended and not source.text:
            raise Unfinished(*found)
        if found and (yield from source.follows("]")):
            source.skip(1)
            return found
        if found:
            if not (yield from source.follows(",")):
                raise NotACall
            source.skip(1)
        found.append((yield from _object(source, by_name, found)))


def _object(source: Input, by_name: bool, before: list[Call]) -> Waiting:
    try:
        text = yield from source.value()
    except Cut as cut:
        raise Unfinished(*before, *_begun(cut.text, by_name)) from None
    except Unfinished:
        raise Unfinished(*before) from None
    return _call(parsed(text), by_name)


def _own_objects(source: Input, mark: str, schemas: Schemas, form: Any) -> Waiting:
    """Reads calls of a format that defines the marks around them."""
    found: list[Call] = []
    try:
        while True:
            found += yield from objects(source, schemas, form.by_name)
            yield from source.space()
            if not (yield from source.follows("{")) or form.listed or form.each:
                break
    except Unfinished as unfinished:
        raise Unfinished(*found, *unfinished.calls) from None
    if form.end and (yield from source.follows(form.end)):
        source.skip(len(form.end))
    return found


def _any_tags(source: Input, mark: str, schemas: Schemas) -> Waiting:
    """Reads what models write between tags of the same name: JSON, Qwen3-Coder's parameters or GLM's keys."""
    end = f"</{mark[1:]}"
    yield from source.space()
    if (yield from source.follows("{", "[")):
        calls = yield from objects(source, schemas)
    elif (yield from source.follows("<function=")):
        source.skip(len("<function="))
        calls = [(yield from tagged.call(source, schemas, Xml() if mark == "<tool_call>" else SEED))]
    else:
        return [(yield from tagged.keyed(source, schemas, Keyed()))]
    yield from source.space()
    if (yield from source.follows(end)):
        source.skip(len(end))
    return calls


def _mistral(source: Input) -> Waiting:
    yield from source.space()
    if (yield from source.follows("[", "{")) and not source.text.startswith("[ARGS]"):
        return (yield from objects(source, {}))
    heads: list[str] = []
    mark = yield from source.until(("[ARGS]", "[CALL_ID]", "{"), heads.append)
    name = "".join(heads).strip()
    if mark == "[CALL_ID]":
        mark = yield from source.until(("[ARGS]", "{"), lambda _: None)
    if not mark:
        raise Unfinished
    if mark == "{":
        source.text = "{" + source.text
        source.taken.pop()
    return [Call(name, (yield from arguments(source, name)))]


def _deepseek(source: Input, mark: str) -> Waiting:
    if mark == _DEEPSEEK[0]:
        yield from source.space()
        if not (yield from source.follows(_DEEPSEEK[1])):
            raise Unfinished if source.ended and not source.text else NotACall
        source.skip(len(_DEEPSEEK[1]))
    heads: list[str] = []
    if not (yield from source.until((_SEP,), heads.append)):
        raise Unfinished
    name = "".join(heads).strip()
    if name in ("", "function"):  # R1 and V3; V3.1 has the name here
        names: list[str] = []
        if not (yield from source.until(("\n",), names.append)):
            raise Unfinished
        name = "".join(names).strip()
    yield from source.space()
    if (yield from source.follows("```json")):
        source.skip(len("```json"))
    value = yield from arguments(source, name)
    yield from source.until((_CALL_END,), lambda _: None)
    return [Call(name, value)]


def _kimi(source: Input, mark: str) -> Waiting:
    if mark == _KIMI[0]:
        yield from source.space()
        if not (yield from source.follows(_KIMI[1])):
            raise Unfinished if source.ended and not source.text else NotACall
        source.skip(len(_KIMI[1]))
    heads: list[str] = []
    if not (yield from source.until(("<|tool_call_argument_begin|>",), heads.append)):
        raise Unfinished
    head = "".join(heads).strip().removeprefix("functions.")
    name = head.rpartition(":")[0] or head
    value = yield from arguments(source, name)
    yield from source.until(("<|tool_call_end|>",), lambda _: None)
    return [Call(name, value)]


def _own_named(source: Input, mark: str, schemas: Schemas, form: Named) -> Waiting:
    if mark == form.begin:
        yield from source.space()
        if not (yield from source.follows(form.call)):
            raise Unfinished if source.ended and form.call.startswith(source.text) else NotACall
        source.skip(len(form.call))
    heads: list[str] = []
    if not (yield from source.until((form.named,), heads.append)):
        raise Unfinished
    name = "".join(heads)
    if form.id_end:
        name = name.rpartition(form.id_end)[2]
    name = name.strip()
    value = yield from arguments(source, name)
    yield from source.until((form.called,), lambda _: None)
    return [Call(name, value)]


def _recipient(source: Input, mark: str, schemas: Schemas, form: Recipients) -> Waiting:
    """Reads the arguments that follow a name; none for `all`, since that is text."""
    while "\n" not in source.text and len(source.text) < _LONGEST_NAME and not source.ended:
        source.looked += len(source.text)
        yield
    name, end, _ = source.text[:_LONGEST_NAME].partition("\n")
    if name.strip() == "all" and (end or source.ended):
        source.skip(len(name) + len(end))
        return []
    if name.strip() not in schemas:
        names = (*schemas, "all")
        raise Unfinished if source.ended and any(n.startswith(name) for n in names) else NotACall
    if not end:
        raise Unfinished
    source.skip(len(name) + len(end))
    return [Call(name.strip(), (yield from arguments(source, name.strip())))]


def arguments(source: Input, name: str) -> Waiting:
    try:
        text = yield from source.value()
    except Cut as cut:
        raise Unfinished(Call(name, cut.text)) from None
    return json_text(parsed(text))


def parsed(text: str) -> Any:
    """Raises NotACall for anything that is not JSON."""
    try:
        return loads(text, strict=False)  # models write unescaped line breaks in texts
    except ValueError:
        raise NotACall from None


def _call(value: Any, by_name: bool) -> Call:
    if not isinstance(value, dict):
        raise NotACall
    if by_name:
        if len(value) != 1:
            raise NotACall
        ((name, given),) = value.items()
    else:
        name = next((value[key] for key in _NAMES if key in value), None)
        given = next((value[key] for key in _ARGUMENTS if key in value), {})
    if not isinstance(name, str):
        raise NotACall
    return Call(name, given if isinstance(given, str) else json_text(given))


def _begun(text: str, by_name: bool) -> list[Call]:
    """The call in a JSON text that is cut."""
    match = (_BEGUN_BY_NAME if by_name else _BEGUN).match(text)
    if match is None:
        return []
    rest = text[match.end() :]
    try:
        name = str(json.loads(match[1], strict=False))
    except ValueError:  # an escape that JSON does not have
        return []
    return [Call(name, rest if rest[:1] in ("{", "[") else "")]


_OWN: dict[type[Format], Callable[[Input, str, Schemas, Any], Waiting]] = {
    Objects: _own_objects,
    Tags: tagged.own,
    Addressed: tagged.own,
    Keyed: tagged.own_keyed,
    Nested: nested.read,
    Named: _own_named,
    Recipients: _recipient,
    Python: literal_calls.python,
    Gemma: literal_calls.gemma,
}
