"""Runs the sides alternately, and makes rows of the times."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from cases import Array

from attention_bench import check, torch_side
from attention_bench.graphs import Backend, Graphs, Side
from attention_bench.roofline import Memory, Roofline
from attention_bench.workloads import Work, Workload, row_bytes, work
from pyllama_long import _native

# Seconds. After idling, a processor is slow for some milliseconds, which is longer than a short run.
SHORT = 0.1
BF16 = ("amx", "avx512bf16", "neonbf16")  # instruction sets that multiply bf16


@dataclass(frozen=True)
class Row:
    """seconds: of one run of the op, the median of means over the workload's positions."""

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
    roofline_share: float | None  # share of the matmul rate, or for a decode of read_gbps
    ratio_to_upstream: float | None  # upstream's exact time / this
    ratio_to_exact: float | None  # a plan's time / the exact time of the same side
    read_gbps: float | None = None  # the median rate of memory reads between a decode's runs


@dataclass(frozen=True)
class Settings:
    threads: int
    repeats: int
    budget: float  # seconds per workload and side, after which there are no more repeats
    sides: list[str]
    isas: list[str]


class _Entry:
    """A side of a workload, with the seconds of its runs."""

    def __init__(self, graphs: Graphs, side: Side, reads: list[float]) -> None:
        self.graphs, self.workload, self.side = graphs, graphs.workload, side
        self.reads = reads  # shared by the workload
        self.taken: list[float] = []  # each a mean over the positions
        self.first = math.inf  # seconds of the warm-up run

    @property
    def name(self) -> str:
        return f"{self.side.name} {self.side.isa or ''}".strip()

    @property
    def short(self) -> bool:
        return self.first * len(self.workload.cases) < SHORT

    def spent(self, budget: float) -> bool:
        last = self.taken[-1] if self.taken else self.first
        return self.first + sum(self.taken) + last > budget

    def warm_up(self) -> None:
        self.first = self._run()

    def repeat(self) -> None:
        """Runs the side once; a short one as often as fits into SHORT, after running it for the same time
        unmeasured."""
        self.side.prepare()
        until = time.perf_counter() + SHORT
        while self.short and time.perf_counter() < until:
            self.side.run()
        until = time.perf_counter() + SHORT
        self.taken.append(self._run())
        while self.short and time.perf_counter() < until:
            self.taken.append(self._run())

    def _run(self) -> float:
        isa = self.side.isa
        self.side.prepare()
        tiles = _native.isa_tiles(isa) if isa else 0
        start = time.perf_counter()
        self.side.run()
        seconds = time.perf_counter() - start
        if isa and _native.isa_tiles(isa) == tiles:
            raise RuntimeError(f"{isa} was forced and did not run")
        return seconds / len(self.workload.cases)


def measure(
    workloads: list[Workload],
    settings: Settings,
    backend: Backend,
    machine: Roofline,
    memory: Memory,
    progress: Callable[[str], None],
) -> list[Row]:
    """Measures workloads whose times are compared; their sides run alternately. Raises check.Disagreement."""
    with ExitStack() as stack:
        entries: list[_Entry] = []
        amounts: dict[Workload, Work] = {}
        for workload in workloads:
            progress(f"{workload}: filling the cache")
            graphs = stack.enter_context(Graphs(backend, workload))
            amounts[workload] = work(graphs.batches)
            sides = graphs.sides(settings.sides, settings.isas)
            if "torch" in settings.sides:
                sides += torch_side.sides(graphs, settings.threads)
            reads: list[float] = []
            entries += [_Entry(graphs, side, reads) for side in sides]
        _check(entries, progress)
        # Workloads of one side and instruction set are compared, so they run directly one after the other.
        names = list(dict.fromkeys(entry.name for entry in entries))
        in_turn = sorted(entries, key=lambda entry: names.index(entry.name))
        for turn in range(1, settings.repeats + 1):
            for entry in in_turn:
                if entry.spent(settings.budget):
                    continue
                if entry.workload.decode:
                    entry.reads.append(memory.gbps())
                progress(f"{entry.workload}: {entry.name} {turn}/{settings.repeats}")
                entry.repeat()
    rows: list[Row] = []
    for entry in entries:
        rows.append(_row(entry, amounts[entry.workload], machine, rows))
    return rows


def _check(entries: list[_Entry], progress: Callable[[str], None]) -> None:
    """Runs each once, and compares what came out."""
    base: dict[Workload, Array] = {}
    for entry in entries:
        progress(f"{entry.workload}: {entry.name} is checked")
        entry.warm_up()
        check.agree(entry.graphs, entry.side, base.get(entry.workload))
        if entry.side.name == "upstream":
            base[entry.workload] = entry.side.output().copy()


def _row(entry: _Entry, amount: Work, machine: Roofline, before: list[Row]) -> Row:
    workload, side = entry.workload, entry.side
    read = statistics.median(entry.reads) if entry.reads else None
    times = entry.taken or [entry.first]  # a side that is too slow to be repeated only has its first run
    seconds = statistics.median(times)
    kv_type = side.kv_type or workload.kv_type
    kv_bytes = amount.kv_bytes * row_bytes(32, kv_type) / row_bytes(32, workload.kv_type)
    gflops, gbps = amount.flops / seconds * 1e-9, kv_bytes / seconds * 1e-9

    def exact_time(name: str, isa: str | None) -> float | None:
        key = (workload.name, name, isa, workload.kv_type, "exact")
        return next((r.seconds for r in before if (r.case, r.side, r.isa, r.kv_type, r.plan) == key), None)

    upstream = seconds if side.name == "upstream" else exact_time("upstream", None)
    exact = None if workload.exact else exact_time(side.name, side.isa)
    if read is not None:
        limit, rate = read, gbps
    else:
        bf16 = side.isa in BF16 or side.name == "torch bf16"
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
