"""Draws and measures attention plans: pattern maps, shares of the keys, layers until everything is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllama_long import pattern
from pyllama_long.plan import AttentionPlan, Phase, PlanError

__all__ = [
    "density",
    "distances",
    "figure",
    "longest_path",
    "pattern_png",
    "pattern_text",
    "shades",
    "shares",
]

_SHADES = "·░▒▓█"  # visible but not read, then up to 1/4, 1/2, 3/4 and all of the keys


def density(
    plan: AttentionPlan, n: int, rows: int, columns: int, *, head: int = 0, tail: int | None = None
) -> npt.NDArray[np.float64]:
    """[rows, columns]: the share (0 .. 1) of the visible keys that queries read, NaN where they see none.

    Row i holds the queries i*n/rows .. (i+1)*n/rows (16 of them at random where there are more), column j the
    keys of the same range. The last `tail` queries are in the tail phase; None: an eighth of them where the
    phases differ.
    """
    if n < 1 or rows < 1 or columns < 1 or head < 0:
        raise PlanError("a drawing needs at least one token, row and column, and a head from 0")
    rows, columns = min(rows, n), min(columns, n)
    if tail is None:
        tail = 0 if plan.prefill == plan.tail else n // 8
    edges = np.arange(columns + 1) * n // columns
    read, visible = np.zeros((2, rows, columns))
    random = np.random.default_rng(0)
    for row in range(rows):
        queries: pattern.Positions = np.arange(row * n // rows, (row + 1) * n // rows)
        if len(queries) > 16:
            queries = random.choice(queries, 16, replace=False)
        for p in queries:
            phase = plan.tail if p >= n - tail else plan.prefill
            read[row] += np.diff(np.searchsorted(pattern.keys(phase, int(p), head), edges))
            visible[row] += np.diff(np.minimum(edges, p + 1))
    part = np.full((rows, columns), np.nan)
    np.divide(read, visible, out=part, where=visible > 0)
    return part


def pattern_text(
    plan: AttentionPlan, n: int, width: int = 64, *, head: int = 0, tail: int | None = None
) -> str:
    """A drawing in characters, `width` wide and half as many lines high: rows are queries (the first on top),
    columns are keys; █ where all visible keys are read, ▓ ▒ ░ for fewer, · for none. See density() for
    `tail`."""
    lines = []
    for row in density(plan, n, max(1, width // 2), width, head=head, tail=tail):
        lines.append(shades(row).rstrip())
    return "\n".join(lines)


def shades(shares: npt.NDArray[np.float64]) -> str:
    """A character for each share from 0 to 1: · for 0, then ░ ▒ ▓ █ for up to 1/4, 1/2, 3/4 and 1, a blank for NaN."""
    levels = np.ceil(4 * np.clip(np.nan_to_num(shares), 0, 1)).astype(int)
    return "".join(" " if blank else _SHADES[k] for blank, k in zip(np.isnan(shares), levels, strict=True))


def figure(width: float, height: float) -> tuple[Any, Any]:
    """An empty matplotlib figure, in inches, and the norm in which shares of keys are drawn. Raises ImportError when
    matplotlib is not there."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import PowerNorm
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawings need matplotlib: pip install 'pyllama-long[plot]'") from error
    empty = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(empty)
    return empty, PowerNorm(0.4, vmin=0, vmax=1)  # one key in 16 is still visible


def pattern_png(
    plan: AttentionPlan, path: str | PathLike[str], n: int, head: int = 0, *, tail: int | None = None
) -> None:
    """Writes the drawing as a PNG. Raises ImportError when matplotlib is not there."""
    page, scale = figure(6, 6.4)
    axes = page.add_subplot()
    image = density(plan, n, 384, 384, head=head, tail=tail)
    axes.imshow(image, cmap="Blues", norm=scale, extent=(0.0, n, n, 0.0), interpolation="nearest")
    axes.set_title(f"{plan}\nhead {head}", fontsize=8, wrap=True)
    axes.set_xlabel("key position")
    axes.set_ylabel("query position")
    page.savefig(path, format="png", dpi=150)


def shares(plan: AttentionPlan, lengths: Iterable[int], n_head: int = 1) -> dict[int, float]:
    """For each prompt length, the share of the causal pairs that a prefill reads: AttentionPlan.share."""
    return {n: plan.share(n, n_head) for n in lengths}


def longest_path(
    plan: AttentionPlan, n: int, n_head: int = 1, *, tail: int = 0, starts: Iterable[int] | None = None
) -> int | None:
    """The number of layers after which a token can have seen every token before it, None when it never does.

    A query p of one layer sees what its keys held after the layer before: hops go from p to the keys that any
    of n_head heads reads, and to p itself. The search goes breadth first from the last of n tokens, or takes the
    maximum over `starts`. The last `tail` queries are in the tail phase. Dense layers are ignored. It grows as log n
    for LongNet, as n / w for window(w).
    """
    if n < 1 or n_head < 1:
        raise PlanError("longest_path needs at least one token and head")
    longest = 0
    for start in [n - 1] if starts is None else starts:
        if not 0 <= start < n:
            raise PlanError(f"start {start} is not a position from 0 to {n - 1}")
        hops = _hops(plan, start, n - tail, n_head)
        if hops is None:
            return None
        longest = max(longest, hops)
    return longest


def distances(
    plan: AttentionPlan, n: int, start: int, n_head: int = 1, *, tail: int = 0
) -> npt.NDArray[np.int32]:
    """The number of layers [n] between token `start` and each other one, by breadth-first search; -1 if no number is
    enough.

    To tokens before it: after how many layers `start` can have seen them; to those after it: after how many they
    can have seen `start`. Hops as in `longest_path`.
    """
    if n < 1 or n_head < 1 or not 0 <= start < n:
        raise PlanError(f"distances need a token from 0 to {n - 1}, not {start}, and at least one head")
    found = np.full(n, -1, np.int32)
    for hops, frontier in enumerate(_seen_from(plan, start, n - tail, n_head)):
        found[frontier] = hops
    seen = np.zeros(n, bool)
    seen[start] = True
    hops = 0
    while True:
        hops += 1
        blind = start + np.flatnonzero(~seen[start:])
        new = np.concatenate(
            [
                queries[_reads(phase, queries, n_head, seen)]
                for phase, queries in (
                    (plan.prefill, blind[blind < n - tail]),
                    (plan.tail, blind[blind >= n - tail]),
                )
            ]
        )
        if not len(new):
            return found
        found[new], seen[new] = hops, True


def _reads(
    phase: Phase, queries: pattern.Positions, n_head: int, marked: pattern.Mask
) -> npt.NDArray[np.bool_]:
    """Whether each query reads a key t with marked[t], with any head."""

    def some(mask: pattern.Mask, start: pattern.Positions, stop: pattern.Positions) -> npt.NDArray[np.bool_]:
        count = np.concatenate([[0], np.cumsum(mask)])
        hits: npt.NDArray[np.bool_] = count[np.maximum(start, stop)] > count[start]
        return hits

    far, near = pattern.set_parts(phase, queries)
    found = some(marked, np.zeros_like(far), far) | some(marked, near, queries + 1)
    places = np.arange(len(marked))
    for head in range(min(n_head, pattern.period(phase))):
        for branch, (start, stop) in zip(phase.branches, pattern.spans(phase, queries, head), strict=True):
            if head < branch.rate or phase.weight == "stride":
                found |= some(marked & pattern.on_lattice(phase, branch, head, places), start, stop)
    return found


def _hops(plan: AttentionPlan, start: int, tail_from: int, n_head: int) -> int | None:
    steps = list(_seen_from(plan, start, tail_from, n_head))
    return len(steps) - 1 if sum(map(len, steps)) == start + 1 else None


def _seen_from(plan: AttentionPlan, start: int, tail_from: int, n_head: int) -> Iterator[pattern.Positions]:
    """The tokens that `start` sees for the first time after 0, 1, 2, ... layers, until there are no more."""
    seen = np.zeros(start + 1, bool)
    seen[start] = True
    frontier = np.array([start])
    while len(frontier):
        yield frontier
        reached = seen.copy()
        for phase, queries in (
            (plan.prefill, frontier[frontier < tail_from]),
            (plan.tail, frontier[frontier >= tail_from]),
        ):
            if len(queries):
                _mark_keys(phase, queries, n_head, reached)
        frontier = np.flatnonzero(reached & ~seen)
        seen = reached


def _mark_keys(phase: Phase, queries: pattern.Positions, n_head: int, reached: pattern.Mask) -> None:
    """Sets reached[t] for the keys t of the queries, over all heads."""
    far, near = pattern.set_parts(phase, queries)
    _mark(reached, np.zeros_like(far), far)
    _mark(reached, near, queries + 1)
    for head in range(min(n_head, pattern.period(phase))):
        for branch, (start, stop) in zip(phase.branches, pattern.spans(phase, queries, head), strict=True):
            # Heads h and h + rate read the same keys of a branch, except where keys belong to finer branches.
            if head < branch.rate or phase.weight == "stride":
                _mark(reached, start, stop, partial(pattern.on_lattice, phase, branch, head))


def _mark(
    reached: pattern.Mask,
    start: pattern.Positions,
    stop: pattern.Positions,
    lattice: Callable[[pattern.Positions], pattern.Mask] | None = None,
) -> None:
    """Sets reached[t] for the positions t that lie in any of the intervals [start, stop), and on the lattice."""
    some = start < stop
    if not some.any():
        return
    low, high = start[some].min(), stop[some].max()
    change = np.bincount(start[some] - low, minlength=high - low + 1)
    change -= np.bincount(stop[some] - low, minlength=high - low + 1)
    covered = np.cumsum(change[:-1]) > 0
    reached[low:high] |= covered if lattice is None else covered & lattice(np.arange(low, high))
