"""From a conversation to requests for the engine: template, tools, structured output, overflow."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request as HttpRequest

from pyllama_long import tail
from pyllama_long.engine import Request
from pyllama_long.grammar import Lark

from . import calls, channels, fields, forced, grammar, lanes, overflow, reading
from .answer import AnswerParser
from .connection import while_connected
from .errors import bad
from .run import Prepared
from .sampling import sampling, seeds, stops, write_s
from .schemas.chat import (
    AllowedChoice,
    ChatRequest,
    CustomFormat,
    CustomTool,
    Message,
    NamedCustom,
    NamedTool,
    OtherTool,
    Talk,
    Tool,
)
from .state import Loaded, State, salt_of, state_of
from .template import Rendered, content_text

_RESERVED = {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"}
_COMMON = {
    "enable_thinking",
    "thinking",
    "reasoning_effort",
}  # sent to every model; one that cannot, does not
_SWITCHES = ("enable_thinking", "thinking")  # names by which templates read whether the model reasons


@dataclass(frozen=True)
class Prompt:
    """thinking: the template has begun the model's reasoning; marks: around it. form: of calls in the answer. channel:
    that the prompt ends in, of a model that writes to channels. special: control tokens are among the marks that an
    answer is read by, so they are part of its text."""

    tokens: list[int]
    text: str
    thinking: bool
    form: calls.Format
    channel: channels.Channel | None
    marks: tuple[str, str] | None
    special: bool

    def parser(
        self,
        tools: Sequence[Tool] = (),
        forced: bool = False,
        own_grammar: bool = False,
    ) -> AnswerParser:
        """Of an answer that may call tools. forced: it has to; own_grammar: it has the form that a client asked for."""
        return AnswerParser(
            self.form,
            [tool.function.name for tool in tools],
            self.marks is not None,
            self.thinking and not own_grammar,
            self.marks,
            {tool.function.name: tool.function.parameters or {} for tool in tools},
            forced,
            None if own_grammar else self.channel,
        )


@dataclass(frozen=True)
class Tools:
    """The tools that may be called; forced: one must be. custom: names of those that take one text."""

    tools: list[Tool]
    forced: bool
    custom: frozenset[str] = frozenset()

    @staticmethod
    def of(request: Talk) -> Tools:
        given, choice = request.tools or [], request.tool_choice
        tools = [
            tool.as_function() if isinstance(tool, CustomTool) else tool
            for tool in given
            if not isinstance(tool, OtherTool)
        ]
        custom = frozenset(tool.custom.name for tool in given if isinstance(tool, CustomTool))
        if isinstance(choice, (NamedTool, NamedCustom)):
            named = [tool for tool in tools if tool.function.name == choice.name]
            if not named:
                raise bad(f"tool_choice: there is no tool {choice.name!r}.", "tool_choice")
            return Tools(named, True, custom)
        if isinstance(choice, AllowedChoice):
            listed = choice.allowed_tools.tools
            allowed = {one.name for one in listed if isinstance(one, (NamedTool, NamedCustom))}
            tools, choice = [t for t in tools if t.function.name in allowed], choice.allowed_tools.mode
        if choice == "required" and not tools:
            raise bad(
                "tool_choice is required, and there are no tools that this server knows.", "tool_choice"
            )
        return Tools([] if choice == "none" else tools, choice == "required", custom)


def left_out(request: Talk) -> list[str]:
    """Names of tools that are left out of the prompt, and of grammars that only the prompt tells."""
    found = []
    for i, tool in enumerate(request.tools or ()):
        if isinstance(tool, OtherTool):
            found.append(f"tools.{i}.{tool.type}")
        elif isinstance(tool, CustomTool) and is_told(tool.custom.format):
            found.append(f"tools.{i}.custom.format")
    return found


def is_told(form: CustomFormat | None) -> bool:
    """Whether a grammar is told to the model and does not bind it: a Lark grammar of a text cannot be that of JSON with
    the text in it."""
    rules = None if form is None else form.rules
    return rules is not None and rules.syntax == "lark"


def render(
    loaded: Loaded,
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    answer: bool = True,
    continued: bool | None = None,
    values: Mapping[str, Any] | None = None,
) -> Rendered:
    """A conversation as the model's template has it. continued: whether a last message of the assistant goes on;
    values: the template's own names."""
    return loaded.chat_template().rendered(messages, tools, answer, continued, values)


def prompt(
    loaded: Loaded,
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    answer: bool = True,
    salt: str = "",
    continued: bool | None = None,
    values: Mapping[str, Any] | None = None,
    bounded: bool = False,
) -> Prompt:
    """The tokens of a conversation. answer: it goes on with the model's answer. salt: whose beginnings may help.
    bounded: ApiError when it cannot fit the context."""
    engine, found = loaded.engine, render(loaded, messages, tools, answer, continued, values)
    pieces = found.pieces
    if not pieces:
        raise bad("The chat template made an empty prompt of these messages.", "messages")
    if bounded:
        loaded.check_length(pieces)
    template = loaded.chat_template()
    first = pieces[0]
    bos = template.bos
    tokens = loaded.beginnings.tokenize(first.removeprefix(bos) if bos else first, True, salt)
    if bos and first.startswith(bos) and tokens[:1] != [engine.token_bos]:
        tokens = engine.tokenize(first.encode(), False, True)
    for piece in pieces[1:]:
        tokens += engine.tokenize(piece.encode(), False, True)
    style = channels.style_of(template.source)
    channel = None if style is None else channels.of_prompt(found.text, found.thinking)
    form = calls.Hermes(drops=loaded.form.drops) if found.told else loaded.form
    special = _has_controls(loaded, form, channel, bool(tools))
    return Prompt(tokens, found.text, found.thinking, form, channel, template.thinking, special)


def template_values(loaded: Loaded, request: Talk) -> tuple[dict[str, Any], list[str]]:
    """What a request sets of the template's own names, and names of fields that the template does not read. Raises
    ApiError for names in chat_template_kwargs that are the server's or nobody's."""
    template = loaded.chat_template()
    known, given = template.variables, request.chat_template_kwargs or {}
    values: dict[str, Any] = {}
    unread = []
    for name, value in given.items():
        if name in _RESERVED:
            raise bad(f"chat_template_kwargs: {name!r} is set by the server.", "chat_template_kwargs")
        if name in known:
            values[name] = value
        elif name not in _COMMON:
            message = f"chat_template_kwargs: the model's chat template reads no {name!r}."
            raise bad(message, "chat_template_kwargs")
    asked = [("enable_thinking", request.enable_thinking), ("reasoning_effort", request.reasoning_effort)]
    common = [(f"chat_template_kwargs.{name}", given[name]) for name in _COMMON & given.keys() - known]
    switch = next((name for name in _SWITCHES if name in known), None)
    for field, value in [*common, *asked]:
        name, wanted = field.rpartition(".")[2], value
        if name == "reasoning_effort" and name not in known:
            name, wanted = _SWITCHES[0], False if value == "none" else value
        if value is None:
            continue
        if name in known:
            values.setdefault(name, wanted)
        elif name in _SWITCHES and switch is not None and isinstance(wanted, bool):
            values.setdefault(switch, wanted)
        elif not (isinstance(wanted, bool) and wanted == template.thinks):  # what it does anyhow
            unread.append(field)
    return values, unread


@dataclass(frozen=True)
class Asked:
    """tools: that may be called. options: of `render` and `prompt`."""

    tools: Tools
    options: dict[str, Any]

    @staticmethod
    def of(
        http: HttpRequest,
        loaded: Loaded,
        request: Talk,
        messages: Sequence[Message],
        names: Mapping[str, str] | None = None,
    ) -> Asked:
        """What a request says to the template; fields that it does not read are named in the answer's header. names:
        of fields as the client knows them, by their names in a chat. Raises ApiError."""
        tools = Tools.of(request)
        values, unread = template_values(loaded, request)
        named = any(m.name and m.role not in ("tool", "function") for m in messages)
        if named and not loaded.chat_template().shows_names:
            unread.append("messages[].name")
        fields.ignored(http, *((names or {}).get(name, name) for name in unread))
        options = {
            "tools": tools.tools,
            "answer": request.add_generation_prompt is not False,
            "continued": request.continue_final_message,
            "values": values,
        }
        return Asked(tools, options)


async def prepare(
    http: HttpRequest, loaded: Loaded, request: ChatRequest, names: Mapping[str, str] | None = None
) -> Prepared:
    """Checks a request and makes the engine's of it. names: as in Asked.of. Raises ApiError, also when the client goes
    away."""
    state, salt, started = state_of(http), salt_of(http), time.monotonic()
    loaded.check_extras(request)
    if request.top_logprobs is not None and not request.logprobs:
        raise bad("top_logprobs needs logprobs to be true.", "top_logprobs")
    asked = Asked.of(http, loaded, request, request.messages, names)
    mode = request.overflow or state.settings.overflow
    make = partial(
        prompt,
        loaded,
        **asked.options,
        salt=salt,
        bounded=mode == "error",  # what is shortened is counted
    )
    max_tokens = request.max_completion_tokens or request.max_tokens
    fitting = overflow.fit(state, loaded, request.messages, make, mode, max_tokens, salt)
    fitted = await while_connected(http, fitting)
    found = await lanes.run(_requests, state, loaded, request, fitted, asked.tools, max_tokens, salt)
    found.spent_s = time.monotonic() - started
    return found


def _requests(
    state: State,
    loaded: Loaded,
    request: ChatRequest,
    fitted: overflow.Fitted,
    tools: Tools,
    max_tokens: int | None,
    salt: str,
) -> Prepared:
    engine, found = loaded.engine, fitted.prompt
    rules = _grammar(loaded, request, tools, found)
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    tail_start = None
    if engine.plan.prefill != engine.plan.tail:
        shown = [{"role": m.role, "content": content_text(m)} for m in fitted.messages]
        with engine.using():
            tail_start = tail.of_chat(engine.model, found.tokens, shown, None)
    requests = [
        Request(
            tokens=found.tokens,
            max_tokens=max_tokens,
            sampling=sampling(engine, state.settings, request, seed, request.logit_bias, rules),
            stop=stops(request.stop),
            logprobs=logprobs,
            tail_start=tail_start,
            salt=salt,
            priority=request.priority or 0,
            write_s=write_s(request),
            special=found.special,
        )
        for seed in seeds(request.seed, request.n or 1)
    ]
    parser = partial(found.parser, tools.tools, tools.forced, isinstance(rules, str))
    one_call = bool(tools.tools) and (
        request.parallel_tool_calls is False or isinstance(request.tool_choice, (NamedTool, NamedCustom))
    )
    return Prepared(requests, parser, "messages", one_call, fitted.report, custom=tools.custom)


def _has_controls(loaded: Loaded, form: calls.Format, channel: channels.Channel | None, tools: bool) -> bool:
    marks = {*form.drops, *(channels.MARKS if channel is not None else ())}
    marks.update(loaded.chat_template().thinking or ())
    if tools:
        marks.update(reading.MARKS, form.marks)
    whole = "\n".join(marks)
    return any(name in whole for name in loaded.controls)


def _grammar(loaded: Loaded, request: ChatRequest, tools: Tools, found: Prompt) -> str | Lark | None:
    """What the answer is held to. A client's own grammar holds from the first token on; others after thinking."""
    wanted = request.response_format
    kind = "text" if wanted is None else wanted.type
    if request.grammar is not None:
        if kind != "text" or tools.tools:
            raise bad("grammar works without response_format and tools only.", "grammar")
        return request.grammar
    if kind == "text" and not tools.forced:
        return None
    rules, final, called = grammar.Rules(loaded.controls), "", ""
    if kind != "text" and not tools.forced:
        assert wanted is not None
        schema: Any = {"type": "object"}
        given = wanted.schema_
        if kind == "json_schema":
            given = given if wanted.json_schema is None else wanted.json_schema.schema_
            if given is None:
                raise bad("response_format: json_schema needs a schema.", "response_format")
        final = rules.schema(schema if given is None else given, "response_format")
    if tools.tools:
        named = isinstance(request.tool_choice, (NamedTool, NamedCustom))
        parallel = request.parallel_tool_calls is not False and not named
        called = forced.rule(rules, found.form, tools.tools, parallel)
    style = channels.style_of(loaded.chat_template().source)
    if style is not None and found.channel is not None:
        told = not isinstance(found.form, (calls.Harmony, calls.Addressed))
        return rules.build(channels.rule(rules, style, found.channel, final, called, told))
    form = loaded.form
    if final:
        begin, end = (f"({rules.literal(mark)})?" if mark else "" for mark in form.text)
        final = f"{begin} {final} {end}"
    root = " | ".join(f"({root})" for root in (final, called) if root)
    marks = loaded.chat_template().thinking
    if marks is None:
        return rules.build(root)
    thought = f"{rules.until(marks[1])} /[ \\t\\n]*/"
    if form.between:
        thought += f" ({rules.literal(form.between)})?"
    if found.thinking:
        return rules.build(f"{thought} ({root})")
    return rules.build(f"({rules.literal(marks[0])} {thought})? ({root})")
