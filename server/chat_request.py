"""Turns a conversation into requests for the engine: prompt, tools, structured output, overflow."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import Request as HttpRequest

from pyllama_long import last_turn, marks
from pyllama_long.arrays import as_ids
from pyllama_long.engine import Request
from pyllama_long.grammar import Lark

from . import calls, channels, forced, grammar, lanes, overflow, prompt
from .connection import while_connected
from .errors import bad
from .prompt import Prompt
from .run import Prepared
from .sampling import sampling, seeds, stops, write_s
from .schemas.chat import ChatRequest
from .schemas.conversation import NamedCustom, NamedTool
from .state import Loaded, RequestContext
from .template import content_text
from .template_options import TemplateOptions
from .tools import Tools


async def prepare(
    http: HttpRequest, loaded: Loaded, request: ChatRequest, names: Mapping[str, str] | None = None
) -> Prepared:
    """Checks a request and makes the engine's requests from it. names: as in TemplateOptions.of. Raises ApiError,
    also when the client disconnects."""
    context = RequestContext.of(http, loaded)
    loaded.check_extras(request)
    if request.top_logprobs is not None and not request.logprobs:
        raise bad("top_logprobs needs logprobs to be true.", "top_logprobs")
    options = TemplateOptions.of(http, loaded, request, request.messages, names)
    mode = request.overflow or context.state.settings.overflow
    make = partial(
        prompt.make,
        loaded,
        options=options,
        salt=context.salt,
        bounded=mode == "error",  # what is shortened is counted
    )
    max_tokens = request.max_completion_tokens or request.max_tokens
    fitted = await while_connected(http, overflow.fit(context, request.messages, make, mode, max_tokens))
    found = await lanes.run(_requests, context, request, fitted, options.tools, max_tokens)
    found.spent_s = context.spent_s()
    return found


def _requests(
    context: RequestContext,
    request: ChatRequest,
    fitted: overflow.Fitted,
    tools: Tools,
    max_tokens: int | None,
) -> Prepared:
    engine, settings, found = context.loaded.engine, context.state.settings, fitted.prompt
    rules = _grammar(context.loaded, request, tools, found)
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    tail_start = places = None
    shown = [{"role": m.role, "content": content_text(m)} for m in fitted.messages]
    with engine.using():
        if engine.plan.prefill != engine.plan.tail:
            tail_start = last_turn.of_chat(engine.model, found.tokens, shown, None)
        if engine.keeps_checkpoints:
            texts = [message["content"] for message in shown]
            places = marks.of_messages(engine.model, as_ids(found.tokens), texts).tolist()
    requests = [
        Request(
            tokens=found.tokens,
            max_tokens=max_tokens,
            sampling=sampling(engine, settings, request, seed, request.logit_bias, rules),
            stop=stops(request.stop),
            logprobs=logprobs,
            tail_start=tail_start,
            salt=context.salt,
            priority=request.priority or 0,
            write_s=write_s(request),
            special=found.special,
            marks=places,
        )
        for seed in seeds(request.seed, request.n or 1)
    ]
    parser = partial(found.parser, tools.tools, tools.forced, isinstance(rules, str))
    one_call = bool(tools.tools) and (
        request.parallel_tool_calls is False or isinstance(request.tool_choice, (NamedTool, NamedCustom))
    )
    return Prepared(requests, parser, "messages", one_call, fitted.report, custom=tools.custom)


def _grammar(loaded: Loaded, request: ChatRequest, tools: Tools, found: Prompt) -> str | Lark | None:
    """The grammar of the answer. A client's own grammar holds from the first token on; others hold after thinking."""
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
