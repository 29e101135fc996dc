"""Ctrl-C while a C function runs that calls Python back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Holds Ctrl-C back until the end. Yields a function that tells whether it was pressed.

    Python runs a signal's handler before its next line, which may be in a callback of llama.cpp, for a line of its log
    or the progress of loading. An exception that the handler raises there would be printed and lost, as ctypes has
    nowhere to raise it. Signals only reach the main thread, so other threads need none of this.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: pressed.append((number, frame)))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, handler)
        if pressed:
            handler(*pressed[0])
