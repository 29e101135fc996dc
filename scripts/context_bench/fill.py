"""A cache filled to a depth without computing it: speed depends on positions, not on what the cells hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from context_bench.grown import grown
from pyllama_long import _native
from pyllama_long._native import llama_cpp as C


def fill(ctx: Any, n: int) -> int:
    """Copies the contents of sequence 0, positions 0 .. b, to the following positions, up to n. Returns how many
    tokens sequence 0 then holds: n, or, where cells are copied within the cache, a multiple of b; 0 if this model's
    cache cannot be copied, and then it is empty. The context must have two sequences in one unified cache.
    """
    memory = C.llama_get_memory(ctx)
    block = int(C.llama_memory_seq_pos_max(memory, 0)) + 1
    if not _movable(ctx):
        return _fill_grown(ctx, memory, n)
    plain = not C.llama_memory_can_shift(memory)
    state, where = (np.empty(0, np.uint8), np.empty(0, np.intp)) if plain else _state(ctx, memory, block)
    C.llama_memory_clear(memory, False)  # drops the shift that _state left pending
    if not len(where):
        return 0
    words = state[: len(state) // 4 * 4].view(np.int32)
    first = words[where].copy()
    for start in range(0, n // block * block, block):
        words[where] = first + start
        if not C.llama_state_seq_set_data(ctx, _native.byte_pointer(state), len(state), 1):
            C.llama_memory_clear(memory, False)
            return 0
        C.llama_memory_seq_cp(memory, 1, 0, start, start + block)
    C.llama_memory_seq_rm(memory, 1, -1, -1)
    return n // block * block


def _fill_grown(ctx: Any, memory: Any, n: int) -> int:
    """Restores a state that is made of sequence 0's: layers with windows, or with states, need all of it at once."""
    model = C.llama_get_model(ctx)
    n_swa = int(C.llama_model_n_swa(model))
    try:
        state = grown(_saved(ctx), n, (0, n_swa) if n_swa else (0,), bool(C.llama_model_is_hybrid(model)))
    except ValueError:
        state = np.empty(0, np.uint8)
    C.llama_memory_clear(memory, False)
    if len(state) and C.llama_state_seq_set_data(ctx, _native.byte_pointer(state), len(state), 0):
        return n
    C.llama_memory_clear(memory, False)
    return 0


def _movable(ctx: Any) -> bool:
    model = C.llama_get_model(ctx)
    kinds = (C.llama_model_is_recurrent, C.llama_model_is_hybrid, C.llama_model_n_swa)
    return not any(kind(model) for kind in kinds)


def _state(ctx: Any, memory: Any, block: int) -> tuple[Any, Any]:
    """The state of sequence 0, and which of its 32-bit words are positions: those that a shift by 1 changes by 1."""
    before = _saved(ctx)
    # changes the cells' positions at once, but K only with the next decode
    C.llama_memory_seq_add(memory, 0, 0, -1, 1)
    after = _saved(ctx)
    if len(before) != len(after):
        return before, np.empty(0, np.intp)
    n = len(before) // 4 * 4
    change = after[:n].view(np.int32) - before[:n].view(np.int32)
    where = np.flatnonzero(change)
    known = len(where) == block and bool((change[where] == 1).all())
    return before, where if known else np.empty(0, np.intp)


def _saved(ctx: Any) -> Any:
    state = np.empty(C.llama_state_seq_get_size(ctx, 0), np.uint8)
    n = C.llama_state_seq_get_data(ctx, _native.byte_pointer(state), len(state), 0)
    return state[:n]
