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
from pyllama_long.server import calls, forced, grammar, lanes, overflow, reading
from pyllama_long.server.answer import AnswerParser
from pyllama_long.server.errors import bad
from pyllama_long.server.run import Prepared, seeds, while_connected
from pyllama_long.server.sampling import sampling, stops
from pyllama_long.server.schemas.chat import AllowedChoice, ChatRequest, Message, NamedTool, Tool
from pyllama_long.server.state import Loaded, State, salt_of, state_of
from pyllama_long.server.template import Rendered, content_text

_RESERVED = {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"}
_COMMON = {
    "enable_thinking",
    "thinking",
    "reasoning_effort",
}  # sent to every model; one that cannot, does not


@dataclass(frozen=True)
class Prompt:
    """thinking: the template has begun the model's reasoning. form: of calls in the answer."""

    tokens: list[int]
    text: str
    thinking: bool
    form: calls.Format


@dataclass(frozen=True)
class Tools:
    """The tools that may be called; forced: one must be."""

    tools: list[Tool]
    forced: bool

    @staticmethod
    def of(request: ChatRequest) -> Tools:
        tools, choice = request.tools or [], request.tool_choice
        if isinstance(choice, NamedTool):
            named = [tool for tool in tools if tool.function.name == choice.function.name]
            if not named:
                raise bad(f"tool_choice: there is no tool {choice.function.name!r}.", "tool_choice")
            return Tools(named, True)
        if isinstance(choice, AllowedChoice):
            allowed = {one.function.name for one in choice.allowed_tools.tools}
            tools, choice = [t for t in tools if t.function.name in allowed], choice.allowed_tools.mode
        if choice == "required" and not tools:
            raise bad("tool_choice is required, and there are no tools.", "tool_choice")
        return Tools([] if choice == "none" else tools, choice == "required")


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
    return Prompt(tokens, found.text, found.thinking, calls.Hermes() if found.told else loaded.form)


def template_values(loaded: Loaded, request: ChatRequest) -> dict[str, Any]:
    """What a request sets of the template's own names. Raises ApiError for names that the template does not read."""
    values = dict(request.chat_template_kwargs or {})
    for name in ("enable_thinking", "reasoning_effort"):
        value = getattr(request, name)
        if value is not None:
            values.setdefault(name, value)
    known = loaded.chat_template().variables
    for name in values:
        if name in _RESERVED:
            raise bad(f"chat_template_kwargs: {name!r} is set by the server.", "chat_template_kwargs")
        if name not in known and name in (request.chat_template_kwargs or {}) and name not in _COMMON:
            message = f"chat_template_kwargs: the model's chat template reads no {name!r}."
            raise bad(message, "chat_template_kwargs")
    return {name: value for name, value in values.items() if name in known}


async def prepare(http: HttpRequest, loaded: Loaded, request: ChatRequest) -> Prepared:
    """Checks a request and makes the engine's of it. Raises ApiError, also when the client goes away."""
    state, salt, started = state_of(http), salt_of(http), time.monotonic()
    loaded.check_extras(request)
    if request.top_logprobs is not None and not request.logprobs:
        raise bad("top_logprobs needs logprobs to be true.", "top_logprobs")
    tools = Tools.of(request)
    mode = request.overflow or state.settings.overflow
    make = partial(
        prompt,
        loaded,
        tools=tools.tools,
        answer=request.add_generation_prompt is not False,
        salt=salt,
        continued=request.continue_final_message,
        values=template_values(loaded, request),
        bounded=mode == "error",  # what is shortened is counted
    )
    max_tokens = request.max_completion_tokens or request.max_tokens
    fitting = overflow.fit(state, loaded, request.messages, make, mode, max_tokens, salt)
    fitted = await while_connected(http, fitting)
    found = await lanes.run(_requests, state, loaded, request, fitted, tools, max_tokens, salt)
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
    rules = _grammar(loaded, request, tools, found.thinking, found.form)
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
            special=bool(tools.tools)
            and any(mark in loaded.chat_template().source for mark in reading.CONTROL),
        )
        for seed in seeds(request.seed, request.n or 1)
    ]
    names = [tool.function.name for tool in tools.tools]
    parser = partial(
        AnswerParser,
        found.form if names else None,
        names,
        loaded.chat_template().thinks,
        found.thinking and not isinstance(rules, str),
        loaded.chat_template().thinking,
        {tool.function.name: tool.function.parameters or {} for tool in tools.tools},
        tools.forced,
    )
    one_call = bool(names) and (
        request.parallel_tool_calls is False or isinstance(request.tool_choice, NamedTool)
    )
    return Prepared(requests, parser, "messages", one_call, fitted.report)


def _grammar(
    loaded: Loaded, request: ChatRequest, tools: Tools, thinking: bool, form: calls.Format
) -> str | Lark | None:
    """What the answer is held to. A client's own grammar holds from the first token on; others after thinking."""
    wanted = request.response_format
    kind = "text" if wanted is None else wanted.type
    if request.grammar is not None:
        if kind != "text" or tools.tools:
            raise bad("grammar works without response_format and tools only.", "grammar")
        return request.grammar
    if kind == "text" and not tools.forced:
        return None
    rules, roots = grammar.Rules(loaded.controls), []
    if kind != "text" and not tools.forced:
        assert wanted is not None
        schema: Any = {"type": "object"}
        given = wanted.schema_
        if kind == "json_schema":
            given = given if wanted.json_schema is None else wanted.json_schema.schema_
            if given is None:
                raise bad("response_format: json_schema needs a schema.", "response_format")
        roots.append(rules.schema(schema if given is None else given, "response_format"))
    if tools.tools:
        parallel = request.parallel_tool_calls is not False and not isinstance(request.tool_choice, NamedTool)
        roots.append(forced.rule(rules, form, tools.tools, parallel))
    root = " | ".join(f"({root})" for root in roots)
    marks = loaded.chat_template().thinking
    if marks is None:
        return rules.build(root)
    thought = f"{rules.until(marks[1])} /[ \\t\\n]*/"
    if thinking:
        return rules.build(f"{thought} ({root})")
    return rules.build(f"({rules.literal(marks[0])} {thought})? ({root})")
