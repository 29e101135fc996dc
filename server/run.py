"""Runs a prepared request on the engine and yields the pieces of each choice as they arrive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from pyllama_long.engine import Engine, Handle, Request, events

from . import lanes, pace
from .answer import AnswerParser
from .errors import ApiError, bad, from_engine
from .metrics import Metrics
from .pieces import CallPiece, Done, Piece, Reading, Scored, Tokens
from .schemas.common import OverflowReport


@dataclass
class Prepared:
    """Requests for the engine, and how to read their answers. param: the field that contains prompts. one_call: the
    answer ends after its first tool call. spent_s: the part of the time limit that preparing took. custom: names of
    tools that take one text."""

    requests: list[Request]
    parser: Callable[[], AnswerParser]
    param: str = "messages"
    one_call: bool = False
    report: OverflowReport | None = None
    spent_s: float = 0.0
    custom: frozenset[str] = frozenset()


@dataclass
class Run:
    """Submitted requests. The owner of a Run must call `cancel` if it is abandoned; calling it twice is harmless."""

    prepared: Prepared
    handles: list[Handle]
    metrics: Metrics
    timeout_s: float = 0.0
    started: float = field(default_factory=time.monotonic)
    _late: bool = False

    def cancel(self) -> None:
        for handle in self.handles:
            if not handle.ended:
                handle.cancel()

    def _time_out(self) -> None:
        self._late = True
        self.cancel()

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """Yields (choice, piece) for all choices as they arrive. Raises ApiError."""
        timer = None
        if self.timeout_s:
            left = max(0.0, self.timeout_s - self.prepared.spent_s)
            timer = asyncio.get_running_loop().call_later(left, self._time_out)
        queue: asyncio.Queue[tuple[int, Piece | BaseException | None]] = asyncio.Queue()

        async def pump(i: int) -> None:
            try:
                async for piece in self._choice(i):
                    queue.put_nowait((i, piece))
                queue.put_nowait((i, None))
            except Exception as error:
                queue.put_nowait((i, error))

        tasks = [asyncio.create_task(pump(i)) for i in range(len(self.handles))]
        try:
            running = len(tasks)
            while running:
                i, piece = await queue.get()
                if isinstance(piece, BaseException):
                    raise from_engine(piece, self.prepared.param)
                if piece is None:
                    running -= 1
                else:
                    yield i, piece
        finally:
            self.cancel()
            for task in tasks:
                task.cancel()
            if timer is not None:
                timer.cancel()
            self.metrics.finished(len(tasks))

    async def _choice(self, i: int) -> AsyncIterator[Piece]:
        handle, parser = self.handles[i], self.prepared.parser()
        first, told, n_reasoning, ended_by_call = True, False, 0, False
        async for event in handle:
            if isinstance(event, events.Started):
                yield Reading(event.n_prompt, event.n_cached, event.n_cached, 0.0)
            elif isinstance(event, events.Progress):
                if not told:
                    told = True
                    pace.tell(event.total - event.processed, event.processed - event.cached, event.seconds)
                yield Reading(event.total, event.cached, event.processed, event.seconds)
            elif isinstance(event, events.PromptScores):
                yield Scored(event.tokens)
            elif isinstance(event, events.Text) and not ended_by_call:
                if first:
                    first = False
                    self.metrics.first_token(time.monotonic() - self.started)
                n_reasoning += len(event.tokens) if parser.reasoning else 0
                yield Tokens(event.tokens)
                for piece in parser.feed(event.text):
                    if ended_by_call:
                        break
                    yield piece
                    if isinstance(piece, CallPiece) and self.prepared.one_call:
                        ended_by_call = True
                        handle.cancel()
            elif isinstance(event, events.Finished):
                self.metrics.used(event.usage)
                if event.reason == "cancelled" and not ended_by_call:
                    raise self._why_cancelled()
                for piece in [] if ended_by_call else parser.finish(event.reason == "length"):
                    yield piece
                reason = "tool_calls" if parser.n_calls else "stop"
                if event.reason == "length":  # the last call may have been cut
                    reason = "length"
                yield Done(reason, event.stop_string, event.usage, n_reasoning)

    def _why_cancelled(self) -> ApiError:
        if self._late:
            message = f"The answer took longer than the limit of {self.timeout_s:g} s."
            return ApiError(408, message, type="timeout_error", code="timeout")
        return ApiError(503, "The server is shutting down.", code="shutting_down")


async def beats(run: Run, seconds: float, loud: tuple[type, ...]) -> AsyncIterator[Piece | None]:
    """Yields the pieces of one choice, and None whenever none of the loud types has arrived for this long."""
    pieces = run.pieces()
    waiting: asyncio.Task[tuple[int, Piece] | None] | None = None
    due = time.monotonic() + seconds
    try:
        while True:
            if waiting is None:
                waiting = asyncio.create_task(_next(pieces))
            await asyncio.wait({waiting}, timeout=max(0.0, due - time.monotonic()))
            if not waiting.done():
                yield None
                due = time.monotonic() + seconds
                continue
            found, waiting = waiting.result(), None
            if found is None:
                return
            yield found[1]
            if isinstance(found[1], loud):
                due = time.monotonic() + seconds
    finally:
        if waiting is not None:
            waiting.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await waiting
        await pieces.aclose()


async def _next(pieces: AsyncIterator[tuple[int, Piece]]) -> tuple[int, Piece] | None:
    return await anext(pieces, None)


async def submit(engine: Engine, prepared: Prepared, metrics: Metrics, timeout_s: float) -> Run:
    """Submits requests to the engine. Raises ApiError, in which case none of them runs."""
    most, n = engine.config.n_parallel + engine.config.max_queue, len(prepared.requests)
    if n > most:
        message = f"n: {n} answers at once are too many: this server takes {most} (--parallel and --queue)."
        raise bad(message, "n")
    handles: list[Handle] = []

    def all_of_them() -> None:
        for request in prepared.requests:
            lanes.check()
            handles.append(engine.submit(request))

    # Checking a grammar and copying a long prompt take time.
    work = lanes.start(all_of_them)
    try:
        await asyncio.shield(work)
    except BaseException as error:
        with suppress(Exception, asyncio.CancelledError):
            await work
        for handle in handles:
            handle.cancel()
        if isinstance(error, Exception):
            raise from_engine(error, prepared.param) from None
        raise
    metrics.submitted(len(handles))
    return Run(prepared, handles, metrics, timeout_s)
