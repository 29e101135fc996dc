"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from sse_starlette import ServerSentEvent

from .. import chat_request, custom_tools, fields, replies, sse, tools
from ..body import StrictRoute
from ..delivery import deliver
from ..openapi import streamed
from ..pieces import CallPiece, Done, Reading, TextPiece, Tokens
from ..run import Prepared, Run
from ..schemas.chat import (
    Answer,
    Called,
    CalledDelta,
    CalledInput,
    CalledInputDelta,
    ChatChoice,
    ChatChunk,
    ChatReply,
    ChatRequest,
    ChunkChoice,
    CustomToolCall,
    Delta,
    FinishReason,
    ToolCall,
    ToolCallDelta,
)
from ..state import state_of
from ..whole import Whole

router = APIRouter(route_class=StrictRoute, tags=["OpenAI"])


@router.post("/chat/completions", include_in_schema=False)
@router.post(
    "/v1/chat/completions",
    response_model=ChatReply,
    response_model_exclude_none=False,
    responses=streamed(ChatChunk, "Chunks, then [DONE]; with stream."),
)
async def create(request: ChatRequest, http: Request) -> Response:
    state = state_of(http)
    loaded = state.loaded
    fields.check(request, http)
    skipped = tools.left_out(request)
    fields.ignored(http, *skipped)
    prepared = await chat_request.prepare(http, loaded, request)
    head = replies.head("chatcmpl-", state.settings.model_name)
    return await deliver(
        http,
        loaded,
        prepared,
        streams=request.stream,
        events=lambda run: chunks(request, run, head, skipped),
        reply=lambda _, wholes: reply(request, prepared, wholes, head, skipped),
    )


def reply(
    request: ChatRequest, prepared: Prepared, wholes: list[Whole], head: replies.Head, skipped: list[str]
) -> JSONResponse:
    done = [whole.done for whole in wholes if whole.done is not None]
    found = ChatReply(
        **cast(Any, head.fields()),
        choices=[_choice(i, whole, request, prepared) for i, whole in enumerate(wholes)],
        usage=replies.usage(done),
        timings=replies.timings(done[0]),
        overflow=prepared.report,
        ignored=skipped or None,
    )
    body = found.model_dump(exclude=replies.absent(found))
    for choice in body["choices"]:
        for key in ("reasoning_content", "tool_calls"):
            if choice["message"][key] is None:
                del choice["message"][key]
    return JSONResponse(body)


def _call(call: CallPiece, custom: bool) -> ToolCall | CustomToolCall:
    if custom:
        made = CalledInput(name=call.name, input=custom_tools.input_of(call.arguments))
        return CustomToolCall(id=call.id, custom=made)
    return ToolCall(id=call.id, function=Called(name=call.name, arguments=call.arguments))


def _choice(i: int, whole: Whole, request: ChatRequest, prepared: Prepared) -> ChatChoice:
    assert whole.done is not None
    called = [_call(call, call.name in prepared.custom) for call in whole.calls]
    message = Answer(
        content=None if called and not whole.text else whole.text,
        reasoning_content=whole.reasoning or None,
        tool_calls=called or None,
    )
    logprobs = replies.chat_logprobs(whole.tokens, request.top_logprobs or 0) if request.logprobs else None
    reason = cast(FinishReason, whole.done.reason)
    return ChatChoice(index=i, message=message, logprobs=logprobs, finish_reason=reason)


async def chunks(
    request: ChatRequest, run: Run, head: replies.Head, skipped: list[str]
) -> AsyncIterator[ServerSentEvent]:
    """Makes the events of a stream."""
    fields = cast(Any, head.fields())
    n = len(run.handles)
    waiting: list[list[Any]] = [[] for _ in range(n)]
    done: list[Done] = []
    options = request.stream_options

    def chunk(i: int, delta: Delta, finish: str | None = None, **more: Any) -> ServerSentEvent:
        logprobs = None
        if request.logprobs and waiting[i]:
            logprobs = replies.chat_logprobs(waiting[i], request.top_logprobs or 0)
            waiting[i] = []
        choice = ChunkChoice(index=i, delta=delta, logprobs=logprobs, finish_reason=cast(Any, finish))
        return _event(ChatChunk(**fields, choices=[choice], **more))

    for i in range(n):
        first: dict[str, Any] = {"overflow": run.prepared.report, "ignored": skipped or None}
        yield chunk(i, Delta(role="assistant", content=""), **(first if i == 0 else {}))
    async for i, piece in run.pieces():
        if isinstance(piece, Reading):
            if request.return_progress:
                yield _event(ChatChunk(**fields, choices=[], prompt_progress=replies.progress(piece)))
        elif isinstance(piece, Tokens):
            waiting[i] += piece.tokens
        elif isinstance(piece, TextPiece):
            said = Delta(reasoning_content=piece.text) if piece.reasoning else Delta(content=piece.text)
            yield chunk(i, said)
        elif isinstance(piece, CallPiece):
            for delta in _call_deltas(piece, piece.name in run.prepared.custom):
                yield chunk(i, Delta(tool_calls=[delta]))
        elif isinstance(piece, Done):
            done.append(piece)
            last = len(done) == n
            yield chunk(i, Delta(), piece.reason, timings=replies.timings(piece) if last else None)
    if options is not None and options.include_usage:
        yield _event(ChatChunk(**fields, choices=[], usage=replies.usage(done)))


def _call_deltas(call: CallPiece, custom: bool) -> list[ToolCallDelta]:
    place: dict[str, Any] = {"index": call.index}
    if custom:
        text, name = custom_tools.input_of(call.arguments), CalledInputDelta(name=call.name, input="")
        begin = ToolCallDelta(**place, id=call.id, type="custom", custom=name)
        return [begin, ToolCallDelta(**place, custom=CalledInputDelta(input=text))]
    first = CalledDelta(name=call.name, arguments="")
    begin = ToolCallDelta(**place, id=call.id, type="function", function=first)
    return [begin, ToolCallDelta(**place, function=CalledDelta(arguments=call.arguments))]


def _event(chunk: ChatChunk) -> ServerSentEvent:
    """Choices contain `finish_reason` and `logprobs` even if they are null; other fields only if they are not."""
    found = chunk.model_dump(exclude_none=True)
    for choice in found["choices"]:
        choice.setdefault("finish_reason", None)
        choice.setdefault("logprobs", None)
    return sse.event(found)
