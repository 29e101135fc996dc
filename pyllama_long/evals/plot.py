"""Plots what `eval` measured: a line per RoPE policy and plan over the lengths, a panel per task and figure."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyllama_long.evals import EvalError

__all__ = ["check_plot", "write_plot"]

_LIMIT = 20.0  # a perplexity more than this many times the best one is drawn at the edge
_STYLES = ("o-", "s-", "^-", "D-", "v--", "o--", "s--", "^--", "D--", "v:", "o:", "s:", "^:", "D:")
_Figure = Callable[
    [dict[str, Any]], tuple[float, float, float]
]  # a row's value, and how far its bar goes down and up


def check_plot(path: Path) -> None:
    """Raises EvalError, before anything is measured, when the plot could not be written."""
    if importlib.util.find_spec("matplotlib") is None:
        raise EvalError("--plot needs matplotlib: pip install 'pyllama-long[plot]'")
    if path.suffix.lower() != ".png":
        raise EvalError(f"--plot writes PNG: {path} does not end in .png")
    if not path.parent.is_dir():
        raise EvalError(f"{path} cannot be written: there is no folder {path.parent}")


def write_plot(path: Path, rows: Sequence[dict[str, Any]], n_train: int) -> None:
    """rows: as in the JSON line. Lengths in tokens on a logarithmic axis."""
    from matplotlib.figure import Figure

    measured = [row for row in rows if "error" not in row]
    tasks = list(dict.fromkeys(row["task"] for row in measured))
    lines = list(dict.fromkeys((row["rope"], row["plan"]) for row in measured))
    panels = [[(task, *panel) for panel in _panels(task)] for task in tasks]
    deep = max(map(len, panels))
    figure = Figure(figsize=(max(8.0, 4.0 * len(tasks)), 1 + 3.5 * deep), layout="constrained")
    every = figure.subplots(deep, len(tasks), squeeze=False)
    for column, mine in enumerate(panels):
        for place in range(deep):
            axes = every[place][column]
            if place < len(mine):
                _draw(axes, *mine[place], measured, lines, n_train)
            else:
                axes.set_axis_off()
    every[0][0].legend(fontsize="small")
    figure.savefig(path, format="png")


def _panels(task: str) -> list[tuple[str, _Figure]]:
    """What is drawn of a task: its name, and where it is in a row."""
    if task == "perplexity":
        return [("perplexity", lambda row: (row["perplexity"], 0.0, 0.0))]
    if task == "agreement":
        return [
            ("KL from exact, nats per token", lambda row: (row["kl"], *_both(row["kl_error"]))),
            ("same likeliest token", lambda row: (row["same"], *_both(row["same_error"]))),
        ]
    return [("found", _accuracy), ("nats per token of the right answer", _nats)]


def _accuracy(row: dict[str, Any]) -> tuple[float, float, float]:
    total = row["total"]
    value, (low, high) = total["accuracy"], total["interval"]
    return value, max(0.0, value - low), max(0.0, high - value)


def _nats(row: dict[str, Any]) -> tuple[float, float, float]:
    return row["total"]["nats"], *_both(row["total"]["nats_error"])


def _both(error: float | None) -> tuple[float, float]:
    return (error or 0.0, error or 0.0)


def _draw(
    axes: Any,
    task: str,
    name: str,
    figure: _Figure,
    rows: Sequence[dict[str, Any]],
    lines: Sequence[tuple[str, str]],
    n_train: int,
) -> None:
    """One panel. The first row of a cell stands for all."""
    values = []
    plans = {plan for _, plan in lines}
    for (rope, plan), style in zip(lines, _STYLES * (1 + len(lines) // len(_STYLES)), strict=False):
        mine = {
            row["length"]: figure(row)
            for row in rows
            if (row["task"], row["rope"], row["plan"]) == (task, rope, plan)
        }
        at = sorted(mine)
        values += [mine[n][0] for n in at]
        bars = [[mine[n][k] for n in at] for k in (1, 2)]
        label = rope if len(plans) == 1 else f"{rope}, {plan}"
        axes.errorbar(at, [mine[n][0] for n in at], bars, fmt=style, label=label, capsize=2)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens")
    axes.set_ylabel(name)
    axes.set_title(task, fontsize="medium")
    if name == "perplexity":
        axes.set_yscale("log")
        axes.set_ylim(0.9 * min(values), 1.1 * min(max(values), _LIMIT * min(values)))
    elif name == "found":
        axes.set_ylim(-0.03, 1.03)
    if n_train:
        axes.axvline(n_train, color="grey", linewidth=0.8)
    axes.grid(alpha=0.3)
