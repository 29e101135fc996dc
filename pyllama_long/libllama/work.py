"""Batches as the C code reads them, and the work that it plans for one (work.h)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_void_p

import numpy as np
import numpy.typing as npt

from pyllama_long.libllama.library import address, lib
from pyllama_long.libllama.structs import CAttnParams, CBatch, CLimits, CShape, c_plan, c_rope
from pyllama_long.plan import AttentionPlan
from pyllama_long.rope import RopePolicy

Words = npt.NDArray[np.int32]


def c_batch(
    plan: AttentionPlan,
    rope: RopePolicy,
    slots: Sequence[Sequence[int]],
    groups: Sequence[Sequence[int]],
    runs: Sequence[Sequence[int]],
    precision: int = 0,
    pages: Sequence[Sequence[int]] = (),
    checks: Sequence[int] = (),
    step: int = 1,
) -> Words:
    """The int32 words of a struct plong_batch; slots, groups and runs have the fields of CSlot, CGroup and CRun. pages:
    (stream, page) of those that the index of keys lacks. checks: tokens whose exact results are known. step: between
    the positions of a group's tokens."""
    n_tokens = sum(group[3] for group in groups)
    counts = [len(part) for part in (slots, groups, runs, pages, checks)]
    head = CBatch(*counts, n_tokens, precision, step, c_plan(plan), c_rope(rope))
    words = [np.frombuffer(bytes(head), np.int32)]
    words += [np.array(part, np.int32).ravel() for part in (slots, groups, runs, pages, checks)]
    return np.concatenate(words)


class Work:
    """The work of a batch for layers of one shape, within the limits of a backend.

    batch: what c_batch() returns. limits: of cpu_limits(). words: int32, what the op's work tensor holds. str()
    lists tiles, ranges and readers.
    """

    def __init__(self, batch: Words, shape: CShape, limits: CLimits) -> None:
        head = ctypes.cast(batch.ctypes.data_as(c_void_p), POINTER(CBatch))
        work = lib.plong_work_new(head, shape, limits)
        if not work:
            raise MemoryError("no memory to plan the work of a batch")
        try:
            self.words: Words = np.frombuffer(
                ctypes.string_at(work, 4 * lib.plong_work_words(work)), np.int32
            )
        finally:
            lib.plong_work_free(work)

    @property
    def choice_words(self) -> int:
        """int32 words of the keys that are chosen by content; 0: there are none."""
        return int(lib.plong_work_choice_words(self.words.ctypes.data_as(c_void_p)))

    def __str__(self) -> str:
        work = self.words.ctypes.data_as(c_void_p)
        size = lib.plong_work_print(work, None, 0) + 1
        text = ctypes.create_string_buffer(size)
        lib.plong_work_print(work, text, size)
        return text.value.decode()


def cpu_limits(shape: CShape, n_threads: int) -> CLimits:
    """The limits of the CPU backend for layers of this shape and this many threads."""
    limits: CLimits = lib.plong_cpu_limits(shape, n_threads)
    return limits


def cpu_refusal(q: int, k: int, v: int, params: CAttnParams) -> str | None:
    """Why the CPU backend does not run the op on such tensors; None when it does."""
    reason = lib.plong_backend_supports(address("plong_cpu_backend"), q, k, v, params)
    return None if reason is None else str(reason.decode(errors="replace"))
