"""What one rendering of a template may use: time, and the size of what it makes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NoReturn

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined

SECONDS = 10.0  # seconds of rendering
_MIN_SIZE = 1 << 22  # characters of all values together, besides a multiple of the input
_GROWTH = 64
PLAIN = (bool, int, float, type(None), Undefined)
VIEWS: tuple[Any, ...] = (type({}.keys()), type({}.values()), type({}.items()))
DATA = (list, tuple, dict, range, *VIEWS)


class TooMuch(jinja2.TemplateRuntimeError):
    """A template exceeded its bounds."""


class Stopped(Exception):
    """Nobody is waiting for the text any more."""


class Budget:
    """What one rendering may still use. given: its input values; stopped: whether nobody waits for it any more."""

    def __init__(
        self, given: Any, seconds: float = SECONDS, stopped: Callable[[], bool] | None = None
    ) -> None:
        self._given: dict[int, tuple[Any, int]] = {}
        self._made: dict[int, tuple[Any, int]] = {}
        self._end, self._seconds, self._stopped = time.monotonic() + seconds, seconds, stopped
        self.left = 1 << 62
        self.left = self._most = _MIN_SIZE + _GROWTH * self.weigh(given)
        self._given, self._made = self._made, {}

    def tick(self, size: int = 0) -> None:
        """Called before each step of a loop, call, filter and operator; size: characters that it writes."""
        self.left -= size
        if self.left < 0:
            self._too_large()
        if time.monotonic() > self._end:
            raise TooMuch(f"it takes longer than {self._seconds:g} s")
        if self._stopped is not None and self._stopped():
            raise Stopped

    def room(self, size: int) -> None:
        """Raises TooMuch unless something of that size can be made."""
        if size > self.left:
            self._too_large()

    def weigh(self, value: Any) -> int:
        """The size of a value in characters; an item counts as several, and a shared one as often as it would be
        written."""
        if isinstance(value, str):
            return len(value)
        if isinstance(value, PLAIN) or not isinstance(value, DATA):
            return 8
        if isinstance(value, range):
            return 8 * len(value)
        known = self._given.get(id(value)) or self._made.get(id(value))
        if known is not None:
            return known[1]
        size, items = 8, value
        if isinstance(value, dict):
            size, items = size + sum(self._inside(key) for key in value), value.values()
        for item in items:
            size += self._inside(item)
            if size > self.left:
                self._too_large()
        self._made[id(value)] = value, size  # kept alive, so that no other value gets its id
        return size

    def _inside(self, value: Any) -> int:
        if not isinstance(value, (str, *PLAIN, *DATA)):
            raise TooMuch(f"it puts a {type(value).__name__} into a list")
        return 8 + self.weigh(value)

    def change(self, value: Any) -> None:
        """Called before a list or an object is changed."""
        if id(value) in self._given:
            raise SecurityError("it changes what it is given")
        self._made.clear()

    def _too_large(self) -> NoReturn:
        raise TooMuch(f"it makes more than {self._most:,} characters of this conversation")


BUDGET: ContextVar[Budget] = ContextVar("budget")
