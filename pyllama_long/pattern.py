"""The keys that a phase reads, listed and counted with NumPy: for shares, drawings and paths.

The set parts of a phase (sinks, global, window, dense_below) are the keys [0, far) and [near, p]. A branch of
`dilated` reads an interval [start, stop) of one lattice. Whether a key lies on the lattice of (branch, head) does not
depend on the query: inside the query's segment, t - b is t mod w. So counts come from prefix sums over lattices.

A head is identified by its number in dilated attention (docs/plans.md), which is its index unless heads share K and
V.
"""

from __future__ import annotations

from math import lcm

import numpy as np
import numpy.typing as npt

from pyllama_long.phase import PAGE, Branch, Phase

Positions = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def set_parts(phase: Phase, p: Positions) -> tuple[Positions, Positions]:
    """(far, near) of queries p [n]: the set parts are the keys [0, far) and [near, p]."""
    begin = p + 1 - phase.window
    if phase.chooses:  # the queries of a page have one window, which begins with a page
        begin = (p // PAGE * PAGE + 1 - max(phase.window, PAGE)) // PAGE * PAGE
    near = np.where(p < phase.dense, 0, np.maximum(0, begin))
    return np.minimum(max(phase.sinks, phase.global_), near), near


def spans(phase: Phase, p: Positions, head: int) -> list[tuple[Positions, Positions]]:
    """(start, stop) of queries p [n] per branch: it reads the keys of its lattice in [start, stop), outside the set
    parts; start = stop where the query takes no part. With weight=stride the intervals of a query are disjoint."""
    far, near = set_parts(phase, p)
    end = p + 1
    found = []
    for branch in phase.branches:
        w, r = branch.segment, branch.rate
        if phase.align == "segment":
            begin = p // w * w
            takes_part = (p - begin) % r == head % r
        else:
            begin = np.maximum(0, p + 1 - w)
            takes_part = np.ones(p.shape, bool)
        begin = np.where(takes_part, begin, end)
        stop = np.minimum(end, near)
        start = np.minimum(np.maximum(begin, far), stop)
        found.append((start, stop))
        if phase.weight == "stride":
            end = np.minimum(end, begin)
    return found


def on_lattice(phase: Phase, branch: Branch, head: int, t: Positions) -> Mask:
    """Whether the keys t lie on the lattice of (branch, head)."""
    offset = t % branch.segment if phase.align == "segment" else t
    found: Mask = offset % branch.rate == head % branch.rate
    return found


def period(phase: Phase) -> int:
    """Heads h and h + period read the same keys."""
    return lcm(*(branch.rate for branch in phase.branches))


def keys(phase: Phase, p: int, head: int = 0) -> Positions:
    """Positions that the query at p of a head reads, ascending, each once."""
    at = np.array([p])
    far, near = set_parts(phase, at)
    parts = [np.arange(far[0]), np.arange(near[0], p + 1)]
    for branch, (start, stop) in zip(phase.branches, spans(phase, at, head), strict=True):
        t = int(start[0])
        if t < stop[0]:
            offset = t % branch.segment if phase.align == "segment" else t
            t += (head - offset) % branch.rate
            parts.append(np.arange(t, stop[0], branch.rate))
    found: Positions = np.unique(np.concatenate(parts))
    return found


def counts(phase: Phase, n: int, head: int = 0) -> Positions:
    """[n]: how many keys the queries 0 .. n of a head read; a key that several branches read counts once."""
    p = np.arange(n)
    far, near = set_parts(phase, p)
    total = far + p + 1 - near
    left = np.maximum(0, near - far)
    if phase.topk:
        blocks = -(-near // phase.topk.block) - far // phase.topk.block
        best = np.where(near > far, np.minimum(left, phase.topk.block * phase.topk.most(blocks)), 0)
        total, left = total + best, left - best
    if phase.lsh:
        near_by = np.minimum(left, phase.lsh.most(left))
        total, left = total + near_by, left - near_by
    if phase.sample:
        total += phase.sample.of(left)
    if phase.verified:  # at most: how many it takes is known when it runs
        total += left
    if not phase.branches:
        return total
    lattices = [on_lattice(phase, branch, head, p) for branch in phase.branches]
    found = spans(phase, p, head)
    if phase.weight == "stride":
        for lattice, (start, stop) in zip(lattices, found, strict=True):
            before = _before(lattice)
            total += before[stop] - before[start]
        return total
    # All intervals of a query end at `stop`. Between its i-th smallest start and the next, branches order[:i+1] are
    # open: there it reads the union of their lattices.
    starts = np.stack([start for start, _ in found])
    order = np.argsort(starts, axis=0, kind="stable")
    edges = np.concatenate([np.take_along_axis(starts, order, axis=0), found[0][1][None]])
    is_open = np.cumsum(1 << order, axis=0)
    used = edges[1:] > edges[:-1]
    for subset in np.flatnonzero(np.bincount(is_open[used], minlength=1)):
        union = np.zeros(n, bool)
        for k, lattice in enumerate(lattices):
            if subset >> k & 1:
                union |= lattice
        before = _before(union)
        step, query = np.nonzero(used & (is_open == subset))
        np.add.at(total, query, before[edges[step + 1, query]] - before[edges[step, query]])
    return total


def share(phase: Phase, n: int, n_head: int = 1) -> float:
    """The share of the causal (query, key) pairs of n tokens that the phase reads, over n_head heads."""
    read = 0.0
    for head in range(min(n_head, period(phase))):
        heads = len(range(head, n_head, period(phase)))
        read += heads * float(counts(phase, n, head).sum())
    return read / n_head / (n * (n + 1) / 2)


def checked(phase: Phase, n: int, step: int) -> float:
    """The same share for the queries of 0 .. n at multiples of step that read every key beside what the phase gives
    them: all but those to which it gives every key."""
    p = np.arange(0, n, step)
    partial = (counts(phase, n)[p] <= p) | (bool(phase.branches) & (p >= phase.dense))
    return float((p[partial] + 1).sum()) / (n * (n + 1) / 2)


def _before(lattice: Mask) -> Positions:
    """[n + 1]: how many keys of the lattice lie before each position."""
    return np.concatenate([[0], np.cumsum(lattice)])
