"""Checkpoints: what a text needs to go on from an earlier place where the memory itself cannot go back.

Recurrent states and sliding windows only know the end of a text. Their part of the memory is small, so copies of it are
kept from places where a later prompt is likely to differ: where messages begin, near the end of a prompt, and at
intervals. The cells of full attention are not copied, since they can be cut anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllama_long import _native, log
from pyllama_long._native import llama_cpp
from pyllama_long.arrays import MIN_PREFILL, IntArray

logger = logging.getLogger("pyllama_long.engine")
Bytes = npt.NDArray[np.uint8]
_PARTIAL = llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
_NEAR = 64  # tokens that are read again at most rather than kept once more
_ENDING = 32  # tokens at the end of a prompt that may be the beginning of its answer
_SHARE = 8  # an interval by the least distance of two messages that are both kept


@dataclass(frozen=True)
class Limits:
    """most: checkpoints of one text, 0 for none. every: tokens between two of them at most. n_bytes: of all."""

    most: int = 64
    every: int = 2048
    n_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        for name, value, least, unit in (
            ("checkpoints", self.most, 0, "a number, or 0 for none"),
            ("checkpoint_every", self.every, MIN_PREFILL, f"{MIN_PREFILL} tokens or more"),
            ("checkpoint_ram", self.n_bytes, 0, "a number of bytes"),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
                raise ValueError(f"{name} is {value!r}: give {unit}")

    def __str__(self) -> str:
        if not self.most or not self.n_bytes:
            return "none"
        return f"{self.most} of a text, every {self.every} tokens, {self.n_bytes / 2**30:.3g} GiB in memory at most"

    @property
    def near(self) -> int:
        """Tokens that are not worth a checkpoint of their own."""
        return max(MIN_PREFILL, min(_NEAR, self.every // _SHARE))

    def places(self, n: int, marks: Sequence[int] | IntArray, begin: int = 0, page: int = 1) -> list[int]:
        """Where a prompt of n tokens is to be kept, in order. marks: indexes of tokens at which messages begin or end,
        in order. begin: tokens that are there already. At least MIN_PREFILL tokens are between two places and after
        the last one, so that no answer depends on them. page: of the plan (AttentionPlan.page); places are multiples
        of it."""
        last = n - MIN_PREFILL
        if self.most == 0 or last < begin + self.near:
            return []
        gap = max(self.near, self.every // _SHARE, n // self.most)
        every = max(self.every, gap)
        found, at = [], begin
        for mark in [*(int(mark) for mark in marks if begin < mark <= last), last]:
            while mark - at > every:
                at += every
                found.append(at)
            if mark - at >= gap and mark < last:
                found.append(mark)
                at = mark
        # The next prompt is likely to differ where this answer begins, or in the marks before it.
        end = next((int(mark) for mark in marks if max(begin, n - _ENDING) <= mark <= last), last)
        found = [place for place in found if place <= end]
        found += [end] if end - (found[-1] if found else begin) >= self.near else []
        return found if page == 1 else sorted({place - place % page for place in found} - {0})


def spare(places: Sequence[int]) -> int:
    """Index of the checkpoint that is missed least: the distance between its neighbours is the shortest. The last two
    stay."""
    inner = range(len(places) - 2)
    if not inner:
        return 0
    before = [0, *places]
    return min(inner, key=lambda i: before[i + 2] - before[i])


class SmallState:
    """The part of a context's memory that cannot go back, for its sequences.

    fixed: recurrent states, alone or beside attention, which only know the end of a text. alone: nothing else is kept
    of a text. exists: whether there is such a part at all.
    """

    def __init__(self, ctx: Any, model: Any) -> None:
        self._ctx, self._memory = ctx, llama_cpp.llama_get_memory(ctx)
        recurrent = bool(llama_cpp.llama_model_is_recurrent(model))
        self.fixed = recurrent or bool(llama_cpp.llama_model_is_hybrid(model))
        self.alone = recurrent
        # This also holds where swa_full keeps every token: other sequences may use the cells that the window has
        # left.
        self.window = int(llama_cpp.llama_model_n_swa(model))
        self.exists = self._memory is not None and (self.fixed or self.window > 0)
        self._known = self.fixed  # whether it has been seen that the windows have a cache of their own

    def explain(self, limits: Limits) -> str:
        """What is kept of earlier places, and why."""
        if not self.exists:
            return "none, the memory can go back"
        why = "recurrent states know" if self.fixed else f"windows of {self.window} tokens know"
        return f"{limits} ({why} only the end of a text)"

    def can_go_back(self, seq: int, n: int) -> bool:
        """Whether a sequence can be cut after its first n tokens, fewer than it has, without a checkpoint."""
        if self.fixed:
            return False
        return not self.window or int(llama_cpp.llama_memory_seq_pos_min(self._memory, seq)) <= max(
            0, n - self.window
        )

    def read(self, seq: int) -> Bytes | None:
        """A copy of a sequence's part. None where the memory keeps every token after all."""
        size = int(llama_cpp.llama_state_seq_get_size_ext(self._ctx, seq, _PARTIAL))
        if not self._known:
            self._known = True
            self.exists = size < int(llama_cpp.llama_state_seq_get_size(self._ctx, seq))
        if not self.exists:
            return None
        try:
            data = np.empty(size, np.uint8)
        except MemoryError:
            logger.warning("there is no main memory for a checkpoint of %d bytes: lower checkpoint_ram", size)
            return None
        n = llama_cpp.llama_state_seq_get_data_ext(self._ctx, _native.byte_pointer(data), size, seq, _PARTIAL)
        return data[:n] if 0 < n <= size else None

    def go_back(self, seq: int, data: Bytes, n: int) -> bool:
        """Puts a copy back that was made after n tokens, and drops the tokens after them. The sequence holds the cells
        of at least these n tokens. If False, it can only be emptied, or this be tried again with more room."""
        log.forget()
        pointer = _native.byte_pointer(data)
        taken = llama_cpp.llama_state_seq_set_data_ext(self._ctx, pointer, len(data), seq, _PARTIAL)
        if taken != len(data) or not llama_cpp.llama_memory_seq_rm(self._memory, seq, n, -1):
            return False
        return int(llama_cpp.llama_memory_seq_pos_max(self._memory, seq)) == n - 1
