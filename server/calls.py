"""How models write tool calls: reading them out of an answer, and the grammar that forces one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyllama_long.server.grammar import Rules, json_text, literal
from pyllama_long.server.schemas.chat import Tool

_DECODER = json.JSONDecoder(strict=False)  # models write line breaks into strings as they are


@dataclass(frozen=True)
class Call:
    """arguments: JSON text."""

    name: str
    arguments: str


class NotACall(Exception):
    """What looked like the beginning of a call is text."""


class Format:
    """marks: texts that begin a call anywhere in an answer; starts: only at its beginning. end: what may follow
    the last call."""

    marks: tuple[str, ...] = ()
    starts: tuple[str, ...] = ()
    end = ""

    def take(self, text: str) -> tuple[list[Call], str] | None:
        """Calls at the beginning of text, which begins with a mark, and the text after them; None when more
        of it is needed. Raises NotACall."""
        raise NotImplementedError

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

    def take(self, text: str) -> tuple[list[Call], str] | None:
        body = text[len("<tool_call>") :].lstrip()
        found = _json(body)
        if found is None:
            return None
        value, rest = found
        call, rest = _call(value, "arguments"), rest.lstrip()
        end = "</tool_call>"
        if len(rest) < len(end) and end.startswith(rest):
            return None
        return [call], rest.removeprefix(end).lstrip("\n")

    def one(self, rules: Rules, tool: Tool, arguments: str) -> str:
        name = literal(json_text(tool.function.name))
        return (
            f'"<tool_call>" "\\n"? "{{\\"name\\": " {name} ", \\"arguments\\": " {arguments} "}}" "\\n"? '
            '"</tool_call>" "\\n"?'
        )


class Xml(Format):
    """<tool_call><function=name><parameter=key>value</parameter></function></tool_call>: Qwen3-Coder."""

    marks = ("<tool_call>", "<function=")
    _PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)

    def take(self, text: str) -> tuple[list[Call], str] | None:
        inner = text.removeprefix("<tool_call>").lstrip()
        if not inner.startswith("<function="):
            if "<function=".startswith(inner[:10]):
                return None
            raise NotACall
        end = inner.find("</function>")
        if end < 0:
            return None
        name, _, body = inner[len("<function=") : end].partition(">")
        values = {key.strip(): _value(value) for key, value in self._PARAMETER.findall(body)}
        rest, close = inner[end + len("</function>") :], "</tool_call>"
        if text.startswith("<tool_call>"):
            rest = rest.lstrip()
            if len(rest) < len(close) and close.startswith(rest):
                return None
            rest = rest.removeprefix(close).lstrip("\n")
        return [Call(name.strip(), json_text(values))], rest

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

    def take(self, text: str) -> tuple[list[Call], str] | None:
        body = text[len("[TOOL_CALLS]") :].lstrip()
        if not body:
            return None
        if body[0] in "[{":
            found = _json(body)
            if found is None:
                return None
            values = found[0] if isinstance(found[0], list) else [found[0]]
            return [_call(value, "arguments") for value in values], found[1].lstrip()
        if "{" not in body:
            return None
        name = body[: body.index("{")]
        found = _json(body[len(name) :])
        if found is None:
            return None
        name = name.split("[CALL_ID]")[0].replace("[ARGS]", "").strip()
        return [Call(name, json_text(found[0]))], found[1].lstrip()

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

    def take(self, text: str) -> tuple[list[Call], str] | None:
        body = text.removeprefix("<|python_tag|>").lstrip()
        if body and body[0] != "{":
            raise NotACall
        found = _json(body)
        if found is None:
            return None
        return [_call(found[0], "parameters")], found[1].lstrip("; \n")

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

    def take(self, text: str) -> tuple[list[Call], str] | None:
        body = text.removeprefix(self.marks[0]).lstrip()
        end = body.find(self._END)
        if end < 0:
            return None
        inner = body[:end].removeprefix(self.marks[1])
        name, _, value = inner.rpartition("<｜tool▁sep｜>")
        if name.strip() not in ("", "function"):  # V3.1: name, separator, arguments
            found, called = _json(value.strip()), name.strip()
        else:
            called, _, value = value.partition("\n")
            fenced = value.strip().removeprefix(f"{self._FENCE}json").removesuffix(self._FENCE)
            found = _json(fenced.strip())
        if found is None:
            raise NotACall
        return [Call(called.strip(), json_text(found[0]))], body[end + len(self._END) :].lstrip()

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


def _json(text: str) -> tuple[Any, str] | None:
    """The JSON value that a text begins with, and the rest; None when it has not ended. Raises NotACall."""
    if not text:
        return None
    try:
        value, end = _DECODER.raw_decode(text)
    except RecursionError:
        raise NotACall from None
    except json.JSONDecodeError:
        if _ended(text):
            raise NotACall from None
        return None
    return value, text[end:]


def _ended(text: str) -> bool:
    """Whether the brackets of a text have been closed, or it cannot become JSON."""
    if text[0] not in "{[":
        return True
    depth, quoted, escaped = 0, False, False
    for c in text:
        if quoted:
            quoted, escaped = escaped or c != '"', c == "\\" and not escaped
        elif c == '"':
            quoted = True
        else:
            depth += (c in "{[") - (c in "}]")
            if depth == 0:
                return True
    return False


def _call(value: Any, key: str) -> Call:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise NotACall
    arguments = value.get(key, value.get("arguments", value.get("parameters", {})))
    return Call(value["name"], arguments if isinstance(arguments, str) else json_text(arguments))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
