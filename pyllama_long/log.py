"""llama.cpp's log: silent unless requested; the last complaints are kept to be quoted in errors."""

from __future__ import annotations

import logging
import re
import sys
from collections import deque

from pyllama_long._native import _logger, llama_cpp

_WARN, _ERROR, _CONT = 3, 4, 5  # ggml_log_level
_kept: deque[tuple[int, str]] = deque(maxlen=64)
_last = 0
# Texts that llama.cpp writes before a reason, or in place of one.
_FUNCTIONS = re.compile(r"^(\w+: |error loading model: |failed to initialize the context: )+")
_EMPTY = ("failed to load model",)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _on_line(level: int, text: bytes, _data: object) -> None:
    global _last
    line = text.decode(errors="replace")
    _last = _last if level == _CONT else level
    if _last in (_WARN, _ERROR):
        before = _kept.pop()[1] if level == _CONT and _kept else ""
        _kept.append((_last, before + line))
    if _logger.logger.level <= logging.DEBUG and sys.stderr is not None:
        print(line, end="", file=sys.stderr, flush=True)


def install(verbose: bool) -> None:
    """Takes the log over from llama_cpp; verbose: print every line to stderr."""
    llama_cpp.llama_log_set(_on_line, None)
    _logger.set_verbose(verbose)


def forget() -> None:
    """Starts over: `complaint` quotes only lines that come after this."""
    _kept.clear()


def complaint() -> str:
    """The errors since `forget`, or if there are none the warnings, in one line without names of functions."""
    found: dict[int, list[str]] = {_WARN: [], _ERROR: []}
    for level, line in _kept:
        words = _FUNCTIONS.sub("", line.strip().rstrip("."))
        if words and not words.startswith(_EMPTY) and words not in found[level]:
            found[level].append(words)
    lines = found[_ERROR] or found[_WARN]
    return "; ".join(lines[-3:]) or "llama.cpp gives no reason"
