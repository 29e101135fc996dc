"""Settings and statistics of a llama_context."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllama_long.layers import read
from pyllama_long.libllama.library import lib, llama_cpp
from pyllama_long.libllama.structs import CConfig, CError, CInitParams, CStats


class Interrupt:
    """Stops the `llama_decode` of a context from any thread, between two operations of its graph: it returns 2 then.
    llama.cpp calls it after each operation, so it must not wait for the interpreter's lock. Therefore the callback is
    a C function that reads one bool, ggml_get_no_alloc, of an otherwise empty ggml context."""

    def __init__(self, ctx: Any) -> None:
        self._flag = lib.ggml_init(CInitParams(1024, None, False))
        ask = ctypes.cast(lib.ggml_get_no_alloc, llama_cpp.llama_set_abort_callback.argtypes[1])
        llama_cpp.llama_set_abort_callback(ctx, ask, self._flag)

    def set(self, on: bool) -> None:
        lib.ggml_set_no_alloc(self._flag, on)

    def close(self) -> None:
        """Frees it; to be called after the context was freed."""
        if self._flag:
            lib.ggml_free(self._flag)
        self._flag = None


@dataclass(frozen=True)
class Stats:
    """Rows (token, head, layer) that the op computed, keys that exact attention would have read for them,
    keys read, tokens decoded with the op, and runs of neighbouring cells that held the keys, summed over batches
    and the sequences in them."""

    n_queries: int
    keys_visible: int
    keys_read: int
    n_tokens: int
    n_runs: int


def configure_next(config: CConfig | None) -> None:
    """Sets the configuration of this thread's next llama_context; None: upstream's attention."""
    lib.plong_llama_configure_next(config)


def configure(ctx: int, config: CConfig) -> None:
    """Changes a live context; its RoPE policy can only change while its cache is empty. Raises ValueError with the
    reason."""
    reason = ctypes.create_string_buffer(512)
    if lib.plong_llama_configure(ctx, config, reason, len(reason)) != 0:
        raise ValueError(reason.value.decode(errors="replace"))


def set_tail(ctx: int, seq: int, pos: int | None) -> None:
    """Makes tokens of seq at positions >= pos the tail; None forgets it."""
    lib.plong_llama_set_tail(ctx, seq, -1 if pos is None else pos)


def set_rope_factor(ctx: int, seq: int, factor: float) -> None:
    """Gives a sequence another factor of a dynamic policy and rotates its cached keys to it. Raises RuntimeError."""
    error = ctypes.create_string_buffer(256)
    if lib.plong_llama_set_rope_factor(ctx, seq, factor, error, len(error)):
        raise RuntimeError(error.value.decode(errors="replace"))


def rope_factor(ctx: int, seq: int) -> float:
    """The factor of a sequence; 1 if the policy is not dynamic."""
    return float(lib.plong_llama_rope_factor(ctx, seq))


def stats(ctx: int) -> Stats:
    c = CStats()
    lib.plong_llama_stats(ctx, c)
    return Stats(c.n_queries, c.keys_visible, c.keys_read, c.n_tokens, c.n_runs)


def errors(ctx: int) -> np.recarray[Any, Any]:
    """[heads] with the fields of CError, by layer and head; none where the plan checks nothing, or left nothing out."""
    n = lib.plong_llama_errors(ctx, None, 0)
    found = np.zeros(n, np.dtype(CError))
    lib.plong_llama_errors(ctx, found.ctypes.data_as(ctypes.POINTER(CError)), n)
    return found.view(np.recarray)


def record(ctx: int, on: bool) -> None:
    """Begins anew, or ends, to count which keys each layer reads."""
    lib.plong_llama_record(ctx, on)


def reads(ctx: int, layer: int) -> npt.NDArray[np.float64]:
    """[positions]: how many rows (token, head) of a layer read each key; empty where the op does not compute it."""
    n = lib.plong_llama_reads(ctx, layer, None, 0)
    found = np.empty(n)
    lib.plong_llama_reads(ctx, layer, found.ctypes.data_as(ctypes.POINTER(ctypes.c_double)), n)
    return found


def index_memory(ctx: int) -> int:
    """Bytes that the indexes of keys take once the whole context was read; 0 if the plan chooses no keys."""
    return int(lib.plong_llama_index_memory(ctx))


def stats_reset(ctx: int) -> None:
    lib.plong_llama_stats_reset(ctx)


def layers(ctx: int) -> list[tuple[int, str]]:
    """(layer, reason) of the layers with attention, as of the last graph; the reason is empty when the op takes one."""
    return read(_text(lib.plong_llama_layers, ctx))


def native_layers(ctx: int) -> list[tuple[int, str]]:
    """The same layers with the reason why a RoPE policy leaves their positions alone, by design, or ""."""
    return read(_text(lib.plong_llama_native_layers, ctx))


def windows(ctx: int) -> dict[int, str]:
    """What layers with a window of their own read, whatever the plan: "the last 1024 tokens"."""
    rows = (line.split("\t") for line in _text(lib.plong_llama_layers, ctx).splitlines())
    return {int(layer): window for layer, _, window in rows if window}


def _text(write: Callable[..., int], ctx: int) -> str:
    n = write(ctx, None, 0)
    text = ctypes.create_string_buffer(n + 1)
    write(ctx, text, n + 1)
    return text.value.decode(errors="replace")
