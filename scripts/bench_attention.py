"""Times the op in each instruction set, upstream's ggml_flash_attn_ext and torch, on the same K and V.

    python scripts/bench_attention.py [--quick] [--only 'decode 1x131072 f16'] [--sides upstream,ours]
    python scripts/bench_attention.py --kv-types q4_1,iq4_nl,q5_0,q5_1
    python scripts/bench_attention.py --lifelike

One attention layer with 128 dimensions, 32 query heads and 8 KV heads: exact prefill and decode in f16, bf16, q8_0 and
q4_0 caches, or in those of --kv-types; in f16 also with sink logits, four sparse plans at 131,072 keys, and 8
sequences in one call; then multi-head latent attention, whose values are the first 512 of a key's 576 dims, for 20
and 128 query heads. With --lifelike, exact attention and keys chosen by content alone (topk, lsh), in f16, q8_0 and
q4_0 at 131,072 keys with the statistics of a trained model's; all others are independent random numbers. The sides,
cache types and plans of a case run alternately, repeat by repeat, so that other load on the machine affects all of
them alike. Runs of milliseconds are repeated for a tenth of a second. Before they are timed, each is compared with
upstream, and rows of ours with float64.

Prints a table, then one JSON line: {"roofline": {...}, "rows": [{case, side, isa, kv_type, plan, seconds, gflops, gbps,
share_of_keys, ratio_to_upstream, ...}]}.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attention_bench.measure import Row, Settings
    from attention_bench.roofline import Roofline
    from attention_bench.workloads import Workload

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("upstream", "ours", "torch")
COLUMNS = ["case", "side", "isa", "kv", "plan", "runs", "ms", "GFLOP/s", "GB/s", "keys"]
COLUMNS += ["% roof", "x upstream", "x exact", "bound"]
LEFT = 5  # columns of text
NOTES = """\
runs       repeats that the median is of; a side that has used up --budget is not repeated any more
GFLOP/s    2 per dim of K and V and pair read      GB/s    K and V that any query reads, once
keys       share of the causal pairs that is read  % roof  prefill: of the f32 matmul rate (amx, bf16: of the bf16
x upstream upstream's exact time / this                    one); decode: of the rate of memory reads in turn
x exact    a plan's time / the exact time of the same side, to lie below its bound: keys / 0.8,
           or 1.02 with sink logits"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every side (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="medians of this many (%(default)s)")
    parser.add_argument(
        "--budget", type=float, help="seconds per case and side before it stops repeating (20)"
    )
    parser.add_argument(
        "--sides", type=_names, help="of upstream,ours,torch (all; torch where it is installed)"
    )
    parser.add_argument(
        "--isas", type=_names, help="instruction sets of ours (all that this processor has but scalar)"
    )
    parser.add_argument(
        "--only", default="", metavar="SUBSTRING", help="cases whose line 'NAME TYPE PLAN' contains this"
    )
    parser.add_argument(
        "--kv-types",
        type=_names,
        help="cache types (f16,bf16,q8_0,q4_0); there are f32, q4_1, iq4_nl, q5_0 and q5_1 too",
    )
    parser.add_argument(
        "--lifelike",
        action="store_true",
        help="chosen keys and exact, of keys with the statistics of a trained model",
    )
    parser.add_argument("--quick", action="store_true", help="short lengths: seconds in all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the JSON line into this file too")
    options = parser.parse_args()
    if options.threads < 1 or options.repeats < 1:
        parser.error("--threads and --repeats must be at least 1")
    if unknown := set(options.sides or ()) - set(SIDES):
        parser.error(f"unknown side {', '.join(sorted(unknown))}; known: {', '.join(SIDES)}")
    if options.budget is None:
        options.budget = 0.5 if options.quick else 20.0
    return options


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def settled(options: argparse.Namespace) -> tuple[list[Workload], Settings]:
    """The sides and cases to run. Exits with one line if something requested is impossible."""
    from attention_bench import torch_side
    from attention_bench.measure import Settings
    from attention_bench.workloads import KV_TYPES, QUICK, Sizes, lifelike, workloads

    from pyllama_long import _native, context_options

    if strange := [kind for kind in options.kv_types or () if kind not in context_options.KV_TYPES]:
        sys.exit(f"unknown cache type {', '.join(strange)}; known: {', '.join(context_options.KV_TYPES)}")
    sizes = QUICK if options.quick else Sizes()
    every = workloads(sizes, options.kv_types or KV_TYPES)
    if options.lifelike:
        every = lifelike(sizes, options.kv_types) if options.kv_types else lifelike(sizes)
    chosen = [workload for workload in every if options.only in str(workload)]
    if not chosen:
        sys.exit("no case contains {!r}; they are:\n{}".format(options.only, "\n".join(map(str, every))))
    sides = options.sides or [side for side in SIDES if side != "torch" or torch_side.importable()]
    if "torch" in sides and not torch_side.importable():
        sys.exit("torch is not installed: pip install 'pyllama-long[train]'")
    usable = [isa for isa, runs in _native.isas().items() if runs]
    isas = options.isas or [isa for isa in usable if isa != "scalar"] or usable
    if wrong := [isa for isa in isas if isa not in usable]:
        sys.exit(f"instruction set {', '.join(wrong)} cannot be used here; usable: {', '.join(usable)}")
    return chosen, Settings(options.threads, options.repeats, options.budget, sides, isas)


def _cells(row: Row) -> list[str]:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    from attention_bench.workloads import SINKS

    percent = None if row.roofline_share is None else 100 * row.roofline_share
    bound = None if row.plan == "exact" else 1.02 if row.plan == SINKS else row.share_of_keys / 0.8
    text = [row.case, row.side, row.isa or "", row.kv_type, row.plan]
    return [
        *text,
        str(row.runs),
        f"{1e3 * row.seconds:.2f}",
        f"{row.gflops:.1f}",
        f"{row.gbps:.2f}",
        f"{100 * row.share_of_keys:.1f}%",
        number(percent, ".1f"),
        number(row.ratio_to_upstream, ".2f"),
        number(row.ratio_to_exact, ".4f"),
        number(bound, ".4f"),
    ]


def show(machine: Roofline, rows: list[Row]) -> None:
    bf16 = "not measured" if machine.bf16_gflops is None else f"{machine.bf16_gflops:.0f} GFLOP/s"
    print(
        f"{machine.threads} threads; f32 matmul {machine.f32_gflops:.0f} GFLOP/s, bf16 matmul {bf16}, "
        f"memory read {machine.read_gbps:.1f} GB/s\n"
    )
    lines = [COLUMNS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (
            cell.ljust(width) if i < LEFT else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join(cells).rstrip())
    print(f"\n{NOTES}")


def run(options: argparse.Namespace) -> None:
    from attention_bench import check, torch_side
    from attention_bench.graphs import Backend
    from attention_bench.measure import measure
    from attention_bench.roofline import Memory, roofline
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    chosen, settings = settled(options)
    rows: list[Row] = []
    machine = None
    stopped = False
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    # A slow refresh, since its thread takes time away from the sides.
    shown = Progress(
        *columns,
        console=Console(stderr=True),
        refresh_per_second=2,
        transient=True,
        redirect_stdout=False,
    )
    with shown, Backend(settings.threads) as backend, Memory(settings.threads) as memory:
        task = shown.add_task("matmul and memory rates", total=len(chosen))
        try:
            seconds = 0.3 if options.quick else 1.5
            machine = roofline(settings.threads, seconds, torch_side.importable(), memory)
            for _, together in itertools.groupby(chosen, lambda workload: workload.name):
                group = list(together)
                rows += measure(
                    group,
                    settings,
                    backend,
                    machine,
                    memory,
                    lambda text: shown.update(task, description=text),
                )
                shown.advance(task, len(group))
        except KeyboardInterrupt:
            stopped = True
        except check.Disagreement as error:
            sys.exit(f"bench_attention: {error}")
    if machine is not None:
        show(machine, rows)
    if stopped:
        print("interrupted: what was measured so far is above, without the JSON line", file=sys.stderr)
        sys.exit(130)
    assert machine is not None
    line = json.dumps(
        {"roofline": dataclasses.asdict(machine), "rows": [dataclasses.asdict(row) for row in rows]}
    )
    if options.json:
        options.json.write_text(f"{line}\n")
    print(line)


def main() -> None:
    options = arguments()
    # These are read when NumPy's and torch's libraries load, so those are imported after this.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
    try:
        run(options)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
