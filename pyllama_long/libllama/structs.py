"""The structs of ggml_ext.h and plong_llama.h, and plans and policies as such."""

from __future__ import annotations

import ctypes
from ctypes import c_bool, c_double, c_float, c_int32, c_int64, c_size_t, c_void_p
from typing import Any

from pyllama_long.context_options import PRECISIONS
from pyllama_long.phase import MAX_BRANCHES, PAGE, Phase
from pyllama_long.plan import AttentionPlan
from pyllama_long.rope import RopePolicy

ABI_VERSION = 12

MAX_ROT = 512

_WEIGHTS = ("count", "stride", "none")
_ALIGNS = ("segment", "query")
_FREQS = ("native", "linear", "ntk", "yarn", "llama3", "longrope")
_MAPS = ("absolute", "dca", "self-extend", "rerope")


def _ints(names: str) -> list[tuple[str, Any]]:
    return [(name, c_int32) for name in names.split()]


class CPhase(ctypes.Structure):
    _fields_ = [
        *_ints("sinks window global dense_below weight align n_branches"),
        ("segment", c_int32 * MAX_BRANCHES),
        ("rate", c_int32 * MAX_BRANCHES),
        *_ints("top_blocks top_least top_block"),
        *((name, c_float) for name in ("top_share", "top_mass")),
        *_ints("lsh_keys"),
        ("lsh_share", c_float),
        *_ints("sample sample_seed"),
        *((name, c_float) for name in ("sample_share", "verify_eps", "verify_delta")),
        *_ints("query_block"),
    ]


class CPlan(ctypes.Structure):
    _fields_ = [("phase", CPhase * 2), *_ints("dense_layers check correct"), ("error", c_float)]


class CRope(ctypes.Structure):
    _fields_ = [
        ("freq", c_int32),
        *((name, c_float) for name in ("factor", "beta_fast", "beta_slow", "low_freq", "high_freq")),
        *_ints("map chunk local logn n_train dynamic n_factors"),
        ("factors", c_float * (MAX_ROT // 2)),
    ]


class CSlot(ctypes.Structure):
    _fields_ = _ints("stream run_beg run_end")


class CGroup(ctypes.Structure):
    _fields_ = _ints("slot phase tok n pos")


class CRun(ctypes.Structure):
    _fields_ = _ints("pos cell n")


class CPage(ctypes.Structure):
    _fields_ = _ints("stream page")


class CBatch(ctypes.Structure):
    """The head of a batch; slots, groups, runs, pages and checks follow it in memory."""

    _fields_ = [
        *_ints("n_slots n_groups n_runs n_pages n_checks n_tokens precision step"),
        ("plan", CPlan),
        ("rope", CRope),
    ]


class CAttnParams(ctypes.Structure):
    _fields_ = [
        *((name, c_float) for name in ("scale", "max_bias", "soft_cap")),
        *_ints("layer n_rot rot_first neox hadamard"),
    ]


class CInputs(ctypes.Structure):
    _fields_ = [
        (name, c_void_p) for name in ("batch", "work", "table", "sink_logits", "choices", "index", "exact")
    ]


class CShape(ctypes.Structure):
    _fields_ = _ints("d_k d_v n_head n_head_kv dense")


class CLimits(ctypes.Structure):
    _fields_ = _ints(
        "max_rows min_rows tiles dilated_tiles dilated_rows classes narrow narrow_rows span narrow_span "
        "narrow_spans range_rows"
    )


class CConfig(ctypes.Structure):
    _fields_ = [*_ints("abi enabled precision"), ("plan", CPlan), ("rope", CRope)]


class CStats(ctypes.Structure):
    _fields_ = [(name, c_int64) for name in ("n_queries", "keys_visible", "keys_read", "n_tokens", "n_runs")]


class CError(ctypes.Structure):
    _fields_ = [
        *_ints("layer head"),
        ("rows", c_int64),
        *((name, c_double) for name in ("error", "norm", "most")),
    ]


class CInitParams(ctypes.Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


def c_phase(phase: Phase, rows: int = 1) -> CPhase:
    """rows: how many positions choose their keys together."""
    c = CPhase(
        phase.sinks,
        phase.window,
        phase.global_,
        phase.dense,
        _WEIGHTS.index(phase.weight),
        _ALIGNS.index(phase.align),
        len(phase.branches),
    )
    for k, branch in enumerate(phase.branches):
        c.segment[k], c.rate[k] = branch.segment, branch.rate
    if phase.topk:
        topk = phase.topk
        c.top_blocks, c.top_least, c.top_block = topk.blocks, topk.least, topk.block
        c.top_share, c.top_mass = topk.share, topk.mass
    if phase.lsh:
        c.lsh_keys, c.lsh_share = phase.lsh.keys, phase.lsh.share
    if phase.sample:
        c.sample, c.sample_share, c.sample_seed = phase.sample.keys, phase.sample.share, phase.sample.seed
    if phase.verified:
        verified = phase.verified
        c.verify_eps, c.verify_delta, c.sample_seed = verified.eps, verified.delta, verified.seed
    c.query_block = rows if phase.chooses else 0
    return c


def c_plan(plan: AttentionPlan) -> CPlan:
    return CPlan(
        (CPhase * 2)(c_phase(plan.prefill, PAGE), c_phase(plan.tail)),
        plan.dense_layers,
        plan.checked,
        int(plan.delta > 0),
        plan.error,
    )


def c_rope(rope: RopePolicy) -> CRope:
    bands = (rope.factor, rope.beta_fast, rope.beta_slow, rope.low_freq, rope.high_freq)
    places = (_MAPS.index(rope.map), rope.chunk, rope.local, int(rope.logn), rope.n_train, int(rope.dynamic))
    return CRope(_FREQS.index(rope.freq), *bands, *places, len(rope.factors), tuple(rope.factors))


def c_config(plan: AttentionPlan, rope: RopePolicy, enabled: bool = True, precision: str = "auto") -> CConfig:
    """enabled: False for llama.cpp's own attention. precision: one of PRECISIONS."""
    return CConfig(ABI_VERSION, int(enabled), PRECISIONS.index(precision), c_plan(plan), c_rope(rope))
