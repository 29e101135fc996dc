"""How models write tool calls, and the grammar that forces one; `reading` reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyllama_long.server.grammar import Rules, json_text, literal
from pyllama_long.server.schemas.chat import Tool


class Format:
    """marks: texts that begin a call anywhere in an answer; starts: only at its beginning. end: what may follow
    the last call."""

    marks: tuple[str, ...] = ()
    starts: tuple[str, ...] = ()
    end = ""

    def one(self, rules: Rules, tool: Tool, arguments: str) -> str:
        """GBNF of a call; arguments: the rule of its arguments."""
        raise NotImplementedError

    def all(self, one: str, parallel: bool) -> str:
        """GBNF of calls, of the rule of one."""
        return f"({one})+" if parallel else one


class Hermes(Format):
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>: Hermes, Qwen 2.5 and 3, and models whose
    template knows no tools."""

    marks = ("<tool_call>",)

    def one(self, rules: Rules, tool: Tool, arguments: str) -> str:
        name = literal(json_text(tool.function.name))
        return (
            f'"<tool_call>" "\\n"? "{{\\"name\\": " {name} ", \\"arguments\\": " {arguments} "}}" "\\n"? '
            '"</tool_call>" "\\n"?'
        )


class Xml(Format):
    """<tool_call><function=name><parameter=key>value</parameter></function></tool_call>: Qwen3-Coder."""

    marks = ("<tool_call>", "<function=")

    def one(self, rules: Rules, tool: Tool, arguments: str) -> str:
        schema = tool.function.parameters or {}
        properties: dict[str, Any] = schema.get("properties") or {}
        required = set(schema.get("required") or ())
        parts = []
        for key, value in properties.items():
            text = isinstance(value, dict) and value.get("type") == "string"
            whole = {**value, "$defs": schema.get("$defs", {})} if isinstance(value, dict) else value
            rule = (
                '[^<\\n]* "\\n"' if text else rules.schema(whole, f"tools.{tool.function.name}") + ' "\\n"?'
            )
            part = f'{literal(f"<parameter={key}>")} "\\n" {rule} "</parameter>\\n"'
            parts.append(part if key in required else f"({part})?")
        name = literal(f"<function={tool.function.name}>")
        return f'"<tool_call>\\n" {name} "\\n" {" ".join(parts)} "</function>\\n</tool_call>" "\\n"?'


class Mistral(Format):
    """[TOOL_CALLS][{"name": ..., "arguments": {...}}], or [TOOL_CALLS]name[ARGS]{...} of newer ones."""

    marks = ("[TOOL_CALLS]",)

    def __init__(self, with_args: bool) -> None:
        self._with_args = with_args

    def one(self, rules: Rules, tool: Tool, arguments: str) -> str:
        if self._with_args:
            return f'"[TOOL_CALLS]" {literal(tool.function.name)} "[ARGS]" {arguments}'
        name = literal(json_text(tool.function.name))
        return f'"{{\\"name\\": " {name} ", \\"arguments\\": " {arguments} "}}"'

    def all(self, one: str, parallel: bool) -> str:
        if self._with_args:
            return super().all(one, parallel)
        more = f'("," " "? {one})*' if parallel else ""
        return f'"[TOOL_CALLS]" " "? "[" {one} {more} "]"'


class Llama3(Format):
    """{"name": ..., "parameters": {...}}, the whole answer, maybe after <|python_tag|>: Llama 3.1 and later."""

    marks = ("<|python_tag|>",)
    starts = ("{",)

    def one(self, rules: Rules, tool: Tool, arguments: str) -> str:
        name = literal(json_text(tool.function.name))
        return f'"{{\\"name\\": " {name} ", \\"parameters\\": " {arguments} "}}"'

    def all(self, one: str, parallel: bool) -> str:
        return one  # these models write one call


class DeepSeek(Format):
    """<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>name and JSON: DeepSeek R1 and V3."""

    marks = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")
    end = "<｜tool▁calls▁end｜>"
    _END = "<｜tool▁call▁end｜>"
    _FENCE = "```"

    def one(self, rules: Rules, tool: Tool, arguments: str) -> str:
        head = literal(f"{self.marks[1]}function<｜tool▁sep｜>{tool.function.name}\n{self._FENCE}json\n")
        close = literal(f"\n{self._FENCE}{self._END}")
        return f'{head} {arguments} {close} "\\n"?'

    def all(self, one: str, parallel: bool) -> str:
        return f"{literal(self.marks[0])} {super().all(one, parallel)} {literal(self.end)}"


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


def rule(rules: Rules, form: Format, tools: Sequence[Tool], parallel: bool) -> str:
    """GBNF of an answer that calls some of the tools."""
    names = []
    for i, tool in enumerate(tools):
        schema = tool.function.parameters or {"type": "object", "properties": {}}
        arguments = "" if isinstance(form, Xml) else rules.schema(schema, f"tools.{i}.function.parameters")
        names.append(rules.add(f"call-{i}", form.one(rules, tool, arguments)))
    one = rules.add("call", " | ".join(names))
    return form.all(one, parallel)
