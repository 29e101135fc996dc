"""Log-probabilities of given tokens, and of all, while a text is read in the plan's tail phase."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllama_long.arrays import FloatArray, IntArray
from pyllama_long.logprobs import rows_at_once

if TYPE_CHECKING:
    from pyllama_long.llama import LongLlama

__all__ = ["Array", "log_softmax", "of_tokens", "read_tail"]

Array = np.ndarray[Any, np.dtype[np.float64]]


def log_softmax(logits: FloatArray) -> Array:
    """[n, n_vocab] in double precision."""
    found: Array = logits.astype(np.float64)
    found -= found.max(axis=1, keepdims=True)
    found -= np.log(np.exp(found).sum(axis=1, keepdims=True))
    return found


def of_tokens(logits: FloatArray, ids: IntArray) -> Array:
    """[n]: the log-probability of ids [n] under logits [n, n_vocab]."""
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    found: Array = values[np.arange(len(ids)), ids] - np.log(np.exp(values).sum(axis=1))
    return found


def read_tail(llm: LongLlama, tail: IntArray, visit: Callable[[int, FloatArray], None]) -> None:
    """Reads tail [n] after the current text as the plan's tail. visit(i, rows): called with logits [m, n_vocab] of
    tail[i : i + m], in order. Afterwards the text ends with the tail."""
    begin = llm.n_tokens
    llm.mark_tail()
    try:
        llm.sequence.extend(
            tail,
            progress=llm.progress,
            visit=lambda at, rows: visit(at - begin, rows),
            chunk=rows_at_once(llm.n_batch, llm.n_vocab()),
        )
    finally:
        llm.set_tail(None)
