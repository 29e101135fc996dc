"""Answers a prepared request with a stream of events or as a whole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from fastapi import Request as HttpRequest
from fastapi.responses import Response
from sse_starlette import ServerSentEvent

from . import sse
from .run import Prepared, Run, submit
from .state import Loaded, state_of
from .whole import Whole, collect


async def deliver(
    http: HttpRequest,
    loaded: Loaded,
    prepared: Prepared,
    *,
    streams: bool | None,
    events: Callable[[Run], AsyncIterator[ServerSentEvent]],
    reply: Callable[[Run, list[Whole]], Response],
    anthropic: bool = False,
) -> Response:
    """Runs a request. events: makes those of a stream; reply: makes the reply from whole answers, without a stream.
    anthropic: events in the form of that API. Raises ApiError before the first byte of an answer."""
    state = state_of(http)
    run = await submit(loaded.engine, prepared, state.metrics, state.settings.request_timeout_s)
    if streams:
        return sse.response(http, run, events(run), anthropic)
    return reply(run, await collect(http, run))
