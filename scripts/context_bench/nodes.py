"""The time of a context's attention, node by node of its graphs."""

from __future__ import annotations

import ctypes
import statistics
import time
from typing import Any

from pyllama_long._native import llama_cpp as C
from pyllama_long.opened import Opened

ATTENTION = (b"FLASH_ATTN_EXT", b"LONG_ATTN")
NOTHING = (b"VIEW", b"RESHAPE", b"PERMUTE", b"TRANSPOSE")  # what a node costs that computes nothing
LEAST = 1e-6  # seconds

_describe = C.llama_cpp._lib.ggml_op_desc
_describe.restype, _describe.argtypes = ctypes.c_char_p, (ctypes.c_void_p,)


class Nodes:
    """A graph's eval callback. Within `with`, every node is computed alone; afterwards `seconds` has the time of each
    attention node, in order."""

    def __init__(self) -> None:
        self.callback = C.ggml_backend_sched_eval_callback(self._called)
        self.seconds: list[float] = []
        self._on, self._last = False, 0.0
        self._found: list[tuple[bytes, float]] = []

    def __enter__(self) -> None:
        self._on, self._found = True, []

    def __exit__(self, *_error: object) -> None:
        self._on = False
        idle = statistics.median([seconds for op, seconds in self._found if op in NOTHING] or [0.0])
        self.seconds = [max(LEAST, seconds - idle) for op, seconds in self._found if op in ATTENTION]

    def _called(self, node: Any, ask: bool, _data: Any) -> bool:
        if not self._on:
            return False
        if ask:
            self._last = time.perf_counter()
        else:
            self._found.append((_describe(node), time.perf_counter() - self._last))
        return True


def windowed(opened: Opened, n: int) -> list[bool]:
    """Whether each of the n layers with attention, in order, has a sliding window."""
    if not C.llama_model_n_swa(opened.model.model):
        return [False] * n
    values = opened.model.file.values
    pattern = values.get(f"{values['general.architecture']}.attention.sliding_window_pattern", 1)
    if isinstance(pattern, tuple):
        return [bool(window) for window in pattern[:n]]
    return [(i + 1) % int(str(pattern)) != 0 for i in range(n)]
