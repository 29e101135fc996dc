"""The formats of tool calls that models write, by what their chat templates show."""

from __future__ import annotations

import re
from dataclasses import replace

from .calls import (
    Addressed,
    DeepSeek,
    Format,
    Gemma,
    Harmony,
    Hermes,
    Keyed,
    Llama3,
    Mistral,
    Named,
    Nested,
    Objects,
    Python,
    Recipients,
    Tags,
    Xml,
)

FUNCTIONARY = Named(call="<function=", named=">", called="</function>", marks=("<function=",))
SEED = Xml(
    begin="<seed:tool_call>", end="</seed:tool_call>", pad="", marks=("<seed:tool_call>", "<function=")
)
KIMI = Named(
    begin="<|tool_calls_section_begin|>",
    call="<|tool_call_begin|>functions.",
    named="<|tool_call_argument_begin|>",
    called="<|tool_call_end|>",
    end="<|tool_calls_section_end|>",
    numbered=True,
    marks=("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
)
SOLAR = Named(
    begin="<|tool_calls|>",
    call="<|tool_call:begin|>",
    id="[a-z0-9]{10}",
    id_end="<|tool_call:name|>",
    named="<|tool_call:args|>",
    called="<|tool_call:end|>",
    marks=("<|tool_calls|>", "<|tool_call:begin|>"),
    drops=("<|begin|>assistant", "<|content|>", "<|end|>", "<|calls|>"),
    text=("<|content|>", "<|end|>"),
    between="<|begin|>assistant",
)
MINIMAX = Tags(
    begin="<minimax:tool_call>", end="</minimax:tool_call>", marks=("<minimax:tool_call>", '<invoke name="')
)
MINICPM = Tags(
    begin="",
    end="",
    call='<function name="',
    called="</function>",
    key='<param name="',
    valued="</param>",
    gap="",
    cdata=True,
    marks=('<function name="',),
)
KIMI3 = Tags(
    begin="<|open|>tools<|sep|>",
    end="<|close|>tools<|sep|>",
    call='<|open|>call tool="',
    named='" index="{n}"<|sep|>',
    called="<|close|>call<|sep|>",
    key='<|open|>argument key="',
    keyed='" type="{type}"<|sep|>',
    valued="<|close|>argument<|sep|>",
    stop="<|sep|>",
    gap="",
    typed=True,
    marks=("<|open|>tools<|sep|>",),
    drops=(
        *("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"),
        *("<|close|>think<|sep|>", "<|end_of_msg|>"),
    ),
    text=("<|open|>response<|sep|>", "<|close|>response<|sep|>"),
)
_COHERE = ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>")
_SHOWN: list[tuple[str, Format]] = [  # texts in a template, the most distinctive first
    ("<|channel|>analysis<|message|>", Harmony()),
    ("<atem:function_calls>", Addressed()),
    ("]<]minimax[>[", Nested()),
    (">>>all", Recipients()),
    ("<|end_of_msg|>", KIMI3),
    ("<minimax:tool_call>", MINIMAX),
    ("<|tool_call>call:", Gemma()),
    ("<|tool_calls_section_begin|>", KIMI),
    ("<|tool_call:begin|>", SOLAR),
    (
        "<|START_ACTION|>",
        Objects(
            begin="<|START_ACTION|>",
            end="<|END_ACTION|>",
            name="tool_name",
            arguments="parameters",
            listed=True,
            ids=True,
            gap="\n",
            marks=("<|START_ACTION|>",),
            drops=_COHERE,
            text=_COHERE[:2],
        ),
    ),
    (
        "Write 'Action:'",
        Objects(
            begin="Action:\n```json\n",
            end="```",
            name="tool_name",
            arguments="parameters",
            listed=True,
            gap="\n",
            marks=("Action:\n```json",),
        ),
    ),
    (
        "<|tools_prefix|>",
        Objects(
            begin="<|tools_prefix|>",
            end="<|tools_suffix|>",
            listed=True,
            by_name=True,
            marks=("<|tools_prefix|>",),
        ),
    ),
    ("<|function_call|>", Objects(begin="<|function_call|>", marks=("<|function_call|>",))),
    (
        "<|role_sep|>",
        Objects(
            begin="<|message_sep|>\n\nfunction call<|role_sep|>\n",
            marks=("function call<|role_sep|>",),
            drops=("<|message_sep|>",),
        ),
    ),
    ("<TOOLCALL>", Objects(begin="<TOOLCALL>", end="</TOOLCALL>", listed=True, marks=("<TOOLCALL>",))),
    ("<|tool_call|>", Objects(begin="<|tool_call|>", listed=True, marks=("<|tool_call|>",))),
    ("<|tool_call_start|>", Python()),
    ("List of tools: [", Python()),
    ("List of tools: <|tool_list_start|>", Python()),
    (
        "<tool_calls>[",
        Objects(begin="<tool_calls>", end="</tool_calls>", listed=True, marks=("<tool_calls>",)),
    ),
    ("<tool_calls>", Objects(begin="<tool_calls>", end="</tool_calls>", gap="\n", marks=("<tool_calls>",))),
    (" functools[", Objects(begin=" functools", listed=True, marks=("functools",))),
    ('<function name="', MINICPM),
    ("<seed:tool_call>", SEED),
    ("<parameter=", Xml()),
]


def format_of(template: str | None) -> Format:
    """The format that a chat template shows."""
    source = (template or "").replace("\\'", "'")
    for shown, form in _SHOWN:
        if shown in source:
            return replace(form, text=_COHERE[2:]) if _COHERE[2] in source else form
    if "<function=" in source:
        return Xml() if "<tool_call>" in source else FUNCTIONARY
    if "DSML" in source:
        kind = "function_calls" if "function_calls" in source else "tool_calls"
        return _dsml(f"<｜DSML｜{kind}>")
    if "arg_key" in source:
        return _keyed(source)
    if "<tool_call>" in source:
        return Hermes()
    if "[TOOL_CALLS]" in source:
        return Mistral("[ARGS]" in source)
    if "<｜tool▁call" in source:
        return DeepSeek("```json" in source)
    if "<|python_tag|>" in source or '"parameters"' in source:
        return Llama3()
    return Hermes()


def _dsml(begin: str) -> Tags:
    """DeepSeek V3.2 and later."""
    return Tags(
        begin=begin,
        end=f"</{begin[1:]}",
        call='<｜DSML｜invoke name="',
        called="</｜DSML｜invoke>",
        key='<｜DSML｜parameter name="',
        keyed='" string="{text}">',
        valued="</｜DSML｜parameter>",
        typed=True,
        marks=(begin,),
    )


def _keyed(source: str) -> Keyed:
    """GLM and its followers: with or without line breaks between tags, and with Hunyuan's additions."""
    if suffix := re.search(r"HYTK\s*=\s*'([^']{0,64})'", source):
        form = Keyed(suffix=suffix[1], separated=True, outer=True, gap="\n")
        return replace(form, marks=(form.tag("tool_calls"), form.tag("tool_call")))
    wide = re.search(r"""(\}\}|[~+]\s*["'])</arg_key>(\n|\\n|['"]\s*-?\}\}\s*\{\{-?\s*['"]\\n)""", source)
    return Keyed(gap="\n" if wide else "", marks=("<tool_call>",))
