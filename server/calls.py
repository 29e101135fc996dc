"""How models write tool calls: `forced` makes a model write one, `reading` reads them."""

from __future__ import annotations


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
