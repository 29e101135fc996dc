"""Server-sent events: chunks as JSON, an error as the last event if there is one, pings as comments."""

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

# Running streams finish when the server shuts down; the library would cut them at once.
AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]

DONE = ServerSentEvent("[DONE]", sep="\n")
# Claude Code and Codex disconnect after 300 s without an event; neither counts comments or `ping` events.
SEND_S = 60.0  # seconds that sending an event to a client that does not read may take
WATCHED = 6  # pings after which an event is sent that these clients count


def event(chunk: BaseModel | dict[str, Any], name: str | None = None, nulls: bool = False) -> ServerSentEvent:
    """A chunk as an event. nulls: also write fields that are None."""
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
    """A stream of events that cancels the run when the client disconnects. anthropic: with their error event, without
    [DONE], and with the route's own pings in place of comments."""
    return EventSourceResponse(
        _guarded(run, chunks, anthropic),
        ping=0 if anthropic else http.app.state.state.settings.ping_s,
        ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
        sep="\n",
        headers={"Cache-Control": "no-store"},
        send_timeout=SEND_S,
    )
