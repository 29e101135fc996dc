"""The grammar of an answer that has to call a tool, in the format that the model writes calls in."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from llguidance import regex_to_lark

from pyllama_long.server import calls, channels
from pyllama_long.server.errors import bad
from pyllama_long.server.grammar import Rules, json_text
from pyllama_long.server.schemas.chat import Tool

_NOTHING: dict[str, Any] = {"type": "object", "properties": {}}
_BOUND = ("pattern", "minLength", "maxLength")
_MOST_REFERENCES = 8  # that are followed to the schema of a parameter


def rule(rules: Rules, form: calls.Format, tools: Sequence[Tool], parallel: bool) -> str:
    """An answer that calls some of the tools; parallel: or several of them. Raises ApiError."""
    one, several = _FORMATS.get(type(form), _FORMATS[calls.Hermes])
    names = [
        rules.add("call", one(rules, form, tool, f"tools.{i}.function.parameters"))
        for i, tool in enumerate(tools)
    ]
    return several(rules, form, rules.add("calls", " | ".join(names)), parallel)


_One = Callable[[Rules, Any, Tool, str], str]
_Several = Callable[[Rules, Any, str, bool], str]


def _repeated(rules: Rules, form: calls.Format, one: str, parallel: bool) -> str:
    return f"{one}+" if parallel else one


def _single(rules: Rules, form: calls.Format, one: str, parallel: bool) -> str:
    return one


def _arguments(rules: Rules, tool: Tool, param: str) -> str:
    return rules.schema(tool.function.parameters or _NOTHING, param)


def _object(rules: Rules, tool: Tool, param: str, key: str) -> str:
    """{"name": NAME, key: {...}}"""
    head = f'{{"name": {json_text(tool.function.name)}, "{key}": '
    return f'{rules.literal(head)} {_arguments(rules, tool, param)} "}}"'


def _hermes(rules: Rules, form: calls.Hermes, tool: Tool, param: str) -> str:
    begin, end = rules.literal("<tool_call>"), rules.literal("</tool_call>")
    return f'{begin} "\\n"? {_object(rules, tool, param, "arguments")} "\\n"? {end} "\\n"?'


def _mistral(rules: Rules, form: calls.Mistral, tool: Tool, param: str) -> str:
    if not form.with_args:
        return _object(rules, tool, param, "arguments")
    head = rules.literal(f"[TOOL_CALLS]{tool.function.name}[ARGS]")
    return f"{head} {_arguments(rules, tool, param)}"


def _mistral_list(rules: Rules, form: calls.Mistral, one: str, parallel: bool) -> str:
    if form.with_args:
        return _repeated(rules, form, one, parallel)
    more = f'("," " "? {one})*' if parallel else ""
    return f'{rules.literal("[TOOL_CALLS]")} " "? "[" {one} {more} "]"'


def _llama3(rules: Rules, form: calls.Llama3, tool: Tool, param: str) -> str:
    return _object(rules, tool, param, "parameters")


def _deepseek(rules: Rules, form: calls.DeepSeek, tool: Tool, param: str) -> str:
    head = rules.literal(f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{tool.function.name}\n```json\n")
    return (
        f'{head} {_arguments(rules, tool, param)} {rules.literal(chr(10) + "```<｜tool▁call▁end｜>")} "\\n"?'
    )


def _deepseek_list(rules: Rules, form: calls.DeepSeek, one: str, parallel: bool) -> str:
    begin, end = rules.literal("<｜tool▁calls▁begin｜>"), rules.literal("<｜tool▁calls▁end｜>")
    return f"{begin} {_repeated(rules, form, one, parallel)} {end}"


def _harmony(rules: Rules, form: calls.Harmony, tool: Tool, param: str) -> str:
    return channels.call_rule(rules, tool.function.name, _arguments(rules, tool, param))


# ---- values between marks ----------------------------------------------------------------------------------


def _xml(rules: Rules, form: calls.Xml, tool: Tool, param: str) -> str:
    schema: dict[str, Any] = tool.function.parameters or _NOTHING
    properties: dict[str, Any] = schema.get("properties") or {}
    required = set(schema.get("required") or ())
    parts = []
    for key, value in properties.items():
        begin = rules.literal(f"<parameter={key}>\n")
        part = f"{begin} {_value(rules, value, schema, f'{param}.{key}')}"
        parts.append(part if key in required else f"({part})?")
    begin = rules.literal(f"<tool_call>\n<function={tool.function.name}>\n")
    return f'{begin} {" ".join(parts)} {rules.literal("</function>" + chr(10) + "</tool_call>")} "\\n"?'


_END = "\n</parameter>\n"


def _value(rules: Rules, value: Any, schema: dict[str, Any], param: str) -> str:
    """A parameter's value with the mark that ends it. Texts stand as they are, other values as JSON."""
    own = _resolved(value, schema)
    end = rules.literal(_END)
    if isinstance(own, dict) and ("enum" in own or "const" in own):
        values = own["enum"] if "enum" in own else [own["const"]]
        shown = [item if isinstance(item, str) else json_text(item) for item in values]
        return f"({' | '.join(map(rules.literal, shown))}) {end}"
    kinds = own.get("type") if isinstance(own, dict) else None
    if kinds != "string" and not (isinstance(kinds, list) and "string" in kinds):
        definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        whole = {**definitions, **value} if isinstance(value, dict) else value
        return f"{rules.schema(whole, param)} {end}"
    assert isinstance(own, dict)
    if not any(key in own for key in _BOUND):
        return rules.until(_END)
    least, most = own.get("minLength", 0), own.get("maxLength", "")
    text = [f"/(?s:.{{{least},{most}}})/", r"~/(?s:.*)<\/parameter>(?s:.*)/"]
    if "pattern" in own:
        text.append(_whole(own["pattern"], param))
    return f"{rules.add('TEXT', ' & '.join(text))} {end}"


def _resolved(value: Any, schema: dict[str, Any]) -> Any:
    """What a schema refers to, where it only does that."""
    for _ in range(_MOST_REFERENCES):
        found = isinstance(value, dict) and re.fullmatch(
            r"#/(\$defs|definitions)/([^/~]+)", str(value.get("$ref"))
        )
        if not found:
            break
        value = (schema.get(found.group(1)) or {}).get(found.group(2))
    return value


def _whole(pattern: str, param: str) -> str:
    """A pattern that may be found anywhere, as an expression of the whole text. Raises ApiError."""
    found = []
    for part in _alternatives(pattern):
        begins, ends = part.startswith("^"), re.search(r"(?<!\\)(\\\\)*\$$", part) is not None
        inner = part[begins : len(part) - ends]
        if re.search(r"(?<![\\\[])[\^$]", re.sub(r"\\.", "", inner)):
            raise bad(f"{param}: a pattern has ^ at its beginning and $ at its end only.", param)
        found.append(f"{'' if begins else '(?s:.*)'}(?:{inner}){'' if ends else '(?s:.*)'}")
    return f"/{regex_to_lark('|'.join(found), 'dw')}/"


def _alternatives(pattern: str) -> list[str]:
    """The parts between the outermost |."""
    parts, depth, begin, at, in_class = [], 0, 0, 0, False
    while at < len(pattern):
        c = pattern[at]
        if c == "\\":
            at += 1
        elif in_class:
            in_class = c != "]"
        elif c == "[":
            in_class = True
        elif c in "()":
            depth += 1 if c == "(" else -1
        elif c == "|" and depth == 0:
            parts.append(pattern[begin:at])
            begin = at + 1
        at += 1
    return [*parts, pattern[begin:]]


_FORMATS: dict[type[calls.Format], tuple[_One, _Several]] = {
    calls.Hermes: (_hermes, _repeated),
    calls.Xml: (_xml, _repeated),
    calls.Mistral: (_mistral, _mistral_list),
    calls.Llama3: (_llama3, _single),  # these models write one call
    calls.DeepSeek: (_deepseek, _deepseek_list),
    calls.Harmony: (_harmony, _single),
}
