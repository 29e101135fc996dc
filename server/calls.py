"""How models write tool calls: `forced` makes a model write one, `reading` reads them."""

from __future__ import annotations

import json
import re
from typing import Any

_INPUT = re.compile(r'\s*\{\s*"input"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)', re.DOTALL)
_CUT_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*(\\u[0-9a-fA-F]{0,3})$")


class Format:
    """marks: texts that begin a call anywhere in an answer; starts: only at its beginning. end: what may follow
    the last call."""

    marks: tuple[str, ...] = ()
    starts: tuple[str, ...] = ()
    end = ""


class Hermes(Format):
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>: Hermes, Qwen 2.5 and 3, and models whose
    template knows no tools."""

    marks = ("<tool_call>",)


class Xml(Format):
    """<tool_call><function=name><parameter=key>value</parameter></function></tool_call>: Qwen3-Coder."""

    marks = ("<tool_call>", "<function=")


class Mistral(Format):
    """[TOOL_CALLS][{"name": ..., "arguments": {...}}], or [TOOL_CALLS]name[ARGS]{...} of newer ones."""

    marks = ("[TOOL_CALLS]",)

    def __init__(self, with_args: bool) -> None:
        self.with_args = with_args


class Llama3(Format):
    """{"name": ..., "parameters": {...}}, the whole answer, maybe after <|python_tag|>: Llama 3.1 and later."""

    marks = ("<|python_tag|>",)
    starts = ("{",)


class DeepSeek(Format):
    """<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>name and JSON: DeepSeek R1 and V3."""

    marks = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")
    end = "<｜tool▁calls▁end｜>"


def format_of(template: str | None) -> Format:
    """The format that a chat template shows."""
    source = template or ""
    if "<function=" in source:
        return Xml()
    if "<tool_call>" in source:
        return Hermes()
    if "[TOOL_CALLS]" in source:
        return Mistral("[ARGS]" in source)
    if "<｜tool▁call" in source:
        return DeepSeek()
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
