"""Runs the sides in turn, and makes rows of the times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from attention_bench import check, torch_side
from attention_bench.graphs import Backend, Graphs, Side
from attention_bench.roofline import Memory, Roofline
from attention_bench.workloads import ROW_BYTES, Work, Workload, work
from pyllama_long import _native

# Seconds; a processor that was idle is slow for some milliseconds, which is longer than a short case takes.
WARM_UP = 0.1


@dataclass(frozen=True)
class Row:
    """Times are of one run of the op: the median, a mean over the positions of the workload."""

    case: str
    side: str
    isa: str | None
    kv_type: str
    plan: str
    seconds: float
    runs: int
    gflops: float
    gbps: float
    share_of_keys: float
    roofline_share: float | None  # of the matmul rate, of read_gbps where it is a decode
    ratio_to_upstream: float | None  # upstream's exact time / this
    ratio_to_exact: float | None  # a plan's time / the exact time of the same side
    read_gbps: float | None = None  # the median rate of memory reads between a decode's runs


@dataclass(frozen=True)
class Settings:
    threads: int
    repeats: int
    budget: float  # seconds per workload and side, after which it is not repeated any more
    sides: list[str]
    isas: list[str]


def measure(
    workload: Workload,
    settings: Settings,
    backend: Backend,
    machine: Roofline,
    memory: Memory,
    before: list[Row],
    progress: Callable[[str], None],
) -> list[Row]:
    """Raises check.Disagreement."""
    progress(f"{workload}: filling the cache")
    with Graphs(backend, workload) as graphs:
        sides = graphs.sides(settings.sides, settings.isas)
        if "torch" in settings.sides:
            sides += torch_side.sides(graphs, settings.threads)
        amount = work(graphs.batches)
        times: list[list[float]] = [[] for _ in sides]
        reads: list[float] = []
        base = None
        for turn in range(settings.repeats + 1):  # the first warms up, and is checked
            for side, taken in zip(sides, times, strict=True):
                if turn and sum(taken) + taken[-1] > settings.budget:
                    continue
                if workload.decode:
                    reads.append(memory.gbps())
                name = f"{side.name} {side.isa or ''}".strip()
                progress(f"{workload}: {name} {turn}/{settings.repeats}")
                taken.append(_run(side, turn > 0 and taken[-1] < WARM_UP) / len(workload.cases))
                if turn == 0:
                    check.agree(graphs, side, base)
                    if side.name == "upstream":
                        base = side.output().copy()
    read = statistics.median(reads) if reads else None
    rows: list[Row] = []
    for side, taken in zip(sides, times, strict=True):
        rows.append(_row(workload, side, taken, amount, machine, read, [*before, *rows]))
    return rows


def _run(side: Side, warm: bool) -> float:
    side.prepare()
    until = time.perf_counter() + WARM_UP
    while warm and time.perf_counter() < until:
        side.run()
    tiles = _native.isa_tiles(side.isa) if side.isa else 0
    start = time.perf_counter()
    side.run()
    seconds = time.perf_counter() - start
    if side.isa and _native.isa_tiles(side.isa) == tiles:
        raise RuntimeError(f"{side.isa} was forced and did not run")
    return seconds


def _row(
    workload: Workload,
    side: Side,
    taken: list[float],
    amount: Work,
    machine: Roofline,
    read: float | None,
    before: list[Row],
) -> Row:
    times = taken[1:] or taken  # a side too slow to be repeated has but its first run
    seconds = statistics.median(times)
    kv_type = side.kv_type or workload.kv_type
    kv_bytes = amount.kv_bytes * ROW_BYTES[kv_type] / ROW_BYTES[workload.kv_type]
    gflops, gbps = amount.flops / seconds * 1e-9, kv_bytes / seconds * 1e-9

    def exact_time(name: str, isa: str | None) -> float | None:
        key = (workload.name, name, isa, workload.kv_type, "exact")
        return next((r.seconds for r in before if (r.case, r.side, r.isa, r.kv_type, r.plan) == key), None)

    upstream = seconds if side.name == "upstream" else exact_time("upstream", None)
    exact = None if workload.exact else exact_time(side.name, side.isa)
    if read is not None:
        limit, rate = read, gbps
    else:
        bf16 = (side.isa or "").startswith("amx") or side.name == "torch bf16"
        limit, rate = (machine.bf16_gflops if bf16 else machine.f32_gflops) or 0.0, gflops
    return Row(
        workload.name,
        side.name,
        side.isa,
        kv_type,
        workload.plan,
        seconds,
        len(times),
        gflops,
        gbps,
        amount.share,
        rate / limit if limit else None,
        upstream / seconds if upstream else None,
        seconds / exact if exact else None,
        read,
    )
