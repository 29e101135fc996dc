"""Plans and RoPE policies as the C code reads them: checks, keys, angles."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_double, c_float, c_int32, c_int64

import numpy as np
import numpy.typing as npt

from pyllama_long.libllama.arrays import pointer
from pyllama_long.libllama.library import lib
from pyllama_long.libllama.structs import CConfig, c_phase, c_plan, c_rope
from pyllama_long.phase import Phase
from pyllama_long.plan import AttentionPlan
from pyllama_long.rope import RopePolicy


def check(config: CConfig) -> None:
    """Raises ValueError when the plan or the policy cannot be run."""
    for complaint in (lib.plong_plan_check(config.plan), lib.plong_rope_check(config.rope)):
        if complaint is not None:
            raise ValueError(complaint.decode(errors="replace"))


def head_number(head: int, n_head: int, n_head_kv: int) -> int:
    """The number of a query head in dilated attention, which sets its offsets."""
    return int(lib.plong_head_number(head, n_head, n_head_kv))


def plan_index(plan: AttentionPlan) -> int:
    """What the index of keys has: 1: their dims in 4 bits, 2: their hashes; the sum of these, or 0."""
    return int(lib.plong_plan_index(c_plan(plan)))


def phase_keys(phase: Phase, p: int, h: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Positions [n], ascending, and log_w [n] of the keys that query position p of head number h reads."""
    c = c_phase(phase)
    n = lib.plong_phase_keys(c, p, h, 0, None, None)
    pos, log_w = np.empty(n, np.int32), np.empty(n, np.float32)
    lib.plong_phase_keys(c, p, h, n, pointer(pos, c_int32), pointer(log_w, c_float))
    return pos, log_w


def phase_count(phase: Phase, p: int, h: int, rows: int = 1) -> int:
    """How many keys the query reads; rows: how many positions choose keys together."""
    return int(lib.plong_phase_count(c_phase(phase, rows), p, h))


def rope_freqs(
    rope: RopePolicy, n_rot: int, base: float, model_factors: Sequence[float] | None = None
) -> tuple[npt.NDArray[np.float64], float]:
    """Angular frequencies [n_rot/2] in radians per position, and the magnitude of cos and sin."""
    f = np.empty(n_rot // 2, np.float64)
    own = None if model_factors is None else np.asarray(model_factors, np.float32)
    factors = None if own is None else pointer(own, c_float)
    magnitude = lib.plong_rope_freqs(c_rope(rope), n_rot, base, factors, pointer(f, c_double))
    return f, float(magnitude)


def rope_stored(rope: RopePolicy, t: int) -> int:
    return int(lib.plong_rope_stored(c_rope(rope), t))


def rope_distance(rope: RopePolicy, p: int, t: int) -> int:
    return int(lib.plong_rope_distance(c_rope(rope), p, t))


def rope_logn(rope: RopePolicy, p: int) -> float:
    return float(lib.plong_rope_logn(c_rope(rope), p))


def rope_angles(f: npt.NDArray[np.float64], pos: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """cos and sin [n, n_rot/2, 2] of f [n_rot/2] times pos [n], the way the kernels read their table."""
    n_rot = 2 * len(f)
    f, pos = np.ascontiguousarray(f, np.float64), np.ascontiguousarray(pos, np.int64)
    table = np.empty(4 * 256 * n_rot, np.float32)
    out = np.empty((len(pos), len(f), 2), np.float32)
    lib.plong_rope_table(pointer(f, c_double), n_rot, pointer(table, c_float))
    lib.plong_rope_angles(
        pointer(table, c_float), n_rot, pointer(pos, c_int64), len(pos), pointer(out, c_float)
    )
    return out
