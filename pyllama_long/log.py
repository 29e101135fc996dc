"""llama.cpp's log: silent unless somebody asked for it, with the last complaints kept to be quoted in errors."""

from __future__ import annotations

import logging
import sys
from collections import deque

from pyllama_long._native import _logger, llama_cpp

_WARN, _ERROR, _CONT = 3, 4, 5  # ggml_log_level
_kept: deque[str] = deque(maxlen=64)
_last = 0


@llama_cpp.llama_log_callback
def _on_line(level: int, text: bytes, _data: object) -> None:
    global _last
    line = text.decode(errors="replace")
    if level != _CONT:
        _last = level
    if _last in (_WARN, _ERROR):
        if level == _CONT and _kept:
            _kept[-1] += line
        else:
            _kept.append(line)
    if _logger.logger.level <= logging.DEBUG and sys.stderr is not None:
        print(line, end="", file=sys.stderr, flush=True)


def install(verbose: bool) -> None:
    """Takes the log over from llama_cpp; verbose: print every line to stderr."""
    llama_cpp.llama_log_set(_on_line, None)  # type: ignore[arg-type]
    _logger.set_verbose(verbose)


def forget() -> None:
    """Starts over: `complaint` quotes only lines that come after this."""
    _kept.clear()


def complaint() -> str:
    """The warnings and errors since `forget`, without function names, joined; empty when there are none."""
    lines: list[str] = []
    for line in _kept:
        words = line.strip().rstrip(".")
        function, colon, rest = words.partition(": ")
        words = rest if colon and function.isidentifier() else words
        words = words.removeprefix("error loading model: ")
        if words and not words.startswith("failed to load model") and words not in lines:
            lines.append(words)
    return "; ".join(lines[-3:])
