"""How fast prompts are read here, for users who want to know how long a long one takes."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pyllama_long import filler
from pyllama_long.engine import Request

from . import logs

if TYPE_CHECKING:
    from pyllama_long.engine import Engine

_WARM, _MEASURED = 8, 64  # tokens; the first ones may wait for the disk
_EXAMPLE = 20_000  # tokens, as coding agents send them
_LONG_S = 10.0  # prompts of this time and more are reported
_SALT = "pace"  # a salt, so that no client's text shares the cache with these prompts


def measure(engine: Engine) -> float | None:
    """Prompt tokens per second; None if unknown."""
    tokens = engine.tokenize(" ".join(filler.sentences()[:20]).encode(), False)
    if len(tokens) < _WARM + _MEASURED or engine.n_ctx <= _MEASURED:
        return None
    seconds = 0.0
    for prompt in (tokens[:_WARM], tokens[_WARM : _WARM + _MEASURED]):
        began = time.monotonic()
        for _ in engine.submit(Request(prompt, max_tokens=0, salt=_SALT)):
            pass
        seconds = time.monotonic() - began
    return _MEASURED / max(seconds, 1e-6)


def example(engine: Engine) -> str:
    """A line about the speed; empty if it is unknown, for example because the engine was closed meanwhile."""
    with suppress(Exception):
        pace, n = measure(engine), min(_EXAMPLE, engine.n_ctx)
        if pace is not None:
            return f"a prompt of {n:,} tokens takes at least about {_rounded(n / pace)} s here"
    return ""


def tell(n_left: int, n_read: int, seconds: float) -> None:
    """Logs the remaining time of a long prompt, after its first chunk."""
    if n_read and (left := n_left * seconds / n_read) >= _LONG_S:
        logs.event("long prompt", tokens=n_left + n_read, seconds_left=round(left))


def _rounded(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.1f}"
