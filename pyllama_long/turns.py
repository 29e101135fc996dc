"""Decides who may use a LongLlama: one thread at a time, and only the latest call."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Protocol, TypeVar, cast

_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])


class Turns:
    """Calls wait for each other. A stream does not block others between its pieces, and ends when another call has
    begun."""

    def __init__(self) -> None:
        self._lock, self._pid = threading.RLock(), os.getpid()
        self._outside = False  # whether a callback of the user runs within a call
        self.number = 0

    @property
    def forked(self) -> bool:
        """Whether this is a child process, which has the memory of a model but none of its threads."""
        return os.getpid() != self._pid

    @contextmanager
    def look(self) -> Iterator[None]:
        """For work that only reads: waits for calls of other threads. Raises RuntimeError after a fork."""
        if self.forked:
            raise RuntimeError(
                "this LongLlama was loaded before the process forked: load it in the child process"
            )
        with self._lock:
            yield

    @contextmanager
    def use(self) -> Iterator[None]:
        """For work that changes the context: not allowed within a callback either."""
        with self.look():
            if self._outside:
                raise RuntimeError(
                    "a callback has called the LongLlama that called it: do that when the call has returned, or "
                    "with another LongLlama"
                )
            yield

    @contextmanager
    def end(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Like `use`, but interrupts a running call of another thread."""
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            interrupt()
        with self.use():
            yield

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Wraps a callback of the user."""
        before, self._outside = self._outside, True
        try:
            yield
        finally:
            self._outside = before

    def begin(self) -> int:
        """Begins a new call and ends streams that are still open. Returns the call's number."""
        self.number += 1
        return self.number

    def check(self, number: int) -> None:
        """Raises RuntimeError when a later call has begun."""
        if number != self.number:
            raise RuntimeError("this stream has ended: another call on the same LongLlama has begun")

    def steps(self, stream: Generator[_T, Any, Any]) -> Generator[_T, Any, None]:
        """The same stream, but each of its steps waits for other threads."""
        given: Any = None
        try:
            while True:
                with self.use():
                    try:
                        piece = stream.send(given)
                    except StopIteration:
                        return
                given = yield piece
        finally:
            stream.close()


class _InTurns(Protocol):
    turns: Turns


def alone(method: _F) -> _F:
    """Decorates a method of LongLlama that changes the context."""

    @wraps(method)
    def call(self: _InTurns, *args: Any, **kwargs: Any) -> Any:
        with self.turns.use():
            return method(self, *args, **kwargs)

    return cast(_F, call)


def looking(method: _F) -> _F:
    """Decorates a method of LongLlama that reads what the context holds."""

    @wraps(method)
    def call(self: _InTurns, *args: Any, **kwargs: Any) -> Any:
        with self.turns.look():
            return method(self, *args, **kwargs)

    return cast(_F, call)
