"""The formats in which models write tool calls: `forced` makes a model write one, `reading` reads them."""

from __future__ import annotations

from dataclasses import dataclass, field


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
