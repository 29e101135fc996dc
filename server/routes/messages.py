"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sse_starlette import ServerSentEvent

from pyllama_long.engine import events

from .. import chat_request, fields, lanes, message_input, prompt, replies, sse
from ..body import StrictRoute
from ..delivery import deliver
from ..openapi import streamed
from ..pieces import CallPiece, Done, TextPiece
from ..run import Prepared, Run, beats
from ..schemas.common import AnthropicErrorReply
from ..schemas.messages import (
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
    ToolUseBlock,
)
from ..state import state_of
from ..template import arguments
from ..template_options import TemplateOptions
from ..whole import Whole

router = APIRouter(route_class=StrictRoute, tags=["Anthropic"])

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
    skipped = message_input.left_out(request)
    fields.ignored(http, *skipped)
    made = await lanes.run(message_input.as_chat, request)
    prepared = await chat_request.prepare(http, loaded, made, _FIELDS)
    head = replies.head("msg_", state.settings.model_name)
    return await deliver(
        http,
        loaded,
        prepared,
        streams=request.stream,
        events=lambda run: stream(run, head, skipped, state.settings.ping_s),
        reply=lambda _, wholes: reply(wholes[0], prepared, head, skipped),
        anthropic=True,
    )


def reply(whole: Whole, prepared: Prepared, head: replies.Head, skipped: list[str]) -> Response:
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
    return Response(found.model_dump_json(exclude=replies.absent(found)), media_type="application/json")


@router.post("/v1/messages/count_tokens", response_model=CountReply)
async def count(request: CountRequest, http: Request) -> CountReply:
    fields.check(request, http, others=_ANSWERED)
    fields.ignored(http, *message_input.left_out(request))
    loaded = state_of(http).loaded
    made = await lanes.run(message_input.as_chat, request)
    options = TemplateOptions.of(http, loaded, made, made.messages, _FIELDS)
    found = await lanes.run(prompt.make, loaded, made.messages, options)
    return CountReply(input_tokens=len(found.tokens))


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
    # Anthropic counts cached tokens separately.
    return MessageUsage(
        input_tokens=usage.n_prompt - usage.n_cached,
        cache_read_input_tokens=usage.n_cached,
        output_tokens=usage.n_completion,
    )


async def stream(
    run: Run, head: replies.Head, skipped: list[str], ping_s: float
) -> AsyncIterator[ServerSentEvent]:
    """Anthropic's events: blocks that begin, grow and stop. The first one is sent before the prompt is read; how much
    of it was cached is reported at the end."""
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
        body = message.model_dump(exclude={"timings", *replies.absent(message)})
        return sse.event({"type": "message_start", "message": body}, "message_start")

    def begin(block: OutBlock) -> ServerSentEvent:
        return _event("content_block_start", index=index, content_block=block.model_dump(exclude_none=True))

    yield start()
    async for piece in beats(run, ping_s, (TextPiece, CallPiece, Done)):
        n_quiet = n_quiet + 1 if piece is None else n_quiet
        if piece is None and n_quiet % sse.WATCHED == 0:
            nothing = {"stop_reason": None, "stop_sequence": None}
            yield _event("message_delta", delta=nothing, usage={"output_tokens": 0})
        elif piece is None:
            yield _event("ping")
        elif isinstance(piece, (TextPiece, CallPiece)):
            kind = "tool_use" if isinstance(piece, CallPiece) else "thinking" if piece.reasoning else "text"
            if kind != open_kind or kind == "tool_use":
                if index >= 0:
                    yield _event("content_block_stop", index=index)
                index, open_kind = index + 1, kind
                if isinstance(piece, CallPiece):
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


def _delta(piece: TextPiece | CallPiece) -> dict[str, str]:
    if isinstance(piece, CallPiece):
        return {"type": "input_json_delta", "partial_json": json.dumps(_input(piece.arguments))}
    if piece.reasoning:
        return {"type": "thinking_delta", "thinking": piece.text}
    return {"type": "text_delta", "text": piece.text}
