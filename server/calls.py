"""The formats in which models write tool calls: `forced` makes a model write one, `reading` reads them."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

_INPUT = re.compile(r'\s*\{\s*"input"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)', re.DOTALL)
_CUT_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\u[0-9a-fA-F]{0,3}\Z")


@dataclass(frozen=True, kw_only=True)
class Format:
    """marks: texts that begin a call anywhere in an answer; starts: only at its beginning. drops: marks around text
    that do not belong to it. text: what models of the format write around text; between: after reasoning, before text
    and calls. All of them are optional in an answer."""

    marks: tuple[str, ...] = ()
    starts: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()
    text: tuple[str, str] = ("", "")
    between: str = ""


@dataclass(frozen=True, kw_only=True)
class Objects(Format):
    """JSON after a mark: an object with a name and arguments, or a list of such objects. listed: always a list; each:
    the marks are around each object; ids: objects begin with a number; by_name: an object is {name: arguments}. gap:
    between marks and objects."""

    begin: str
    end: str = ""
    name: str = "name"
    arguments: str = "arguments"
    listed: bool = False
    each: bool = False
    ids: bool = False
    by_name: bool = False
    gap: str = ""


@dataclass(frozen=True, kw_only=True)
class Tags(Format):
    """A name and values between tags. begin, end: around each call, or around all. stop: ends a tag that contains a
    name; named, keyed: what follows such a name. pad: around a value; gap: between tags. typed: a value's tag says
    whether it is a text or what else; cdata: texts may be in <![CDATA[]]>."""

    begin: str
    end: str
    each: bool = False
    call: str = '<invoke name="'
    named: str = '">'
    called: str = "</invoke>"
    key: str = '<parameter name="'
    keyed: str = '">'
    valued: str = "</parameter>"
    stop: str = ">"
    pad: str = ""
    gap: str = "\n"
    typed: bool = False
    cdata: bool = False


@dataclass(frozen=True, kw_only=True)
class Keyed(Format):
    """<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>: GLM. suffix: of all tags;
    separated: a tag follows the name; outer: tags around all calls; gap: between tags."""

    suffix: str = ""
    separated: bool = False
    outer: bool = False
    gap: str = ""

    def tag(self, name: str) -> str:
        return f"<{name}{self.suffix}>"


@dataclass(frozen=True, kw_only=True)
class Named(Format):
    """A name, then its arguments as JSON. begin, end: around all calls; numbered: a number precedes `named`; id: of a
    call, as a pattern, before its name; id_end: after it."""

    begin: str = ""
    call: str
    named: str
    called: str = ""
    end: str = ""
    numbered: bool = False
    id: str = ""
    id_end: str = ""
    gap: str = ""


@dataclass(frozen=True, kw_only=True)
class Nested(Format):
    """<invoke name="..."> with an element for each argument, which contains elements if it is a list or an object;
    `space` precedes each tag: MiniMax M3."""

    space: str = "]<]minimax[>["
    begin: str = "]<]minimax[>[<tool_call>"
    call: str = ']<]minimax[>[<invoke name="'
    called: str = "]<]minimax[>[</invoke>"
    end: str = "]<]minimax[>[</tool_call>"
    marks: tuple[str, ...] = ("]<]minimax[>[<tool_call>",)


@dataclass(frozen=True, kw_only=True)
class Addressed(Tags):
    """Tags in a message to the function: Muse. See `channels`."""

    begin: str = "<atem:function_calls>"
    end: str = "</atem:function_calls>"
    call: str = '<atem:invoke name="'
    called: str = "</atem:invoke>"
    key: str = '<atem:parameter name="'
    valued: str = "</atem:parameter>"
    marks: tuple[str, ...] = ("<atem:function_calls>",)


@dataclass(frozen=True, kw_only=True)
class Hermes(Objects):
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>: Hermes, Qwen 2.5 and 3, and models whose
    template knows no tools."""

    marks: tuple[str, ...] = ("<tool_call>",)
    begin: str = "<tool_call>"
    end: str = "</tool_call>"
    each: bool = True
    gap: str = "\n"


@dataclass(frozen=True, kw_only=True)
class Xml(Tags):
    """<tool_call><function=name><parameter=key>value</parameter></function></tool_call>: Qwen3-Coder, Nemotron 3,
    StepFun."""

    marks: tuple[str, ...] = ("<tool_call>", "<function=")
    begin: str = "<tool_call>"
    end: str = "</tool_call>"
    each: bool = True
    call: str = "<function="
    named: str = ">"
    called: str = "</function>"
    key: str = "<parameter="
    keyed: str = ">"
    pad: str = "\n"


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
    JSON is in a block of code; if not, as in V3.1, the name precedes the separator."""

    fenced: bool = field(default=True, kw_only=False)
    marks: tuple[str, ...] = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")


@dataclass(frozen=True, kw_only=True)
class Recipients(Format):
    """>>>name and a line break before each part of an answer, the name `all` before text; the prompt ends in the
    first >>>: Functionary 3.2."""

    marks: tuple[str, ...] = (">>>",)
    text: tuple[str, str] = ("all\n", "")


@dataclass(frozen=True, kw_only=True)
class Python(Format):
    """<|tool_call_start|>[name(key="value"), ...]<|tool_call_end|>: LFM2."""

    begin: str = "<|tool_call_start|>"
    end: str = "<|tool_call_end|>"
    marks: tuple[str, ...] = ("<|tool_call_start|>",)


@dataclass(frozen=True, kw_only=True)
class Gemma(Format):
    """<|tool_call>call:name{key:<|"|>value<|"|>}<tool_call|>: Gemma 4."""

    begin: str = "<|tool_call>call:"
    end: str = "<tool_call|>"
    quote: str = '<|"|>'
    marks: tuple[str, ...] = ("<|tool_call>call:",)
    drops: tuple[str, ...] = ("<|tool_response>", "<turn|>")


@dataclass(frozen=True, kw_only=True)
class Harmony(Format):
    """A message to functions.name, with JSON: gpt-oss. See `channels`."""


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


# ---- tools that take one text ------------------------------------------------------------------------------


def custom_arguments(text: str) -> str:
    """Wraps the text as arguments of a function."""
    return json.dumps({"input": text}, ensure_ascii=False)


def custom_input(arguments: str) -> str:
    """The text in the arguments of such a function, which may be cut; all of the arguments if they have another
    form."""
    found: Any = None
    try:
        found = json.loads(arguments, strict=False)
    except (ValueError, RecursionError):
        if match := _INPUT.match(arguments):
            whole = _CUT_ESCAPE.sub(r"\1", match[1])
            with suppress(ValueError):  # an escape that JSON does not know
                found = json.loads(f'"{whole}"', strict=False)
    if isinstance(found, dict):
        found = found.get("input", next(iter(found.values())) if len(found) == 1 else None)
    text = found if isinstance(found, str) else arguments
    return text.encode(errors="ignore").decode()  # without half of a surrogate pair
