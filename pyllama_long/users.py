"""Keeps track of who uses something that another thread may free."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Users:
    """The users of one thing, which is freed when nobody uses it any more. closed: makes the error for those who come
    too late."""

    def __init__(self, closed: Callable[[], Exception]) -> None:
        self._closed, self._ended = closed, False
        self._threads: list[int] = []
        self._free: Callable[[], None] | None = None
        self._left, self._pid = threading.Condition(), os.getpid()

    @contextmanager
    def use(self) -> Iterator[None]:
        """Keeps it from being freed within the block. Raises `closed` after `end`."""
        # after a fork, the lock may be held by a thread that does not exist here
        if os.getpid() != self._pid:
            yield
            return
        me = threading.get_ident()
        with self._left:
            if self._ended and me not in self._threads:
                raise self._closed()
            self._threads.append(me)
        try:
            yield
        finally:
            with self._left:
                self._threads.remove(me)
                free = None if self._threads else self._free
                if free is not None:
                    self._free = None
                self._left.notify_all()
            if free is not None:
                free()

    def end(self, free: Callable[[], None], wait_s: float | None = None) -> None:
        """Takes no more users, waits at most wait_s for the last one, and frees. When the time is over, or when this
        thread is itself a user (garbage collection can cause that), the last user frees instead. Does nothing after a
        fork: the memory ends with the process."""
        if os.getpid() != self._pid:
            return
        with self._left:
            self._ended = True
            me = threading.get_ident()
            if me in self._threads or not self._left.wait_for(lambda: not self._threads, wait_s):
                self._free = free
                return
        free()
