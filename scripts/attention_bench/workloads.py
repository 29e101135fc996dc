"""The workloads: caches, plans, and how many keys and bytes they read. The cases have the same form as those of the
tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from cases import Array, Case, Layout, Seq
from op_graph import CaseBatch

from pyllama_long import _native, context_options, pattern
from pyllama_long.phase import Phase

D, N_HEAD, N_HEAD_KV = 128, 32, 8
PEAKED = 2.5  # standard deviation of the logits, about as in a trained model
POSITIONS = 8  # positions of a decode with a sparse plan: dilation reads other keys at each position
BLOCKS = 0.05
SINKS = "exact, sink logits"  # to be within 2% of exact
KV_TYPES = ("f16", "bf16", "q8_0", "q4_0")  # unless others are asked for
# Multi-head latent attention of GLM-4.7-Flash, of DeepSeek-V3 with 128 heads.
LATENT: dict[str, Any] = {
    "n_head": 20,
    "n_head_kv": 1,
    "d_k": 576,
    "d_v": 512,
    "v_in_k": True,
    "n_rot": 64,
    "rot_first": 512,
}


@dataclass(frozen=True)
class Sizes:
    short: tuple[int, int] = (512, 32768)  # new tokens, keys
    long: tuple[int, int] = (512, 131072)
    decode: int = 131072
    sequences: tuple[int, int] = (8, 16384)
    latent: tuple[int, int] = (512, 8192)
    window: str = "sinks(64)+window(4096)"
    dilated: str = "dilated()"
    topk: str = "sinks(64)+window(1024)+topk(3%)"
    hyper: str = "sinks(64)+window(1024)+lsh(3%)+sample(1%)"


QUICK = Sizes(
    short=(128, 2048),
    long=(128, 8192),
    decode=16384,
    sequences=(8, 2048),
    latent=(64, 1024),
    window="sinks(64)+window(512)",
    dilated="dilated(w0=256, alpha=2, n=5)",
    topk="sinks(64)+window(256)+topk(5%)",
    hyper="sinks(64)+window(256)+lsh(5%)+sample(2%)",
)


@dataclass(frozen=True)
class Workload:
    """One or more cases that share a cache, with queries at different positions; times are means over them."""

    name: str
    plan: str  # as the table shows it
    cases: tuple[Case, ...]
    lifelike: bool = False  # keys and queries: lifelike.py; else independent random numbers

    @property
    def case(self) -> Case:
        return self.cases[0]

    @property
    def kv_type(self) -> str:
        return self.case.kv_type

    @property
    def decode(self) -> bool:
        return all(seq.n_new == 1 for seq in self.case.seqs)

    @property
    def exact(self) -> bool:
        """Whether upstream runs it too."""
        return self.plan == "exact"

    def __str__(self) -> str:
        return f"{self.name} {self.kv_type} {self.plan}"


def row_bytes(dims: int, kv_type: str) -> int:
    """Of a head in the cache."""
    return int(dims * context_options.KV_TYPES[kv_type].bits) // 8


def _workload(name: str, seqs: tuple[Seq, ...], kv_type: str, plan: str = "exact", **shape: Any) -> Workload:
    blocks, every_key = plan.startswith("blocks"), plan in ("exact", SINKS)
    shifts = [0]
    if not every_key and seqs[0].n_new == 1:
        shifts = list(range(1 - POSITIONS, 1))
    cases = tuple(
        Case(
            f"{name} {plan}",  # the same for all, since it seeds the layout
            **({"n_head": N_HEAD, "n_head_kv": N_HEAD_KV, "d_k": D, "d_v": D} | shape),
            kv_type=kv_type,
            plan="exact" if blocks or every_key else plan,
            sink=0.0 if plan == SINKS else None,
            peaked=PEAKED,
            seqs=tuple(
                Seq(s.n_past + shift, s.n_new, s.tail, blocks=BLOCKS if blocks else 1.0) for s in seqs
            ),
        )
        for shift in shifts
    )
    return Workload(name, plan, cases)


def workloads(sizes: Sizes, kv_types: Sequence[str] = KV_TYPES) -> list[Workload]:
    """Each exact workload comes before the plans that are compared with it, which are in f16."""
    plans = (sizes.window, sizes.dilated, sizes.topk, sizes.hyper, f"blocks {BLOCKS:.0%}")
    found = []
    n_new, n = sizes.short
    for kv_type in kv_types:
        found.append(_workload(f"prefill {n_new}x{n}", (Seq(n - n_new, n_new),), kv_type))
        if kv_type == "f16":
            found.append(_workload(f"prefill {n_new}x{n}", (Seq(n - n_new, n_new),), kv_type, SINKS))
    n_new, n = sizes.long
    for plan in ("exact", *plans) if "f16" in kv_types else ():
        found.append(_workload(f"prefill {n_new}x{n}", (Seq(n - n_new, n_new),), "f16", plan))
    one = (Seq(sizes.decode - 1, 1, tail=1),)
    for kv_type in kv_types:
        found.append(_workload(f"decode 1x{sizes.decode}", one, kv_type))
        if kv_type == "f16":
            found += [_workload(f"decode 1x{sizes.decode}", one, kv_type, plan) for plan in (SINKS, *plans)]
        elif kv_type in ("q8_0", "q4_0"):
            found.append(_workload(f"decode 1x{sizes.decode}", one, kv_type, sizes.topk))
    many, n = sizes.sequences
    if "f16" in kv_types:
        found.append(_workload(f"decode {many} sequences x{n}", (Seq(n - 1, 1, tail=1),) * many, "f16"))
    n_new, n = sizes.latent
    if "f16" in kv_types:
        found.append(_workload(f"latent prefill {n_new}x{n}", (Seq(n - n_new, n_new),), "f16", **LATENT))
    for n_head, kv_type in ((20, "f16"), (20, "bf16"), (20, "q8_0"), (128, "f16")):
        name = f"latent decode 1x{sizes.decode}, {n_head} heads"
        if kv_type in kv_types:
            found.append(_workload(name, one, kv_type, **(LATENT | {"n_head": n_head})))
    return found


def lifelike(sizes: Sizes, kv_types: Sequence[str] = ("f16", "q8_0", "q4_0")) -> list[Workload]:
    """Exact and chosen keys, prefill and decode, in each type."""
    n_new, n = sizes.long
    found = []
    for name, seq in (
        (f"prefill {n_new}x{n}", Seq(n - n_new, n_new)),
        (f"decode 1x{sizes.decode}", Seq(sizes.decode - 1, 1, tail=1)),
    ):
        for kv_type in kv_types:
            for plan in ("exact", sizes.topk, sizes.hyper):
                found.append(replace(_workload(f"lifelike {name}", (seq,), kv_type, plan), lifelike=True))
    return found


@dataclass(frozen=True)
class Work:
    """The work of one run, as a mean over the positions: (query, key, head) triples read and causal, bytes of K and
    V."""

    pairs: float
    causal: float
    kv_bytes: float
    dims: int  # of a key and of its value

    @property
    def share(self) -> float:
        return self.pairs / self.causal

    @property
    def flops(self) -> float:
        return 2 * self.dims * self.pairs


def work(batches: list[CaseBatch]) -> Work:
    totals = np.zeros(3)
    case = batches[0].case
    row = row_bytes(case.d_k if case.v_in_k else case.d_k + case.d_v, case.kv_type)
    for batch in batches:
        for one, phase, q_pos in _phases(batch):
            pairs = _pairs(phase, one, q_pos, case.n_head)
            totals += (pairs, int((q_pos + 1).sum()) * case.n_head, 0)
        for one in batch.layouts:
            totals[2] += row * sum(_distinct(batch, one, h) for h in range(case.n_head_kv))
    pairs, causal, kv_bytes = (totals / len(batches)).tolist()
    return Work(pairs, causal, kv_bytes, case.d_k + case.d_v)


def _phases(batch: CaseBatch) -> Iterator[tuple[Layout, Phase, Array]]:
    for one in batch.layouts:
        for i, phase in enumerate((batch.plan.prefill, batch.plan.tail)):
            yield one, phase, one.q_pos[one.phase == i]


def _pairs(phase: Phase, one: Layout, q_pos: Array, n_head: int) -> int:
    if phase == Phase.parse("exact"):  # share of the cache
        return int(np.searchsorted(one.pos, q_pos, "right").sum()) * n_head
    assert len(one.pos) == one.pos[-1] + 1, "a plan over a cache with holes is not counted"
    period = pattern.period(phase)
    total = 0
    for head in range(min(period, n_head)):
        heads = len(range(head, n_head, period))
        total += heads * sum(_native.phase_count(phase, int(p), head) for p in q_pos)
    return total


def _distinct(batch: CaseBatch, one: Layout, kv_head: int) -> int:
    """The keys of a KV head that are read by any query of its heads."""
    t = np.arange(int(one.pos[-1]) + 1)
    read = np.zeros(len(t), bool)
    for layout, phase, p in _phases(batch):
        if layout is not one or not len(p):
            continue
        far, near = pattern.set_parts(phase, p)
        read |= _cover(np.zeros_like(far), far, len(t)) | _cover(near, p + 1, len(t))
        if phase.chooses:  # at most; other queries may choose other keys
            chosen = _native.phase_count(phase, int(p[-1]), 0) - int((far + p + 1 - near)[-1])
            read[np.flatnonzero(~read)[: max(0, chosen)]] = True
        for head in range(kv_head, batch.case.n_head, batch.case.n_head_kv):  # their numbers
            for branch, (start, stop) in zip(phase.branches, pattern.spans(phase, p, head), strict=True):
                on_lattice = pattern.on_lattice(phase, branch, head, t)
                read |= _cover(start, stop, len(t)) & on_lattice
    return int(read[one.pos].sum())


def _cover(start: Array, stop: Array, n: int) -> Any:
    """Which of 0 .. n lie in one of the intervals [start, stop)."""
    depth = np.bincount(start, minlength=n + 1) - np.bincount(stop, minlength=n + 1)
    return np.cumsum(depth)[:n] > 0
