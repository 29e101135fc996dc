"""The client's connection: work ends when the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

from fastapi import Request as HttpRequest

from .errors import ApiError

T = TypeVar("T")


async def while_connected(http: HttpRequest, work: Awaitable[T]) -> T:
    """The result of work, which is cancelled if the client disconnects. Raises ApiError (499) then, which nobody
    reads."""
    task = asyncio.ensure_future(work)

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.create_task(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "The client has gone.", code="client_closed_request")
        return task.result()
    finally:
        for one in (task, watch):
            if not one.done():
                one.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await one
