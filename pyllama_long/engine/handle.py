"""A request as its caller sees it: its events, one after another, and cancel."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from pyllama_long.engine.events import Event, Finished


class Handle:
    """Iterate over it once, from one thread or one asyncio task: events until Finished, or an error raised
    (DecodeError, EngineClosed). Dropping it does not stop the request; `cancel` does.

    tokens: prompt and answer so far, for `Engine.sessions.save`.
    """

    def __init__(self, id: str, salt: str, prompt: list[int], on_cancel: Callable[[], None]) -> None:
        self.id, self.salt, self.tokens = id, salt, prompt
        self._on_cancel = on_cancel
        self._lock = threading.Lock()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()  # wakes a thread that waits
        self._listening = False
        self._events: deque[Event] = deque()
        self._error: BaseException | None = None
        self._ended = False
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._woken = False  # whether the waiter was woken since it last looked
        self.cancelled = False

    def cancel(self) -> None:
        """Ends the request within one step: its last event is Finished("cancelled"). From any thread."""
        self.cancelled = True
        self._on_cancel()

    def put(self, event: Event) -> None:
        """Adds an event. For the engine's thread."""
        with self._lock:
            self._events.append(event)
            self._ended = self._ended or isinstance(event, Finished)
            self._wake()

    def fail(self, error: BaseException) -> None:
        """Ends the events with an error, after those that are there. For the engine."""
        with self._lock:
            if not self._ended:
                self._error, self._ended = error, True
                self._wake()

    @property
    def ended(self) -> bool:
        return self._ended

    def _wake(self) -> None:
        if self._listening:
            self._listening = False
            self._bell.put(None)
        if self._waiter is not None and not self._woken:
            self._woken = True
            loop, event = self._waiter
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:  # its loop is closed: nobody reads any more
                self._waiter = None
                self.cancelled = True

    def _take(self) -> Event | None:
        """The next event; None when there is none yet. Raises at the end."""
        if self._events:
            return self._events.popleft()
        if self._error is not None:
            raise self._error
        if self._ended:
            raise StopIteration
        return None

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        while True:
            with self._lock:
                if (event := self._take()) is not None:
                    return event
                self._listening = True
            self._bell.get()  # unlike a condition, Ctrl-C can interrupt it at any point

    async def __aiter__(self) -> AsyncIterator[Event]:
        ready = asyncio.Event()
        with self._lock:
            self._waiter = asyncio.get_running_loop(), ready
        try:
            while True:
                with self._lock:
                    ready.clear()
                    self._woken = False
                    try:
                        event = self._take()
                    except StopIteration:
                        return
                if event is None:
                    await ready.wait()
                else:
                    yield event
        finally:
            with self._lock:
                self._waiter = None
