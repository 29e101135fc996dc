"""Plots what `eval` measured: a line per RoPE policy and plan over the lengths."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyllama_long.evals import EvalError

__all__ = ["check_plot", "write_plot"]

_LIMIT = 20.0  # a perplexity more than this many times the best one is drawn at the edge
_STYLES = ("o-", "s-", "^-", "D-", "v--", "o--", "s--", "^--", "D--", "v:", "o:", "s:", "^:", "D:")


def check_plot(path: Path) -> None:
    """Raises EvalError, before anything is measured, when the plot could not be written."""
    if importlib.util.find_spec("matplotlib") is None:
        raise EvalError("--plot needs matplotlib: pip install 'pyllama-long[plot]'")
    if path.suffix.lower() != ".png":
        raise EvalError(f"--plot writes PNG: {path} does not end in .png")
    if not path.parent.is_dir():
        raise EvalError(f"{path} cannot be written: there is no folder {path.parent}")


def write_plot(path: Path, task: str, rows: Sequence[dict[str, Any]], n_train: int) -> None:
    """rows: as in the JSON line. Lengths in tokens on a logarithmic axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    measured = [row for row in rows if "error" not in row]
    lines = list(dict.fromkeys((row["rope"], row["plan"]) for row in measured))
    plans = {plan for _, plan in lines}
    for (rope, plan), style in zip(lines, _STYLES * (1 + len(lines) // len(_STYLES)), strict=False):
        points = _points(task, [row for row in measured if (row["rope"], row["plan"]) == (rope, plan)])
        axes.plot(*zip(*points, strict=True), style, label=rope if len(plans) == 1 else f"{rope}, {plan}")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("tokens")
    if task == "perplexity":
        values = [row["perplexity"] for row in measured]
        axes.set_yscale("log")
        axes.set_ylim(0.9 * min(values), 1.1 * min(max(values), _LIMIT * min(values)))
        axes.set_ylabel("perplexity")
    else:
        axes.set_ylim(-0.03, 1.03)
        axes.set_ylabel("found")
    if n_train:
        axes.axvline(n_train, color="grey", linewidth=0.8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, format="png")


def _points(task: str, rows: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """(length, perplexity or accuracy over all depths), ascending."""
    found = []
    for length in sorted({row["length"] for row in rows}):
        mine = [row for row in rows if row["length"] == length]
        if task == "perplexity":
            value = mine[0]["perplexity"]
        else:
            asked = sum(row["samples"] for row in mine)
            value = sum(row["accuracy"] * row["samples"] for row in mine) / asked
        found.append((length, float(value)))
    return found
