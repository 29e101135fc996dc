"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sse_starlette import ServerSentEvent

from pyllama_long.engine import events
from pyllama_long.json_values import json_text

from .. import chat, fields, lanes, replies, sse
from ..answer import Called, Said
from ..body import StrictRoute
from ..errors import bad, converting
from ..openapi import streamed
from ..run import Done, Run, Whole, beats, collect, submit
from ..schemas.chat import ChatRequest, Message
from ..schemas.common import AnthropicErrorReply
from ..schemas.messages import (
    Block,
    CountReply,
    CountRequest,
    MessageEvent,
    MessageReply,
    MessagesRequest,
    MessageUsage,
    OutBlock,
    StopReason,
    TextBlock,
    ThinkingBlock,
    ToolInput,
    ToolUseBlock,
)
from ..state import state_of
from ..template import arguments
from .client_tools import CLIENT_TOOLS

router = APIRouter(route_class=StrictRoute, tags=["Anthropic"])

_SERVERS = ("redacted_thinking", "server_tool_use", "web_search_tool_result", "web_fetch_tool_result")
_THINKING = {"enabled": True, "disabled": False}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_FIELDS = {
    "enable_thinking": "thinking",
    "reasoning_effort": "output_config.effort",
}  # by their names in a chat
_ANSWERED = frozenset(MessagesRequest.model_fields) - frozenset(CountRequest.model_fields)
_REASONS: dict[str, StopReason] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


@router.post(
    "/v1/messages",
    response_model=MessageReply,
    responses=streamed(MessageEvent, "Named as their type; with stream.", AnthropicErrorReply),
)
async def create(request: MessagesRequest, http: Request) -> Response:
    state = state_of(http)
    loaded = state.loaded
    fields.check(request, http)
    skipped = _skipped(request)
    fields.ignored(http, *skipped)
    made = await lanes.run(as_chat, request)
    prepared = await chat.prepare(http, loaded, made, _FIELDS)
    run = await submit(loaded.engine, prepared, state.metrics, state.settings.request_timeout_s)
    head = replies.head("msg_", state.settings.model_name)
    if request.stream:
        return sse.response(http, run, stream(run, head, skipped, state.settings.ping_s), anthropic=True)
    (whole,) = await collect(http, run)
    assert whole.done is not None
    found = MessageReply(
        id=head.id,
        model=head.model,
        content=_blocks(whole),
        **_end(whole.done),
        usage=_usage(whole.done.usage),
        timings=replies.timings(whole.done),
        overflow=prepared.report,
        ignored=skipped or None,
    )
    none = {name for name in ("overflow", "ignored") if getattr(found, name) is None}
    return Response(found.model_dump_json(exclude=none), media_type="application/json")


@router.post("/v1/messages/count_tokens", response_model=CountReply)
async def count(request: CountRequest, http: Request) -> CountReply:
    fields.check(request, http, others=_ANSWERED)
    fields.ignored(http, *_skipped(request))
    loaded = state_of(http).loaded
    made = await lanes.run(as_chat, request)
    asked = chat.Asked.of(http, loaded, made, made.messages, _FIELDS)
    found = await lanes.run(partial(chat.prompt, loaded, made.messages, **asked.options))
    return CountReply(input_tokens=len(found.tokens))


@converting()
def as_chat(request: CountRequest) -> ChatRequest:
    """The same request in OpenAI's shape."""
    messages: list[Message] = []
    if request.system:
        messages.append(Message(role="system", content=_text(request.system)))
    for message in request.messages:
        messages += _messages(message.role, message.content)
    made: dict[str, Any] = {"messages": messages}
    if shown := [found for tool in request.tools or () if (found := _tool(tool)) is not None]:
        made["tools"] = shown
    choice = request.tool_choice
    if choice is not None:
        if choice.type == "tool":
            if choice.name is None:
                raise bad("tool_choice: give the name of the tool.", "tool_choice")
            made["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
        else:
            made["tool_choice"] = _CHOICES[choice.type]
        if choice.disable_parallel_tool_use:
            made["parallel_tool_calls"] = False
    if request.thinking is not None and request.thinking.type in _THINKING:
        made["enable_thinking"] = _THINKING[request.thinking.type]
    if request.output_config is not None:
        made["reasoning_effort"] = request.output_config.effort
    if isinstance(request, MessagesRequest):
        other = {"stream", *CountRequest.model_fields, "stop_sequences"} - {"model"}
        made.update(request.model_dump(include=set(type(request).model_fields) - other, exclude_none=True))
        config = request.output_config
        if config is not None and config.format is not None:
            made["response_format"] = {
                "type": "json_schema",
                "json_schema": {"schema": config.format.schema_},
            }
        made["stop"] = request.stop_sequences
    return ChatRequest.model_validate(made)


def _tool(tool: ToolInput) -> dict[str, Any] | None:
    """A tool as a function; None: one that Anthropic's servers would run."""
    told, schema = tool.description, tool.input_schema
    if not tool.own:
        kind = next(
            (one for one in CLIENT_TOOLS if tool.type and re.fullmatch(rf"{one}_\d{{8}}", tool.type)), None
        )
        if kind is None:
            return None
        told, schema = CLIENT_TOOLS[kind]
    function = {"name": tool.name, "description": told, "parameters": schema}
    return {"type": "function", "function": function}


def _skipped(request: CountRequest) -> list[str]:
    """Names of tools that are left out of the prompt."""
    return [f"tools.{i}.{tool.type}" for i, tool in enumerate(request.tools or ()) if _tool(tool) is None]


def _text(content: str | Sequence[Block]) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for block in content:
        if block.type != "text" or block.text is None:
            raise bad(f"This model reads text; it cannot take a block of type {block.type!r}.", "messages")
        texts.append(block.text)
    return "".join(texts)


def _parts(content: str | Sequence[Block]) -> Any:
    """What the template makes text of, with notes for what is none."""
    return content if isinstance(content, str) else [{"type": b.type, "text": b.text} for b in content]


def _result(block: Block) -> Any:
    """What a tool gave, which says that it failed where the client does."""
    content = _parts(block.content or "")
    if not block.is_error:
        return content
    start = content if isinstance(content, str) else next((p["text"] or "" for p in content), "")
    if "error" in start[:64].lower():
        return content
    return (
        f"Error: {content}" if isinstance(content, str) else [{"type": "text", "text": "Error: "}, *content]
    )


def _messages(role: Any, content: str | Sequence[Block]) -> list[Message]:
    """A message of blocks as OpenAI's messages: results of tools are messages of their own."""
    if isinstance(content, str):
        return [Message(role=role, content=content)]
    results: list[Message] = []
    parts: list[dict[str, Any]] = []
    called, thought = [], ""
    for block in content:
        if block.type == "tool_result":
            result = {
                "role": "tool",
                "content": _result(block),
                "tool_call_id": block.tool_use_id,
            }
            results.append(Message.model_validate(result))
        elif block.type == "tool_use":
            if not block.name:
                raise bad("A tool_use block needs a name.", "messages")
            function = {"name": block.name, "arguments": json_text(block.input or {})}
            called.append({"id": block.id, "type": "function", "function": function})
        elif block.type == "thinking":
            thought += block.thinking or ""
        elif block.type not in _SERVERS:
            parts += _parts([block])
    if parts or called or thought or not results:
        own = {"role": role, "content": parts, "tool_calls": called or None}
        results.append(Message.model_validate({**own, "reasoning_content": thought or None}))
    return results


def _blocks(whole: Whole) -> list[OutBlock]:
    found: list[OutBlock] = []
    if whole.reasoning:
        found.append(ThinkingBlock(thinking=whole.reasoning))
    if whole.text or not whole.calls:
        found.append(TextBlock(text=whole.text))
    found += [ToolUseBlock(id=c.id, name=c.name, input=_input(c.arguments)) for c in whole.calls]
    return found


def _input(text: str) -> dict[str, Any]:
    found = arguments(text)
    return found if isinstance(found, dict) else {"arguments": found}


def _end(done: Done) -> dict[str, Any]:
    reason = _REASONS[done.reason]
    if done.stop_string is not None and reason == "end_turn":
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": done.stop_string}


def _usage(usage: events.Usage) -> MessageUsage:
    # Anthropic counts cached tokens apart.
    return MessageUsage(
        input_tokens=usage.n_prompt - usage.n_cached,
        cache_read_input_tokens=usage.n_cached,
        output_tokens=usage.n_completion,
    )


async def stream(
    run: Run, head: replies.Head, skipped: list[str], ping_s: float
) -> AsyncIterator[ServerSentEvent]:
    """Anthropic's events: blocks that begin, grow and stop. The first one comes before the prompt is read; what of it
    was cached is told at the end."""
    prepared = run.prepared
    index, open_kind, n_quiet = -1, "", 0

    def start() -> ServerSentEvent:
        n_prompt = len(prepared.requests[0].tokens)
        usage = MessageUsage(input_tokens=n_prompt, cache_read_input_tokens=0, output_tokens=0)
        message = MessageReply(
            id=head.id,
            model=head.model,
            content=[],
            stop_reason=None,
            stop_sequence=None,
            usage=usage,
            overflow=prepared.report,
            ignored=skipped or None,
        )
        none = {name for name in ("overflow", "ignored") if getattr(message, name) is None}
        body = message.model_dump(exclude={"timings", *none})
        return sse.event({"type": "message_start", "message": body}, "message_start")

    def begin(block: OutBlock) -> ServerSentEvent:
        return _event("content_block_start", index=index, content_block=block.model_dump(exclude_none=True))

    yield start()
    async for piece in beats(run, ping_s, (Said, Called, Done)):
        n_quiet = n_quiet + 1 if piece is None else n_quiet
        if piece is None and n_quiet % sse.WATCHED == 0:
            nothing = {"stop_reason": None, "stop_sequence": None}
            yield _event("message_delta", delta=nothing, usage={"output_tokens": 0})
        elif piece is None:
            yield _event("ping")
        elif isinstance(piece, (Said, Called)):
            kind = "tool_use" if isinstance(piece, Called) else "thinking" if piece.reasoning else "text"
            if kind != open_kind or kind == "tool_use":
                if index >= 0:
                    yield _event("content_block_stop", index=index)
                index, open_kind = index + 1, kind
                if isinstance(piece, Called):
                    yield begin(ToolUseBlock(id=piece.id, name=piece.name, input={}))
                elif piece.reasoning:
                    yield begin(ThinkingBlock(thinking=""))
                else:
                    yield begin(TextBlock(text=""))
            yield _event("content_block_delta", index=index, delta=_delta(piece))
        elif isinstance(piece, Done):
            if index < 0:
                index = 0
                yield begin(TextBlock(text=""))
            yield _event("content_block_stop", index=index)
            usage = _usage(piece.usage).model_dump()
            yield _event("message_delta", delta=_end(piece), usage=usage)
            yield _event("message_stop")


def _event(type: str, **fields: Any) -> ServerSentEvent:
    return sse.event({"type": type, **fields}, type)


def _delta(piece: Said | Called) -> dict[str, str]:
    if isinstance(piece, Called):
        return {"type": "input_json_delta", "partial_json": json.dumps(_input(piece.arguments))}
    if piece.reasoning:
        return {"type": "thinking_delta", "thinking": piece.text}
    return {"type": "text_delta", "text": piece.text}
