"""The grammar of an answer that must call a tool, in the model's own format of calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pyllama_long.json_values import json_text

from . import calls, channels, value_rules
from .grammar import Rules
from .schemas.conversation import Tool

_NOTHING: dict[str, Any] = {"type": "object", "properties": {}}


def rule(rules: Rules, form: calls.Format, tools: Sequence[Tool], parallel: bool) -> str:
    """The rule of an answer that calls one of the tools; parallel: or several. Raises ApiError."""
    one, several = _FORMATS[type(form)]
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


def _objects(rules: Rules, form: calls.Objects, tool: Tool, param: str) -> str:
    """{"name": NAME, "arguments": {...}}"""
    name = json_text(tool.function.name)
    if form.by_name:
        return f'{rules.literal(f"{{{name}: ")} {_arguments(rules, tool, param)} "}}"'
    number = (
        f"{rules.literal('{' + json_text('tool_call_id') + ': ' + chr(34))} /[0-9]{{1,3}}/ "
        if form.ids
        else ""
    )
    head = f'", "{form.name}": ' if form.ids else f'{{"{form.name}": '
    head = rules.literal(f'{head}{name}, "{form.arguments}": ')
    return f'{number}{head} {_arguments(rules, tool, param)} "}}"'


def _object_list(rules: Rules, form: calls.Objects, one: str, parallel: bool) -> str:
    gap = f"{rules.literal(form.gap)}? " if form.gap else ""
    begin, end = rules.literal(form.begin), rules.literal(form.end) if form.end else ""
    if form.listed:
        white = r"/\n? {0,8}/"
        more = f'("," {white} {one})*' if parallel else ""
        return f'{begin} "[" {white} {one} {more} {white} "]" {end}'
    if form.each:
        return _repeated(rules, form, f"({begin} {gap} {one} {gap} {end} {gap})", parallel)
    if form.gap:
        return f"{begin} {gap} {_repeated(rules, form, f'({one} {gap})', parallel)} {end}"
    return f"{begin} {one} {end}"


def _mistral(rules: Rules, form: calls.Mistral, tool: Tool, param: str) -> str:
    if not form.with_args:
        return _objects(rules, calls.Hermes(), tool, param)
    head = rules.literal(f"[TOOL_CALLS]{tool.function.name}[ARGS]")
    return f"{head} {_arguments(rules, tool, param)}"


def _mistral_list(rules: Rules, form: calls.Mistral, one: str, parallel: bool) -> str:
    if form.with_args:
        return _repeated(rules, form, one, parallel)
    more = f'("," " "? {one})*' if parallel else ""
    return f'{rules.literal("[TOOL_CALLS]")} " "? "[" {one} {more} "]"'


_LLAMA3 = calls.Objects(begin="", arguments="parameters")


def _llama3(rules: Rules, form: calls.Llama3, tool: Tool, param: str) -> str:
    return _objects(rules, _LLAMA3, tool, param)


def _named(rules: Rules, form: calls.Named, tool: Tool, param: str) -> str:
    id = f"/{form.id}/ {rules.literal(form.id_end)} " if form.id else ""
    number = f"{rules.literal(':')} /[0-9]{{1,3}}/ " if form.numbered else ""
    head = f"{rules.literal(form.call)} {id} {rules.literal(tool.function.name)} {number} {rules.literal(form.named)}"
    return f"{head} {_arguments(rules, tool, param)} {rules.literal(form.called)}"


def _named_list(rules: Rules, form: calls.Named, one: str, parallel: bool) -> str:
    begin, end = (rules.literal(mark) if mark else "" for mark in (form.begin, form.end))
    return f"{begin} {_repeated(rules, form, one, parallel)} {end}"


def _recipient(rules: Rules, form: calls.Recipients, tool: Tool, param: str) -> str:
    return f"{rules.literal(tool.function.name + chr(10))} {_arguments(rules, tool, param)}"


def _recipients(rules: Rules, form: calls.Recipients, one: str, parallel: bool) -> str:
    return f"{one} ({rules.literal(form.marks[0])} {one})*" if parallel else one


def _deepseek(rules: Rules, form: calls.DeepSeek, tool: Tool, param: str) -> str:
    if not form.fenced:
        head = rules.literal(f"<｜tool▁call▁begin｜>{tool.function.name}<｜tool▁sep｜>")
        return f"{head} {_arguments(rules, tool, param)} {rules.literal('<｜tool▁call▁end｜>')}"
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


def _in_order(tool: Tool, part: Callable[[str, Any, dict[str, Any]], str]) -> str:
    """The parameters one after another, each as `part`(name, value's schema, whole schema) makes it; those that are
    not required are optional."""
    schema: dict[str, Any] = tool.function.parameters or _NOTHING
    required = set(schema.get("required") or ())
    shown = {key: part(key, value, schema) for key, value in (schema.get("properties") or {}).items()}
    return " ".join([text if key in required else f"({text})?" for key, text in shown.items()])


def _tags(rules: Rules, form: calls.Tags, tool: Tool, param: str) -> str:
    gap = form.gap

    def part(key: str, value: Any, schema: dict[str, Any]) -> str:
        keyed, is_text = form.keyed, value_rules.is_text(value_rules.resolved(value, schema))
        if form.typed:
            kind = "string" if is_text else value_rules.json_kind(value_rules.resolved(value, schema))
            keyed = keyed.replace("{text}", json_text(is_text)).replace("{type}", kind)
        begin = rules.literal(f"{form.key}{key}{keyed}{form.pad}")
        end = f"{form.pad}{form.valued}"
        shown = (
            f"{begin} {value_rules.text_or_json(rules, value, schema, f'{param}.{key}', end, form.valued)}"
        )
        return f"{shown} {rules.literal(gap)}" if gap else shown

    head = f"{form.call}{tool.function.name}"
    begin = rules.literal(head + form.named + gap)
    if "{n}" in form.named:
        before, _, after = form.named.partition("{n}")
        begin = f"{rules.literal(head + before)} /[0-9]{{1,3}}/ {rules.literal(after)}"
    return f"{begin} {_in_order(tool, part)} {rules.literal(form.called)}"


def _tags_list(rules: Rules, form: calls.Tags, one: str, parallel: bool) -> str:
    gap = rules.literal(form.gap) if form.gap else ""
    begin, end = (rules.literal(mark) if mark else "" for mark in (form.begin, form.end))
    if form.each:
        more = f"{gap}?" if gap else ""
        return _repeated(rules, form, f"({begin} {gap} {one} {gap} {end} {more})", parallel)
    more = gap or r'"\n"?'
    return f"{begin} {gap} {_repeated(rules, form, f'({one} {more})', parallel)} {end}"


def _addressed(rules: Rules, form: calls.Addressed, tool: Tool, param: str) -> str:
    head = rules.literal(f" to={tool.function.name}<|message|>{form.begin}{form.gap}")
    return f"{head} {_tags(rules, form, tool, param)} {rules.literal(form.gap + form.end)}"


def _addressed_list(rules: Rules, form: calls.Addressed, one: str, parallel: bool) -> str:
    return f"{one} ({rules.literal('<|eom|><|start|>assistant')} {one})*" if parallel else one


def _nested(rules: Rules, form: calls.Nested, tool: Tool, param: str) -> str:
    """Lists and objects are JSON inside their elements, which is read as well."""

    def part(key: str, value: Any, schema: dict[str, Any]) -> str:
        end = f"{form.space}</{key}>"
        shown = value_rules.text_or_json(rules, value, schema, f"{param}.{key}", end, form.space)
        return f"{rules.literal(f'{form.space}<{key}>')} {shown}"

    begin = rules.literal(f'{form.call}{tool.function.name}">')
    return f"{begin} {_in_order(tool, part)} {rules.literal(form.called)}"


def _nested_list(rules: Rules, form: calls.Nested, one: str, parallel: bool) -> str:
    several = _repeated(rules, form, f'({one} "\\n"?)', parallel)
    return f'{rules.literal(form.begin)} "\\n"? {several} {rules.literal(form.end)}'


def _keyed(rules: Rules, form: calls.Keyed, tool: Tool, param: str) -> str:
    gap, end = form.gap, form.tag("/arg_value")

    def part(key: str, value: Any, schema: dict[str, Any]) -> str:
        begin = f"{form.tag('arg_key')}{key}{form.tag('/arg_key')}{gap}{form.tag('arg_value')}"
        shown = f"{rules.literal(begin)} {value_rules.text_or_json(rules, value, schema, f'{param}.{key}', end, end)}"
        return f"{shown} {rules.literal(gap)}" if gap else shown

    name = tool.function.name + (form.tag("tool_sep") if form.separated else "") + gap
    begin = rules.literal(form.tag("tool_call") + name)
    return f"{begin} {_in_order(tool, part)} {rules.literal(form.tag('/tool_call'))}"


def _keyed_list(rules: Rules, form: calls.Keyed, one: str, parallel: bool) -> str:
    more = f"{rules.literal(form.gap)}?" if form.gap else ""
    several = _repeated(rules, form, f"({one} {more})", parallel)
    if not form.outer:
        return several
    return f"{rules.literal(form.tag('tool_calls') + form.gap)} {several} {rules.literal(form.tag('/tool_calls'))}"


def _python(rules: Rules, form: calls.Python, tool: Tool, param: str) -> str:
    return f'{rules.literal(tool.function.name + "(")} {_pairs(rules, tool, param, "=", ", ", "")} ")"'


def _python_list(rules: Rules, form: calls.Python, one: str, parallel: bool) -> str:
    more = f'(", " {one})*' if parallel else ""
    return f'{rules.literal(form.begin)} "[" {one} {more} "]" {rules.literal(form.end)}'


def _gemma(rules: Rules, form: calls.Gemma, tool: Tool, param: str) -> str:
    head = rules.literal(f"{form.begin}{tool.function.name}{{")
    return f'{head} {_pairs(rules, tool, param, ":", ",", form.quote)} "}}" {rules.literal(form.end)}'


def _pairs(rules: Rules, tool: Tool, param: str, equals: str, comma: str, quote: str) -> str:
    """Names and values with a mark between them. Texts are in quotes, if the format has them; everything else is
    JSON, which is part of both formats."""
    schema: dict[str, Any] = tool.function.parameters or _NOTHING
    required = set(schema.get("required") or ())
    properties = list((schema.get("properties") or {}).items())
    first = more = '""'  # what may follow as the first, or after others
    for key, value in reversed(properties):
        if quote and value_rules.is_text(value_rules.resolved(value, schema)):
            text = value_rules.text_or_json(rules, value, schema, f"{param}.{key}", quote, quote)
            shown = f"{rules.literal(quote)} {text}"
        else:
            shown = value_rules.json_value(rules, value, schema, f"{param}.{key}")
        pair = rules.add("pair", f"{rules.literal(key + equals)} {shown}")
        with_it, after = f"{pair} {more}", f"{rules.literal(comma)} {pair} {more}"
        optional = key not in required
        first = rules.add("first", f"{with_it} | {first}" if optional else with_it)
        more = rules.add("more", f"{after} | {more}" if optional else after)
    return first


_FORMATS: dict[type[calls.Format], tuple[_One, _Several]] = {
    calls.Objects: (_objects, _object_list),
    calls.Hermes: (_objects, _object_list),
    calls.Tags: (_tags, _tags_list),
    calls.Xml: (_tags, _tags_list),
    calls.Addressed: (_addressed, _addressed_list),
    calls.Nested: (_nested, _nested_list),
    calls.Keyed: (_keyed, _keyed_list),
    calls.Named: (_named, _named_list),
    calls.Recipients: (_recipient, _recipients),
    calls.Python: (_python, _python_list),
    calls.Gemma: (_gemma, _repeated),
    calls.Mistral: (_mistral, _mistral_list),
    calls.Llama3: (_llama3, _single),  # these models write one call
    calls.DeepSeek: (_deepseek, _deepseek_list),
    calls.Harmony: (_harmony, _single),
}
