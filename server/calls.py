"""How models write tool calls: `forced` makes a model write one, `reading` reads them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

_INPUT = re.compile(r'\s*\{\s*"input"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)', re.DOTALL)
_CUT_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*(\\u[0-9a-fA-F]{0,3})$")


@dataclass(frozen=True, kw_only=True)
class Format:
    """marks: texts that begin a call anywhere in an answer; starts: only at its beginning. drops: marks around text
    that are none of it."""

    marks: tuple[str, ...] = ()
    starts: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Objects(Format):
    """JSON behind a mark: an object with a name and arguments, or a list of some. listed: always a list;
    each: each call has the marks around it; ids: calls are numbered; by_name: an object is {name: arguments}.
    gap: between a mark and the JSON."""

    begin: str = "<tool_call>"
    end: str = "</tool_call>"
    name: str = "name"
    arguments: str = "arguments"
    listed: bool = False
    each: bool = False
    ids: bool = False
    by_name: bool = False
    gap: str = ""


@dataclass(frozen=True, kw_only=True)
class Tags(Format):
    """A name and values between tags: Qwen3-Coder's are the defaults. begin, end: around each call, or around all.
    pad: around a value; gap: between tags. typed: a value's tag says whether it is a text."""

    begin: str = "<tool_call>"
    end: str = "</tool_call>"
    each: bool = True
    call: str = "<function="
    named: str = ">"
    called: str = "</function>"
    key: str = "<parameter="
    keyed: str = ">"
    valued: str = "</parameter>"
    pad: str = "\n"
    gap: str = "\n"
    typed: bool = False


@dataclass(frozen=True, kw_only=True)
class Keyed(Format):
    """<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>: GLM. name_end: behind the name;
    suffix: of all tags; outer: around all calls; gap: between tags."""

    name_end: str = ""
    suffix: str = ""
    outer: str = ""
    gap: str = ""

    def tag(self, name: str) -> str:
        return f"<{name}{self.suffix}>"


@dataclass(frozen=True, kw_only=True)
class Hermes(Objects):
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>: Hermes, Qwen 2.5 and 3, and models whose
    template knows no tools."""

    marks: tuple[str, ...] = ("<tool_call>",)
    each: bool = True
    gap: str = "\n"


@dataclass(frozen=True, kw_only=True)
class Xml(Tags):
    """<tool_call><function=name><parameter=key>value</parameter></function></tool_call>: Qwen3-Coder."""

    marks: tuple[str, ...] = ("<tool_call>", "<function=")


@dataclass(frozen=True, kw_only=True)
class Mistral(Format):
    """[TOOL_CALLS][{"name": ..., "arguments": {...}}], or [TOOL_CALLS]name[ARGS]{...} of newer ones."""

    with_args: bool = field(default=False, kw_only=False)
    marks: tuple[str, ...] = ("[TOOL_CALLS]",)


@dataclass(frozen=True, kw_only=True)
class Llama3(Format):
    """{"name": ..., "parameters": {...}}, the whole answer, maybe after <|python_tag|>: Llama 3.1 and later."""

    marks: tuple[str, ...] = ("<|python_tag|>",)
    starts: tuple[str, ...] = ("{",)


@dataclass(frozen=True, kw_only=True)
class DeepSeek(Format):
    """<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>name and JSON: DeepSeek R1 and V3. fenced: the
    JSON stands in a block of code; without, as in V3.1, the name stands before the separator."""

    fenced: bool = field(default=True, kw_only=False)
    marks: tuple[str, ...] = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")


@dataclass(frozen=True, kw_only=True)
class Harmony(Format):
    """A message to functions.name, with JSON: gpt-oss. See `channels`."""


def format_of(template: str | None) -> Format:
    """The format that a chat template shows."""
    source = template or ""
    if "<|channel|>analysis<|message|>" in source:
        return Harmony()
    if "<function=" in source:
        return Xml()
    if "<tool_call>" in source:
        return Hermes()
    if "[TOOL_CALLS]" in source:
        return Mistral("[ARGS]" in source)
    if "<｜tool▁call" in source:
        return DeepSeek("```json" in source)
    if "<|python_tag|>" in source or '"parameters"' in source:
        return Llama3()
    return Hermes()


# ---- tools that take one text ------------------------------------------------------------------------------


def custom_arguments(text: str) -> str:
    """The text as arguments of a function."""
    return json.dumps({"input": text}, ensure_ascii=False)


def custom_input(arguments: str) -> str:
    """The text in the arguments of such a function, which may end early; all of them where they are in another form."""
    found: Any = None
    try:
        found = json.loads(arguments, strict=False)
    except (ValueError, RecursionError):
        if match := _INPUT.match(arguments):
            text = match[1]
            if cut := _CUT_ESCAPE.search(text[-8:]):
                text = text[: len(text) - len(cut[1])]
            found = json.loads(f'"{text}"', strict=False)
    if isinstance(found, dict):
        found = found.get("input", next(iter(found.values())) if len(found) == 1 else None)
    text = found if isinstance(found, str) else arguments
    return text.encode(errors="ignore").decode()  # without half of a surrogate pair
