"""Server-sent events: chunks as JSON, an error as the last event where one happens, pings as comments."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from pydantic import BaseModel
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus

from .errors import ApiError, from_engine
from .run import Run

# Streams in flight finish when the server shuts down; the library would cut them at once.
AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]

DONE = ServerSentEvent("[DONE]", sep="\n")
# Claude Code and Codex hang up after 300 s without an event; for both, comments and `ping` events are none.
SEND_S = 60.0  # for an event, to a client that does not read
WATCHED = 6  # pings, after which something comes that is one


def event(chunk: BaseModel | dict[str, Any], name: str | None = None, nulls: bool = False) -> ServerSentEvent:
    """A chunk as an event. nulls: fields that are None are written, too."""
    if isinstance(chunk, BaseModel):
        data = chunk.model_dump_json(exclude_none=not nulls, by_alias=True)
    else:
        data = json.dumps(chunk, ensure_ascii=False)
    return ServerSentEvent(data, event=name, sep="\n")


async def _guarded(
    run: Run, chunks: AsyncIterator[ServerSentEvent], anthropic: bool
) -> AsyncIterator[ServerSentEvent]:
    try:
        async for chunk in chunks:
            yield chunk
    except Exception as error:
        found: ApiError = from_engine(error, run.prepared.param)
        if anthropic:
            yield event({"type": "error", "error": found.error}, "error")
        else:
            yield event({"error": found.error})
    finally:
        run.cancel()
    if not anthropic:
        yield DONE


def response(
    http: Request, run: Run, chunks: AsyncIterator[ServerSentEvent], anthropic: bool = False
) -> EventSourceResponse:
    """A stream of events that cancels the run when the client goes away. anthropic: their error event, no [DONE],
    and pings of the route's own in place of comments."""
    return EventSourceResponse(
        _guarded(run, chunks, anthropic),
        ping=0 if anthropic else http.app.state.state.settings.ping_s,
        ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
        sep="\n",
        headers={"Cache-Control": "no-store"},
        send_timeout=SEND_S,
    )
