"""The cases of the op, shared by tests and benches: what is computed, and how the cache is laid out."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MORE_TYPES = ("q4_1", "iq4_nl", "q5_0", "q5_1")
QUANTIZED = ("q8_0", "q4_0", *MORE_TYPES)
KV_TYPES = ("f32", "f16", "bf16", *QUANTIZED)


@dataclass(frozen=True)
class Seq:
    """One sequence of the ubatch: n_past positions are in the cache when the n_new tokens after them arrive."""

    n_past: int
    n_new: int
    tail: int = 0  # the last `tail` new tokens are in the tail phase
    gone: int = 0  # the first `gone` positions are no longer in the cache
    holes: bool = False  # about a tenth of the past positions is missing, in runs of 1 to 17
    reordered: bool = (
        False  # cells do not follow positions: runs of 1 to 40 are in any order, with free cells between them
    )
    # if not 0: only the last `ring` positions are held, each in cell position % ring, as in a window's cache
    ring: int = 0
    # if below 1: this share of the past's blocks of 64 is held, each cell at its position
    blocks: float = 1.0
    shared: int = 0  # the first `shared` positions are cells of the sequence before it, in the same stream


@dataclass(frozen=True)
class Case:
    name: str
    n_head: int = 4
    n_head_kv: int = 2
    d_k: int = 64
    d_v: int = 64
    kv_type: str = "f16"  # of K, and of V unless v_type is set
    v_type: str = ""
    plan: str = "exact"
    rope: str = "native"
    n_train: int = 128
    seqs: tuple[Seq, ...] = (Seq(0, 130),)
    one_stream: bool = False  # all sequences are in one stream, as with a unified cache; else one stream each
    peaked: float = 1.0  # standard deviation of the logits before the log weights
    neox: bool = True
    n_rot: int = 64
    rot_first: int = 0  # the first of the rotated dims of a head
    base: float = 10000.0
    hadamard: int = 0  # K is stored Hadamard-rotated in blocks of this many dims; 0: no
    layer: int = 3
    max_bias: float = 0.0  # ALiBi's; such models have no RoPE
    soft_cap: float = 0.0  # of the logits; 0: none
    sink: float | None = None  # the mean of the heads' attention sinks; None: there are none
    mean: float = 0.0  # of the values, and of keys that are values too
    v_in_k: bool = False  # a value is the first dims of its key, as cached (multi-head latent attention)

    @property
    def scale(self) -> float:
        return float(self.d_k**-0.5)

    @property
    def type_v(self) -> str:
        return self.v_type or self.kv_type


class Layout(NamedTuple):
    """Where the keys of one sequence are."""

    stream: int
    pos: Array  # [n_k] positions in the cache, ascending, the new tokens' at the end
    cell: Array  # [n_k] their cells in the stream
    q_pos: Array  # [n_new]
    phase: Array  # [n_new] 0 prefill, 1 tail

    def runs(self) -> list[tuple[int, int, int]]:
        """(position, cell, n): stretches in which both ascend by one."""
        breaks = np.flatnonzero((np.diff(self.pos) != 1) | (np.diff(self.cell) != 1)) + 1
        edges = [0, *breaks.tolist(), len(self.pos)]
        return [(int(self.pos[a]), int(self.cell[a]), b - a) for a, b in pairwise(edges)]

    def groups(self) -> list[tuple[int, int, int]]:
        """(phase, first new token, n): consecutive new tokens of one phase."""
        breaks = (np.flatnonzero(np.diff(self.phase)) + 1).tolist()
        edges = [0, *breaks, len(self.phase)]
        return [(int(self.phase[a]), a, b - a) for a, b in pairwise(edges)]


class Tensors(NamedTuple):
    """Random contents, float64, un-rotated. Cells that no sequence holds are NaN, since they must not matter."""

    q: Array  # [n_tokens, n_head, d_k], the sequences' new tokens one after the other
    k: Array  # [n_stream, n_kv, n_head_kv, d_k]
    v: Array  # [n_stream, n_kv, n_head_kv, d_v]


def layout(case: Case) -> tuple[list[Layout], int]:
    """(one layout per sequence, n_kv: cells per stream, a multiple of 32). The same for every call."""
    random = np.random.default_rng(zlib.crc32(case.name.encode()))
    free: list[int] = []  # first free cell per stream
    found: list[Layout] = []
    for seq in case.seqs:
        if not found or not (case.one_stream or seq.shared):
            free.append(0)
        pos = np.arange(seq.n_past + seq.n_new)
        missing = pos < (seq.n_past + seq.n_new - seq.ring if seq.ring else seq.gone)
        if seq.holes:
            for start in random.integers(0, max(1, seq.n_past), seq.n_past // 80 + 1):
                missing[start : start + random.integers(1, 18)] = True
        if seq.blocks < 1:
            n = -(-seq.n_past // 64)
            missing |= ~np.isin(pos // 64, random.choice(n, max(1, round(seq.blocks * n)), replace=False))
        missing[seq.n_past :] = False
        shared = (
            np.isin(pos, found[-1].pos[found[-1].pos < seq.shared])
            if seq.shared
            else np.zeros(len(pos), bool)
        )
        missing[: seq.shared] = ~shared[: seq.shared]
        own = np.flatnonzero(~missing & ~shared)
        cell = np.full(len(pos), -1)
        if seq.shared:
            cell[shared] = found[-1].cell[found[-1].pos < seq.shared]
        held = _cells(random, len(own), seq.reordered) if seq.blocks == 1 else own
        held = own % seq.ring if seq.ring else held
        cell[own] = held + free[-1]
        free[-1] = int(cell[own].max(initial=free[-1] - 1)) + 1
        phase = (np.arange(seq.n_new) >= seq.n_new - seq.tail).astype(np.int32)
        found.append(Layout(len(free) - 1, pos[~missing], cell[~missing], pos[seq.n_past :], phase))
    return found, -(-max(free) // 32) * 32


def tensors(case: Case) -> Tensors:
    """Logits of about normal distribution with deviation `peaked`. The same for every call."""
    random = np.random.default_rng(zlib.crc32(case.name.encode()) + 1)
    layouts, n_kv = layout(case)
    n_stream = 1 + max(one.stream for one in layouts)
    n_tokens = sum(seq.n_new for seq in case.seqs)
    q = case.peaked * random.standard_normal((n_tokens, case.n_head, case.d_k))
    k, v = (random.standard_normal((n_stream, n_kv, case.n_head_kv, d)) for d in (case.d_k, case.d_v))
    v += case.mean
    k[..., : case.d_v] += case.mean if case.v_in_k else 0.0
    unused = np.ones((n_stream, n_kv), bool)
    for one in layouts:
        unused[one.stream, one.cell] = False
    k[unused] = v[unused] = np.nan
    return Tensors(q, k, k[..., : case.d_v] if case.v_in_k else v)


def sinks(case: Case) -> Array | None:
    """[n_head] float32 attention sinks about case.sink. The same for every call."""
    if case.sink is None:
        return None
    random = np.random.default_rng(zlib.crc32(case.name.encode()) + 2)
    return (case.sink + random.standard_normal(case.n_head)).astype(np.float32)


def _cells(random: np.random.Generator, n: int, reordered: bool) -> Array:
    if not reordered or n == 0:
        return np.arange(n)
    edges = np.unique(np.append(np.cumsum(random.integers(1, 41, n)).clip(max=n), [0, n]))
    runs = list(pairwise(edges))
    cells, at = np.zeros(n, np.int64), 0
    for i in random.permutation(len(runs)):
        a, b = runs[i]
        at += int(random.integers(0, 4))
        cells[a:b] = np.arange(at, at + b - a)
        at += int(b - a)
    return cells


PARTS = (
    "exact",
    "sinks(4)+window(48)",
    "window(1)",
    "window(33)",
    "global(20)+window(40)",
    "sinks(7)+global(3)+window(17)",
    "dilated(w0=32, alpha=2, n=4)",
    "dilated(w0=32, alpha=2, n=4, weight=stride)",
    "dilated(w0=32, alpha=2, n=4, weight=none)",
    "dilated(w0=32, alpha=2, n=4, align=query)",
    "dilated(w0=32, alpha=2, n=4, weight=stride, align=query)",
    "dilated(w0=32, alpha=2, n=4, weight=none, align=query)",
    "dilated(segments=48/100/333, rates=1/3/7)",
    "dilated(segments=48/100/333, rates=1/3/7, weight=stride)",
    "dilated(segments=50/77/90/200/400, rates=2/3/5/6/12, align=query)",
    "sinks(4)+window(24)+dilated(segments=64/256, rates=4/16, weight=stride, align=query)",
    "sinks(4)+window(24)+dilated(segments=64/256, rates=4/16)",
    "sinks(5)+window(70); dense_below=100",
    "dilated(segments=36/108/216, rates=1/3/6)",
    "dilated(segments=40/90, rates=1/3, align=query)",
    "dilated(segments=32/128, rates=1/3)",
)
EMPTY = (
    "dilated(segments=64, rates=4)",
    "dilated(segments=40/160, rates=3/8)",
    "dilated(segments=7, rates=5, align=query)",
)
EXTREME = (  # the largest numbers that a plan and a policy take
    "sinks(2147483647)+window(2147483646)",
    "sinks(2147483647)+window(10)",
    "window(2147483646); dense_below=2147483647",
    "sinks(3)+global(2147483647); dense_layers=2147483647",
    "window(2147483646)+dilated(segments=1073741824, rates=1073741824)",
    "window(2)+dilated(segments=1/1073741824, rates=1/1073741824)",
    "window(9)+dilated(segments=1073741824, rates=1073741823, weight=stride, align=query)",
)
EXTREME_MAPS = (
    "dca(1073741824, 1073741823)",
    "dca(1073741824, 0)",
    "self-extend(1073741824, 1073741824)",
    "rerope(1073741824)",
)
CHUNKED = "dilated(segments=48, rates=1, weight=none)"  # Llama 4's: a query reads its own chunk of 48
MIXED = (
    ("q8_0", "q5_1"),
    ("q4_1", "iq4_nl"),
    ("iq4_nl", "q4_1"),
    ("q5_0", "f16"),
    ("bf16", "q5_0"),
    ("q5_1", "q4_0"),
)
SPARSE = "sinks(4)+window(40)+dilated(w0=32, alpha=2, n=4, align=query)"
SEQUENCES = {
    "holes": (Seq(300, 20, holes=True),),
    "reordered": (Seq(300, 20, reordered=True),),
    "both": (Seq(500, 33, holes=True, reordered=True),),
    "many": (Seq(0, 63), Seq(200, 1), Seq(333, 17, holes=True), Seq(1, 2)),
    "mixed": (Seq(100, 1), Seq(250, 40, reordered=True), Seq(0, 5)),
    "shared": (Seq(200, 9), Seq(130, 30, shared=100), Seq(100, 1, shared=100)),
    "shared-holes": (Seq(200, 9, holes=True, reordered=True), Seq(230, 3, shared=150, reordered=True)),
    "gone": (Seq(400, 12, gone=300),),
}
MAPS = (
    "dca",
    "dca(40, 8)",
    "dca(33, 0)",
    "self-extend(4, 32)",
    "self-extend(7, 45)",
    "rerope(64)",
    "rerope(1)",
    "dca+yarn(4)",
    "rerope+ntk(3)",
    "self-extend(3, 20)+linear(2)",
)


def _cases() -> list[Case]:
    cases: list[Case] = []

    def add(name: str, **changes: Any) -> None:
        d_k = changes.get("d_k", 64)
        cases.append(replace(Case(name), **{"d_v": d_k, "n_rot": d_k, **changes}))

    for i, plan in enumerate(PARTS):
        add(f"part/{i}/prefill", plan=plan, seqs=(Seq(0, 333),))
        add(f"part/{i}/chunk", plan=plan, seqs=(Seq(217, 66),), n_head=8, n_head_kv=1)
        add(f"part/{i}/decode", plan=plan, seqs=(Seq(700, 1, tail=1),), n_head=6, n_head_kv=2)
    pair = (Seq(70, 65), Seq(301, 1, tail=1))
    for d, kv_type in product((64, 80, 96, 128, 192, 256), KV_TYPES):
        if d % 32 == 0 or kv_type not in QUANTIZED:
            plan = "exact" if d % 128 else SPARSE
            add(f"type/{kv_type}/{d}", d_k=d, kv_type=kv_type, plan=plan, seqs=pair)
    for k, v in MIXED:
        add(f"type/{k}/{v}", d_k=128, kv_type=k, v_type=v, seqs=pair)
    for n in (1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 1000):
        add(f"length/{n}/exact", seqs=(Seq(0, n),))
        add(f"length/{n}/past", seqs=(Seq(n, 3),), plan=SPARSE, kv_type="f32")
    for n_head, n_head_kv in ((1, 1), (4, 4), (7, 1), (15, 5), (32, 8)):
        add(
            f"heads/{n_head}/{n_head_kv}",
            n_head=n_head,
            n_head_kv=n_head_kv,
            plan=SPARSE,
            seqs=(Seq(90, 37),),
        )
    add("heads/192/128", d_k=192, d_v=128, seqs=(Seq(90, 37),))
    add("heads/128/64", d_k=128, d_v=64, kv_type="f32", seqs=(Seq(90, 37),))
    for (name, seqs), plan in product(SEQUENCES.items(), ("exact", SPARSE)):
        one_stream = name in ("mixed", "shared", "shared-holes")
        add(f"sequences/{name}/{plan.partition('(')[0]}", seqs=seqs, plan=plan, one_stream=one_stream)
    for peaked, kv_type in product((4.0, 16.0, 64.0), ("f32", "f16", "bf16")):
        add(f"peaked/{peaked:g}/{kv_type}", peaked=peaked, kv_type=kv_type, seqs=(Seq(500, 40),))
    add("peaked/64/sparse", peaked=64.0, plan=SPARSE, seqs=(Seq(0, 400),))
    add("flat/0", peaked=0.0, plan=SPARSE, seqs=(Seq(333, 65),))
    for i, plan in enumerate(EMPTY):
        add(f"empty/{i}/prefill", plan=plan, seqs=(Seq(0, 130),))
        add(f"empty/{i}/decode", plan=plan, seqs=(Seq(141, 1),))
    add("empty/gone", plan="sinks(8)", seqs=(Seq(200, 5, gone=50), Seq(0, 20)))
    for i, plan in enumerate(EXTREME):
        add(f"extreme/{i}/prefill", plan=plan, seqs=(Seq(30, 100),))
        add(f"extreme/{i}/decode", plan=plan, seqs=(Seq(141, 1),))
    for rope in EXTREME_MAPS:
        add(f"extreme/{rope}", rope=rope, plan=EXTREME[0], n_train=2147483647, seqs=(Seq(100, 40),))
    for i, (rope, neox) in enumerate(product(MAPS, (True, False))):
        rope += "+logn" if i % 3 else ""
        add(f"map/{rope}/{'neox' if neox else 'norm'}", rope=rope, neox=neox, seqs=(Seq(390, 33),))
    for i, rope in enumerate(("dca(40, 8)", "self-extend(4, 32)+logn", "rerope(50)")):
        part = {"rope": rope, "d_k": 128, "seqs": (Seq(0, 150),), "neox": i != 1}
        add(f"map/{rope}/partial", n_rot=64, **part)
        add(f"map/{rope}/none", n_rot=0, **part)
        add(f"map/{rope}/sparse", plan=SPARSE, kv_type="bf16", **part)
        add(f"map/{rope}/decode", **{**part, "seqs": (Seq(900, 1, tail=1),)})
        add(f"map/{rope}/many", **{**part, "seqs": SEQUENCES["many"]})
        add(f"map/{rope}/cells", **{**part, "seqs": SEQUENCES["both"]}, kv_type="f32")
        add(f"map/{rope}/hadamard", **part, kv_type="q8_0", hadamard=64)
        add(
            f"map/{rope}/hadamard/decode",
            **{**part, "seqs": (Seq(150, 1),)},
            kv_type=MORE_TYPES[i],
            hadamard=64,
        )
    add("map/dca(40, 8)/partial80", d_k=80, n_rot=32, rope="dca(40, 8)+logn", neox=False, seqs=(Seq(90, 70),))
    add("logn/absolute", rope="native+logn", seqs=(Seq(100, 60),))
    add("logn/none", rope="native+logn", n_rot=0, seqs=(Seq(200, 60),))
    for d, kv_type in (*product((64, 128, 256), ("q8_0", "q4_0")), *product((128,), MORE_TYPES)):
        add(f"hadamard/{kv_type}/{d}", d_k=d, kv_type=kv_type, hadamard=64, plan=SPARSE, seqs=(Seq(100, 33),))
    tail_plan = "prefill: sinks(4)+window(60) | tail: exact"
    add("tail/last", plan=tail_plan, seqs=(Seq(300, 70, tail=21),))
    add("tail/all", plan=tail_plan, seqs=(Seq(300, 17, tail=17),))
    add("tail/none", plan=tail_plan, seqs=(Seq(300, 17),))
    add("tail/many", plan=tail_plan, seqs=(Seq(0, 40, tail=9), Seq(222, 1, tail=1), Seq(150, 66, tail=1)))
    add("tail/dilated", plan=f"prefill: window(9) | tail: {PARTS[9]}", seqs=(Seq(200, 90, tail=45),))
    add("tail/rope", plan=tail_plan, rope="rerope(64)+logn", seqs=(Seq(300, 70, tail=21),))
    add("dense/below", plan="window(20); dense_below=150", seqs=(Seq(100, 90),))
    add("dense/below-dilated", plan=f"{PARTS[6]}; dense_below=150", seqs=(Seq(100, 90),))
    add("dense/layer", plan="window(20); dense_layers=2", layer=1, seqs=(Seq(100, 40),))
    add("dense/layer-above", plan="window(20); dense_layers=2", layer=2, seqs=(Seq(100, 40),))
    add("dense/layer-tail", plan=f"{tail_plan}; dense_layers=4", seqs=(Seq(150, 40, tail=7),))
    far = (Seq(1_000_000, 9, gone=999_700), Seq(70_001, 1, tail=1, gone=69_500, holes=True))
    for i, rope in enumerate(("native", "dca(96, 16)+yarn(4)", "self-extend(20000, 64)", "rerope(64)+logn")):
        add(f"far/{rope}", rope=rope, seqs=far, plan=("exact", SPARSE)[i % 2], kv_type="f32")
    for i, (plan, kv_type) in enumerate(
        (("exact", "f16"), (SPARSE, "q8_0"), (PARTS[6], "f32"), (PARTS[10], "bf16"))
    ):
        alibi = {"max_bias": 8.0, "n_rot": 0, "plan": plan, "kv_type": kv_type, "n_head": (8, 6, 12, 4)[i]}
        add(f"alibi/{i}/prefill", **alibi, seqs=(Seq(0, 333),))
        add(f"alibi/{i}/decode", **alibi, seqs=(Seq(700, 1, tail=1),))
        add(f"alibi/{i}/many", **alibi, seqs=SEQUENCES["many"])
    for i, (plan, kv_type) in enumerate(
        (("exact", "f16"), (SPARSE, "q8_0"), ("window(50)", "bf16"), (PARTS[6], "q4_0"), (PARTS[10], "f32"))
    ):
        for sink, cap in ((0.0, 0.0), (8.0, 0.0), (-30.0, 0.0), (200.0, 0.0), (2.0, 5.0)):
            more = {
                "sink": sink,
                "soft_cap": cap,
                "plan": plan,
                "kv_type": kv_type,
                "n_head": (8, 6, 12, 4, 2)[i],
            }
            add(f"sinks/{i}/{sink:g}/{cap:g}/prefill", **more, seqs=(Seq(0, 200),))
            add(f"sinks/{i}/{sink:g}/{cap:g}/many", **more, seqs=SEQUENCES["many"])
    add("sinks/empty", sink=1.0, plan="sinks(8)", seqs=(Seq(200, 5, gone=50), Seq(0, 20)))
    add("sinks/spans", sink=3.0, plan="exact", seqs=(Seq(3000, 1),))
    for i, (kv_type, cap) in enumerate(product(("f32", "f16", "q8_0", "q4_0"), (0.5, 20.0, 50.0))):
        more = {"soft_cap": cap, "peaked": (1.0, 30.0, 200.0)[i % 3], "kv_type": kv_type}
        add(f"cap/{kv_type}/{cap:g}/prefill", plan=("exact", SPARSE)[i % 2], seqs=(Seq(60, 150),), **more)
        add(f"cap/{kv_type}/{cap:g}/decode", seqs=(Seq(333, 1), Seq(500, 1, holes=True)), **more)
    add("cap/map", soft_cap=4.0, rope="rerope(50)+logn", d_k=128, seqs=(Seq(300, 40),))
    ring = (Seq(1000, 40, ring=96), Seq(501, 1, ring=64))
    for i, kv_type in enumerate(("f32", "f16", "bf16", "q8_0", "q4_0", "q5_1")):
        window = {"kv_type": kv_type, "n_head": 8, "d_k": (64, 128)[i % 2]}
        add(f"window/{kv_type}/ring", plan="window(50)", seqs=ring, **window)
        add(f"window/{kv_type}/ring-sinks", plan="window(50)", sink=1.0, seqs=ring, **window)
        add(
            f"window/{kv_type}/chunked",
            plan=CHUNKED,
            seqs=(Seq(0, 200), Seq(500, 1), Seq(95, 1), Seq(96, 2)),
            **window,
        )
        add(f"window/{kv_type}/chunked-ring", plan=CHUNKED, seqs=ring, **window)
    add("dilated/wide", n_head=16, n_head_kv=4, plan=PARTS[6], seqs=(Seq(500, 300),))
    for kv_type, (d, rows) in product(QUANTIZED, ((32, 1), (96, 3), (128, 4), (128, 7), (160, 8))):
        read = (Seq(333, 1), Seq(197, 1, reordered=True))
        add(
            f"quantized/{kv_type}/{d}/{rows}",
            kv_type=kv_type,
            d_k=d,
            d_v=d,
            n_head=2 * rows,
            n_rot=32,
            seqs=read,
        )
    cases += _latent_cases()
    add("long/window", plan="sinks(4)+window(508)", n_train=512, seqs=(Seq(1400, 65),))
    add("long/exact", kv_type="q8_0", seqs=(Seq(1467, 33),))
    return cases


def _latent_cases() -> list[Case]:
    """Multi-head latent attention: one kv head, whose values are the first dims of its keys."""
    cases: list[Case] = []
    latent = Case("", n_head=20, n_head_kv=1, d_k=576, d_v=512, rot_first=512, neox=False, v_in_k=True)

    def add(name: str, **changes: Any) -> None:
        cases.append(replace(latent, name=f"latent/{name}", **changes))

    for kv_type in KV_TYPES:
        add(f"type/{kv_type}", kv_type=kv_type, seqs=(Seq(70, 9), Seq(301, 1, tail=1)))
    for n_head in (1, 7, 16, 33, 128):
        add(f"heads/{n_head}", n_head=n_head, seqs=(Seq(129, 1, tail=1, reordered=True),))
    for peaked in (0.0, 16.0):
        add(f"peaked/{peaked:g}", peaked=peaked, seqs=(Seq(180, 7), Seq(99, 1)))
    add("sparse/prefill", plan=SPARSE, seqs=(Seq(150, 17),))
    add("sparse/decode", plan=SPARSE, seqs=(Seq(400, 1, tail=1),), kv_type="q8_0")
    add("window/many", plan="sinks(4)+window(40)", seqs=SEQUENCES["mixed"], one_stream=True, n_head=4)
    add("shared", seqs=SEQUENCES["shared"], one_stream=True, n_head=4)
    for rope in ("dca(40, 8)", "self-extend(4, 32)+logn", "rerope(50)+yarn(2)"):
        add(f"map/{rope}", rope=rope, seqs=(Seq(120, 5), Seq(200, 1)), n_head=10)
    add("map/neox", rope="rerope(50)", neox=True, kv_type="q8_0", seqs=(Seq(120, 1),))
    add("hadamard", kv_type="q4_0", hadamard=64, seqs=(Seq(130, 1), Seq(0, 30)), n_head=10)
    small = {"n_rot": 16, "seqs": (Seq(333, 1), Seq(90, 37))}
    add("small/80", d_k=80, d_v=48, rot_first=64, **small)
    add("small/96", d_k=96, d_v=64, rot_first=80, kv_type="q4_0", **small)
    add("small/two", n_head_kv=2, d_k=96, d_v=64, rot_first=80, kv_type="q8_0", plan=SPARSE, **small)
    return cases


_SAMPLING = (
    "sinks(4)+window(64)+sample(50)",
    "window(100)+sample(10%, seed=3)",
    "sinks(4)+window(64)+topk(3)+sample(37, seed=1)",
    "topk(20%, block=16)+sample(70%)",
    "sinks(9)+sample(100%)",
)
_HASHING = (
    "sinks(4)+window(64)+lsh(50)",
    "window(100)+lsh(10%)",
    "sinks(4)+window(64)+lsh(37, 50, seed=1)",
    "lsh(20%)+sample(70%)",
    "sinks(9)+lsh(100%)",
    "window(64)+lsh(1)+sample(3%)",
)
_VERIFIED = "sinks(4)+window(64)+verified(0.5, 0.5, least=2048)"
_CHOOSING_MAPS = ("native", "dca(96, 16)", "rerope(64)+logn", "self-extend(4, 40)", "native+logn")


def _choosing() -> Iterator[Case]:
    """Plans that choose keys by content."""
    plan = "sinks(4)+window(64)+topk(3)"
    yield Case("choose/prefill", plan=plan, seqs=(Seq(0, 700),))
    yield Case("choose/chunk", plan=plan, seqs=(Seq(500, 100),))
    yield Case("choose/decode", plan=plan, seqs=(Seq(700, 1, tail=1),))
    yield Case("choose/tail", plan=plan, seqs=(Seq(600, 40, tail=21),))
    yield Case("choose/share", plan="window(70)+topk(20%, block=16)", seqs=(Seq(0, 500),))
    yield Case(
        "mass", plan="sinks(64)+window(1)+topk(mass=0.5, least=2, block=64)", seqs=(Seq(0, 700),), peaked=3
    )
    yield Case("choose/all", plan="sinks(5)+window(100)+topk(100%)", seqs=(Seq(300, 200),))
    yield Case("choose/below", plan="window(64)+topk(2); dense_below=400", seqs=(Seq(330, 170),))
    yield Case(
        "phases", plan="prefill: window(64)+topk(2) | tail: topk(9, block=16)", seqs=(Seq(600, 80, tail=9),)
    )
    yield Case("choose/one", plan="prefill: window(99) | tail: topk(4)", seqs=(Seq(600, 80, tail=9),))
    yield Case("choose/many", plan=plan, seqs=(Seq(0, 300), Seq(500, 1, tail=1), Seq(400, 70, tail=5)))
    yield Case("choose/unified", plan=plan, seqs=(Seq(300, 70), Seq(500, 1, tail=1)), one_stream=True)
    yield Case("choose/holes", plan=plan, seqs=(Seq(900, 70, holes=True, reordered=True),))
    yield Case("choose/shared", plan=plan, seqs=(Seq(400, 9), Seq(430, 30, shared=300)), one_stream=True)
    yield Case("choose/gone", plan=plan, seqs=(Seq(900, 12, gone=300),))
    for n_head, n_head_kv in ((1, 1), (7, 1), (15, 5), (32, 4), (48, 1)):
        yield Case(
            f"heads/{n_head}/{n_head_kv}",
            n_head=n_head,
            n_head_kv=n_head_kv,
            plan=plan,
            seqs=(Seq(400, 70, tail=3),),
        )
    for kv_type in ("f32", "bf16", *QUANTIZED):
        yield Case(f"choose/type/{kv_type}", kv_type=kv_type, plan=plan, seqs=(Seq(600, 70, tail=2),))
    for d in (32, 80, 96, 128, 256):
        yield Case(f"choose/dims/{d}", d_k=d, d_v=d, n_rot=32, plan=plan, seqs=(Seq(400, 70, tail=2),))
    for rope in _CHOOSING_MAPS:
        yield Case(f"choose/map/{rope}", rope=rope, plan=plan, seqs=(Seq(600, 70, tail=2),))
    yield Case(
        "map/hadamard",
        rope="rerope(50)",
        kv_type="q8_0",
        hadamard=64,
        plan=plan,
        seqs=(Seq(600, 70, tail=2),),
    )
    yield Case("choose/alibi", max_bias=8.0, n_rot=0, n_head=8, plan=plan, seqs=(Seq(600, 70, tail=2),))
    yield Case("choose/cap", soft_cap=5.0, peaked=4.0, plan=plan, seqs=(Seq(600, 70, tail=2),))
    yield Case("choose/sinks", sink=2.0, plan=plan, seqs=(Seq(600, 70, tail=2),))
    for i, plan in enumerate(_SAMPLING):
        yield Case(f"sample/{i}/prefill", plan=plan, seqs=(Seq(300, 200),), kv_type=KV_TYPES[i % 4])
        yield Case(f"sample/{i}/tail", plan=plan, seqs=(Seq(600, 40, tail=9),), n_head=(4, 8, 14)[i % 3])
        yield Case(f"sample/{i}/cells", plan=plan, seqs=(Seq(900, 70, tail=2, holes=True, reordered=True),))
    plan = _SAMPLING[0]
    yield Case("sample/one", plan="sample(1)", seqs=(Seq(0, 700), Seq(500, 1, tail=1)))
    yield Case("sample/phases", plan=f"prefill: {plan} | tail: topk(5)", seqs=(Seq(600, 80, tail=9),))
    yield Case("sample/other", plan=f"prefill: topk(5) | tail: {plan}", seqs=(Seq(600, 80, tail=9),))
    yield Case("sample/below", plan=f"{plan}; dense_below=400", seqs=(Seq(330, 170),))
    yield Case(
        "sample/spans", plan=plan, n_head=8, seqs=(Seq(9000, 1, tail=1), Seq(8970, 30)), kv_type="q8_0"
    )
    yield Case("sample/alibi", max_bias=8.0, n_rot=0, n_head=8, plan=plan, seqs=(Seq(600, 70, tail=2),))
    yield Case("sample/sinks", sink=2.0, soft_cap=5.0, plan=plan, seqs=(Seq(600, 70, tail=2),))
    yield Case(
        "sample/hadamard", rope="rerope(50)", kv_type="q8_0", hadamard=64, plan=plan, seqs=(Seq(600, 70),)
    )
    for rope in _CHOOSING_MAPS[1:4]:
        yield Case(f"sample/map/{rope}", rope=rope, plan=plan, seqs=(Seq(600, 70, tail=2),))
    for i, plan in enumerate(_HASHING):
        yield Case(f"lsh/{i}/prefill", plan=plan, seqs=(Seq(300, 200),), kv_type=KV_TYPES[i % 4])
        yield Case(f"lsh/{i}/tail", plan=plan, seqs=(Seq(600, 40, tail=9),), n_head=(4, 8, 14)[i % 3])
        yield Case(f"lsh/{i}/cells", plan=plan, seqs=(Seq(900, 70, tail=2, holes=True, reordered=True),))
    plan = _HASHING[2]
    yield Case("lsh/phases", plan=f"prefill: {plan} | tail: topk(5)", seqs=(Seq(600, 80, tail=9),))
    yield Case("lsh/other", plan=f"prefill: topk(5) | tail: {plan}", seqs=(Seq(600, 80, tail=9),))
    yield Case("lsh/below", plan=f"{plan}; dense_below=400", seqs=(Seq(330, 170),))
    yield Case("lsh/unified", plan=plan, seqs=(Seq(300, 70), Seq(500, 1, tail=1)), one_stream=True)
    yield Case("lsh/spans", plan=plan, n_head=8, seqs=(Seq(9000, 1, tail=1), Seq(8970, 30)), kv_type="q8_0")
    yield Case(
        "lsh/hadamard", rope="rerope(50)", kv_type="q8_0", hadamard=64, plan=plan, seqs=(Seq(600, 70),)
    )
    for rope in _CHOOSING_MAPS[1:4]:
        yield Case(f"lsh/map/{rope}", rope=rope, plan=plan, seqs=(Seq(600, 70, tail=2),))
    latent = Case(
        "choose/latent", n_head=20, n_head_kv=1, d_k=576, d_v=512, rot_first=512, neox=False, v_in_k=True
    )
    yield replace(latent, plan="sinks(4)+window(64)+topk(3)", seqs=(Seq(300, 70, tail=2),))
    yield replace(latent, name="lsh/latent", plan=plan, seqs=(Seq(300, 70, tail=2),))
    plan = _SAMPLING[0]
    yield replace(latent, name="sample/latent", plan=plan, seqs=(Seq(300, 70, tail=2),))


def _verified() -> Iterator[Case]:
    """Plans whose sample is as large as an error asks for; the values share a mean, or all keys would be read."""

    def case(name: str, seqs: tuple[Seq, ...] = (Seq(2600, 2, tail=2),), **changes: Any) -> Case:
        values: dict[str, Any] = {"plan": _VERIFIED, "mean": 1.0, "seqs": seqs}
        return Case(f"verified/{name}", **(values | changes))

    yield case("one")
    yield case(
        "tail", (Seq(3000, 40, tail=3), Seq(2700, 1, tail=1)), plan=f"prefill: window(90) | tail: {_VERIFIED}"
    )
    yield case("phases", (Seq(3000, 70, tail=3),), plan=f"prefill: topk(5) | tail: {_VERIFIED}")
    yield case("topk", plan="window(200)+topk(2%, block=16)+verified(0.4, 0.2, least=99, seed=3)")
    yield case("all", plan="sinks(5)+window(100)+verified(0.01, 0.01, least=99)")
    yield case("few", (Seq(2600, 2, tail=2), Seq(2109, 5, tail=5)), plan="verified(0.5, 0.5, least=2048)")
    yield case("cells", (Seq(3300, 2, tail=2, holes=True, reordered=True),))
    yield case("shared", (Seq(2700, 1, tail=1), Seq(2600, 2, tail=2, shared=2000)), one_stream=True)
    yield case("wide", peaked=3.0, plan="sinks(4)+window(64)+verified(0.9, 0.9, least=99)")
    for n_head, n_head_kv in ((1, 1), (15, 5), (48, 1)):
        yield case(f"heads/{n_head}/{n_head_kv}", n_head=n_head, n_head_kv=n_head_kv)
    for kv_type in ("f32", "q8_0", "q4_0"):
        yield case(f"type/{kv_type}", kv_type=kv_type)
    yield case("dims", d_k=80, d_v=48, n_rot=32)
    for rope in _CHOOSING_MAPS[1:4]:
        yield case(f"map/{rope}", rope=rope)
    yield case("hadamard", rope="rerope(50)", kv_type="q8_0", hadamard=64)
    yield case(
        "alibi", max_bias=8.0, n_rot=0, n_head=8, plan="sinks(4)+window(64)+verified(0.9, 0.9, least=99)"
    )
    yield case("sinks", sink=2.0, soft_cap=5.0)
    yield case(
        "latent", n_head=5, n_head_kv=1, d_k=576, d_v=512, rot_first=512, neox=False, v_in_k=True, mean=0.7
    )


CASES = _cases()
CHOOSING = [*_choosing(), *_verified()]
