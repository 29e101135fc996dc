"""Reports both sides of a bench as a table, CSV, a plot and JSON."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from context_bench.job import OURS, UPSTREAM, Attention, BenchError, Row

COLORS = {OURS: "#1f6fb4", UPSTREAM: "#d1701f"}


def ratios(rows: Sequence[Row]) -> list[dict[str, float]]:
    """Ours over upstream, at the depths that both sides reached."""
    found = {(row.side, row.depth): row for row in rows}
    out = []
    for depth in sorted({row.depth for row in rows}):
        ours, upstream = found.get((OURS, depth)), found.get((UPSTREAM, depth))
        if ours and upstream:
            prefill, decode = ours.prefill_tps / upstream.prefill_tps, ours.decode_tps / upstream.decode_tps
            out.append({"depth": depth, "prefill": round(prefill, 3), "decode": round(decode, 3)})
    return out


def attention_ratios(rows: Sequence[Attention]) -> list[dict[str, Any]]:
    """Upstream's time over ours, for one layer of each kind at each depth."""
    found = {(row.side, row.depth, row.kind): row for row in rows}
    out = []
    for row in rows:
        upstream = found.get((UPSTREAM, row.depth, row.kind))
        if row.side == OURS and upstream:
            prefill, decode = upstream.prefill_ms / row.prefill_ms, upstream.decode_ms / row.decode_ms
            ratio = {"prefill": round(prefill, 2), "decode": round(decode, 2)}
            out.append({"depth": row.depth, "kind": row.kind, **ratio})
    return out


def attention_table(rows: Sequence[Attention]) -> Table:
    """A line per depth and kind of layer."""
    out = Table(title="attention of one layer, ms", box=box.SIMPLE_HEAD, padding=(0, 1), title_justify="left")
    for name in (
        "\ndepth",
        "\nlayers",
        "prefill\nupstream",
        "\nours",
        "\nx",
        "decode\nupstream",
        "\nours",
        "\nx",
    ):
        out.add_column(name, justify="right", no_wrap=True)
    found = {(row.side, row.depth, row.kind): row for row in rows}
    compared = {(ratio["depth"], ratio["kind"]): ratio for ratio in attention_ratios(rows)}
    for depth, kind in dict.fromkeys((row.depth, row.kind) for row in rows):
        both = [found.get((side, depth, kind)) for side in (UPSTREAM, OURS)]
        layers = next(row.layers for row in both if row)
        ratio = compared.get((depth, kind), {})
        line = [f"{depth:,}", f"{layers} {kind}"]
        for part in ("prefill", "decode"):
            line += [f"{getattr(row, part + '_ms'):.3f}" if row else "" for row in both]
            line.append(f"{ratio[part]:.1f}" if ratio else "")
        out.add_row(*line)
    return out


def table(rows: Sequence[Row], title: str, at: bool) -> Table:
    """A line per depth; the last chunk has its own columns only if it is not the whole prefill."""
    sides = [side for side in (UPSTREAM, OURS) if any(row.side == side for row in rows)]
    speeds = {"prefill": "prefill_tps", "last chunk": "last_chunk_tps", "decode": "decode_tps"}
    if at:
        del speeds["last chunk"]
    compared = {found["depth"]: found for found in ratios(rows)}
    out = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1), title_justify="left")
    out.add_column("\ndepth", justify="right")
    for name in speeds:
        for i, side in enumerate(sides):
            out.add_column(f"{'' if i else f'{name} t/s'}\n{side}", justify="right", no_wrap=True)
        if compared and name != "last chunk":
            out.add_column("\nx", justify="right")
    out.add_column("cache\nMiB", justify="right")
    for i, side in enumerate(sides):
        out.add_column(f"{'' if i else 'peak MiB'}\n{side}", justify="right", no_wrap=True)
    found = {(row.side, row.depth): row for row in rows}
    for depth in sorted({row.depth for row in rows}):
        cells = [f"{depth:,}"]
        here = [found.get((side, depth)) for side in sides]
        for name, field in speeds.items():
            cells += [speed(getattr(row, field)) if row else "" for row in here]
            if compared and name != "last chunk":
                cells.append(f"{compared[depth][name]:.2f}" if depth in compared else "")
        cells.append(next(f"{row.kv_mib:,.1f}" for row in here if row))
        cells += [f"{row.peak_rss_mib:,.0f}" if row else "" for row in here]
        out.add_row(*cells)
    return out


def speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write_csv(path: Path, rows: Sequence[Row], run: dict[str, Any]) -> None:
    """A line per side and depth; `run` comes first in each."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*run, *(field.name for field in fields(Row))], lineterminator="\n")
        writer.writeheader()
        writer.writerows(run | asdict(row) for row in rows)


def check_plot(path: Path) -> None:
    """Raises BenchError, before anything is measured, if the plot could not be written afterwards."""
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError:
        raise BenchError("--plot needs matplotlib: pip install 'pyllama-long[plot]'") from None
    if path.suffix.lower() != ".png":
        raise BenchError(f"--plot writes PNG: give {path.with_suffix('.png')}")


def write_plot(path: Path, rows: Sequence[Row], title: str, at: bool) -> None:
    """Tokens per second over the depth: prefill and decode side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    depths = sorted({row.depth for row in rows})
    for side, color in COLORS.items():
        mine = sorted((row for row in rows if row.side == side), key=lambda row: row.depth)
        x = [row.depth for row in mine]
        if not mine:
            continue
        if not at:
            left.plot(x, [row.last_chunk_tps for row in mine], "o:", color=color, label=f"{side}, last chunk")
        left.plot(x, [row.prefill_tps for row in mine], "o-", color=color, label=side)
        right.plot(x, [row.decode_tps for row in mine], "o-", color=color, label=side)
    whole = "prefill, last chunk" if at else "prefill from 0"
    for axes, what in ((left, whole), (right, "decode")):
        axes.set_title(what, fontsize=10)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(depths, [f"{d // 1024}k" if d % 1024 == 0 else str(d) for d in depths])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.grid(alpha=0.3)
        axes.set_xlabel("depth, tokens")
        axes.set_ylabel("tokens/s")
        axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, format="png", dpi=150)
