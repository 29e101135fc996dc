"""Reading calls of tools out of an answer that comes in pieces: each character is looked at a few times, however long
the call is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pyllama_long.server.grammar import json_text

Waiting = Generator[None, None, Any]  # which yields when it needs more text

_DECODER = json.JSONDecoder(strict=False)  # models write line breaks into strings as they are
_STRUCTURE = re.compile(r'["{}\[\]]|[^\s\w.,:+\-]')
_IN_STRING = re.compile(r'["\\]')
_NEXT = re.compile(r"\s{0,64}<parameter=([^>\n]{1,256})>")
_AHEAD = 512  # characters that tell an end from a value that looks like one
_SEP, _CALL_END = "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")
_KIMI = ("<|tool_calls_section_begin|>", "<|tool_call_begin|>")
MARKS = (
    "<tool_call>",
    "<seed:tool_call>",
    "<function=",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    *_DEEPSEEK,
    *_KIMI,
)
CONTROL = ("[TOOL_CALLS]", "<|python_tag|>", *_DEEPSEEK, *_KIMI)  # which models have as control tokens
ENDS = ("<｜tool▁calls▁end｜>", "<|tool_calls_section_end|>")  # of lists of calls

Schemas = Mapping[str, Mapping[str, Any]]  # of the arguments of each function


@dataclass(frozen=True)
class Call:
    """arguments: JSON text."""

    name: str
    arguments: str


class NotACall(Exception):
    """What looked like the beginning of a call is text."""


class Unfinished(Exception):
    """The answer ended within a call. call: what there is of it, with arguments that end where the answer does."""

    def __init__(self, call: Call | None = None) -> None:
        self.call = call


@dataclass
class Input:
    """text: what has come and is not read yet; taken: what has been read since a call began. looked: characters that
    were searched, for tests."""

    text: str = ""
    ended: bool = False
    taken: list[str] = field(default_factory=list)
    looked: int = 0

    def skip(self, n: int) -> str:
        read, self.text = self.text[:n], self.text[n:]
        self.taken.append(read)
        return read

    def until(self, marks: tuple[str, ...], sink: Callable[[str], object]) -> Waiting:
        """The first of the marks, when what stands before it has been given to the sink; "" at the end."""
        pattern = _pattern(marks)
        while True:
            self.looked += len(self.text)
            match = pattern.search(self.text)
            if match is not None:
                sink(self.skip(match.start()))
                return self.skip(len(match[0]))
            kept = 0 if self.ended else overlap(self.text, marks)
            sink(self.skip(len(self.text) - kept))
            if self.ended:
                return ""
            yield

    def space(self) -> Waiting:
        """Skips white space."""
        while True:
            rest = self.text.lstrip()
            self.looked += len(self.text) - len(rest) + 1
            self.skip(len(self.text) - len(rest))
            if rest or self.ended:
                return None
            yield

    def ahead(self, n: int) -> Waiting:
        """The next n characters, or as many as there are, without reading them."""
        while len(self.text) < n and not self.ended:
            yield
        self.looked += min(n, len(self.text))
        return self.text[:n]

    def follows(self, *options: str) -> Waiting:
        """The option that comes next, which is not read; "" when none does."""
        while True:
            self.looked += max(map(len, options))
            found = next((o for o in options if self.text.startswith(o)), "")
            if found or self.ended or not any(o.startswith(self.text) for o in options):
                return found
            yield

    def value(self) -> Waiting:
        """A text of JSON that is an object or a list. Raises NotACall, and Unfinished with no call."""
        yield from self.space()
        if self.text[:1] not in ("{", "["):
            raise Unfinished if self.ended and not self.text else NotACall
        parts: list[str] = []
        depth, quoted, escaped = 0, False, False
        while True:
            text, i = self.text, 0
            self.looked += len(text)
            while i < len(text):
                if escaped:
                    i, escaped = i + 1, False
                    continue
                match = (_IN_STRING if quoted else _STRUCTURE).search(text, i)
                if match is None:
                    i = len(text)
                    break
                i, c = match.end(), match[0]
                if c == '"':
                    quoted = not quoted
                elif quoted:
                    escaped = True
                elif c in "{[":
                    depth += 1
                elif c in "}]":
                    depth -= 1
                else:
                    raise NotACall
                if depth == 0:
                    parts.append(self.skip(i))
                    return "".join(parts)
            parts.append(self.skip(i))
            if self.ended:
                raise _Cut("".join(parts))
            yield


class _Cut(Unfinished):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


def read(source: Input, mark: str, schemas: Schemas) -> Waiting:
    """The calls behind a mark. Raises NotACall and Unfinished."""
    if mark in ("<tool_call>", "<seed:tool_call>"):
        return (yield from _tagged(source, mark, schemas))
    if mark == "<function=":
        return [(yield from _xml(source, "", schemas))]
    if mark == "[TOOL_CALLS]":
        return (yield from _mistral(source))
    if mark in _DEEPSEEK:
        return (yield from _deepseek(source, mark))
    if mark in _KIMI:
        return (yield from _kimi(source, mark))
    yield from source.space()
    calls = yield from _objects(source)
    while (yield from source.follows(";")):
        source.skip(1)
        yield from source.space()
    return calls


def _objects(source: Input) -> Waiting:
    """Calls as JSON: an object with a name, or a list of some."""
    try:
        text = yield from source.value()
    except _Cut as cut:
        raise Unfinished(_begun(cut.text)) from None
    value = _parsed(text)
    values = value if isinstance(value, list) else [value]
    if not values:
        raise NotACall
    return [_call(one) for one in values]


def _tagged(source: Input, mark: str, schemas: Schemas) -> Waiting:
    close = f"</{mark[1:]}"
    yield from source.space()
    if (yield from source.follows("{", "[")):
        calls = yield from _objects(source)
    elif (yield from source.follows("<function=")):
        source.skip(len("<function="))
        calls = [(yield from _xml(source, close, schemas))]
    else:
        return [(yield from _keyed(source, close, schemas))]
    yield from source.space()
    if (yield from source.follows(close)):
        source.skip(len(close))
    return calls


def _xml(source: Input, close: str, schemas: Schemas) -> Waiting:
    """name><parameter=key>value</parameter></function>, as Qwen3-Coder writes it; or name>{...}</function>. A value may
    hold the format's own marks: it ends where the next parameter or the call's end stands behind it."""
    name = yield from _name(source, ">", schemas)
    schema = schemas[name]
    properties = schema.get("properties") or {}
    end = re.compile(
        rf"\s{{0,64}}</function>\s{{0,64}}(?:{re.escape(close)}|\Z)" if close else r"\s{0,64}</function>"
    )
    yield from source.space()
    if (yield from source.follows("{")):
        value = yield from _arguments(source, name)
        yield from source.until(("</function>",), lambda _: None)
        return Call(name, value)
    values: dict[str, Any] = {}
    while (yield from source.follows("<parameter=")):
        source.skip(len("<parameter="))
        heads: list[str] = []
        if not (yield from source.until((">",), heads.append)):
            raise Unfinished(_part_of(name, values))
        key = "".join(heads).strip()
        parts: list[str] = []
        while True:
            if not (yield from source.until(("</parameter>",), parts.append)):
                raise Unfinished(_part_of(name, values))
            ahead = yield from source.ahead(_AHEAD)
            following = _NEXT.match(ahead)
            known = following is not None and following[1] not in values and following[1] != key
            if following is not None and properties and following[1] not in properties:
                known = False
            if known or end.match(ahead) or (source.ended and not ahead.strip()):
                break
            parts.append("</parameter>")
        values[key] = typed(_unwrapped("".join(parts)), properties.get(key), schema)
        yield from source.space()
    if not (yield from source.follows("</function>")):
        if source.ended:
            raise Unfinished(_part_of(name, values))
        raise NotACall
    source.skip(len("</function>"))
    return Call(name, json_text(values))


def _keyed(source: Input, close: str, schemas: Schemas) -> Waiting:
    """name<arg_key>key</arg_key><arg_value>value</arg_value>: GLM's."""
    heads: list[str] = []
    mark = yield from source.until(("<arg_key>", close, "{"), heads.append)
    name = "".join(heads).strip()
    if not mark or mark == "{" or name not in schemas:
        raise Unfinished if source.ended and not mark else NotACall
    values: dict[str, Any] = {}
    schema = schemas[name]
    properties = schema.get("properties") or {}
    while mark == "<arg_key>":
        keys: list[str] = []
        parts: list[str] = []
        for texts, stop in ((keys, "</arg_key>"), ([], "<arg_value>")):
            if not (yield from source.until((stop,), texts.append)):
                raise Unfinished(_part_of(name, values))
        while True:
            if not (yield from source.until(("</arg_value>",), parts.append)):
                raise Unfinished(_part_of(name, values))
            ahead = (yield from source.ahead(_AHEAD)).lstrip()
            if ahead.startswith(("<arg_key>", close)) or (source.ended and not ahead):
                break
            parts.append("</arg_value>")
        key = "".join(keys).strip()
        values[key] = typed("".join(parts), properties.get(key), schema)
        mark = yield from source.until(("<arg_key>", close), lambda _: None)
    return Call(name, json_text(values))


def _mistral(source: Input) -> Waiting:
    yield from source.space()
    if (yield from source.follows("[", "{")) and not source.text.startswith("[ARGS]"):
        return (yield from _objects(source))
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
    return [Call(name, (yield from _arguments(source, name)))]


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
    value = yield from _arguments(source, name)
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
    name = "".join(heads).strip().removeprefix("functions.").rpartition(":")[0]
    value = yield from _arguments(source, name)
    yield from source.until(("<|tool_call_end|>",), lambda _: None)
    return [Call(name, value)]


def _arguments(source: Input, name: str) -> Waiting:
    try:
        text = yield from source.value()
    except _Cut as cut:
        raise Unfinished(Call(name, cut.text)) from None
    return json_text(_parsed(text))


def _name(source: Input, stop: str, schemas: Schemas) -> Waiting:
    heads: list[str] = []
    if not (yield from source.until((stop,), heads.append)):
        raise Unfinished
    name = "".join(heads).strip()
    if name not in schemas:
        raise NotACall
    return name


def _parsed(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        raise NotACall from None


def _call(value: Any) -> Call:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise NotACall
    arguments = value.get("arguments", value.get("parameters", {}))
    return Call(value["name"], arguments if isinstance(arguments, str) else json_text(arguments))


def _begun(text: str) -> Call | None:
    """The last call in a text of JSON that is cut."""
    match = re.match(
        r'\s*\[?\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.){0,256}")\s*,\s*"(?:arguments|parameters)"\s*:\s*', text
    )
    if match is None:
        named = re.match(r'\s*\[?\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.){0,256}")', text)
        return Call(str(json.loads(named[1], strict=False)), "") if named else None
    return Call(str(json.loads(match[1], strict=False)), text[match.end() :])


def _part_of(name: str, values: Mapping[str, Any]) -> Call:
    return Call(name, json_text(dict(values))[:-1])


def _unwrapped(text: str) -> str:
    """A value without the line breaks around it, which are the format's."""
    return text.removeprefix("\n").removesuffix("\n")


def typed(text: str, schema: Any, root: Any, depth: int = 0) -> Any:
    """A value that is written without quotes: what its schema allows decides whether it is a text, a number, true,
    null or an object. Where several fit, the first that the schema names does; null before them."""
    if not isinstance(schema, dict) or depth > 8:
        return _plain(text)
    if isinstance(schema.get("$ref"), str):
        found: Any = root
        for part in schema["$ref"].removeprefix("#").strip("/").split("/"):
            part = part.replace("~1", "/").replace("~0", "~")
            found = found.get(part) if isinstance(found, dict) and part else found
        return typed(text, found, root, depth + 1) if found is not root else _plain(text)
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(choices, list):
        return next((c for c in choices if (c if isinstance(c, str) else json_text(c)) == text), text)
    kinds = _kinds(schema, root, depth)
    if not kinds:
        return _plain(text)
    value = _plain(text.strip().lower() if text.strip() in ("True", "False", "None") else text)
    if value is None and "null" in kinds:
        return None
    for kind in kinds:
        if kind == "string":
            return text
        if _fits(value, kind):
            return int(value) if kind == "integer" else value
    return text


def _kinds(schema: Mapping[str, Any], root: Any, depth: int) -> list[str]:
    """The types that a schema names, in its order."""
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


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


@cache
def _pattern(marks: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))))


def overlap(text: str, marks: tuple[str, ...]) -> int:
    """Length of the longest end of text that begins one of the marks without being all of it."""
    most = min(len(text), max((len(mark) for mark in marks), default=1) - 1)
    for n in range(most, 0, -1):
        if any(mark.startswith(text[-n:]) for mark in marks):
            return n
    return 0
