"""Checks that the sides agree before anything is timed, and some of our rows against float64."""

from __future__ import annotations

import numpy as np
from cases import Array
from op_graph import decode

from attention_bench.graphs import Graphs, Side
from attention_bench.workloads import N_HEAD, N_HEAD_KV, ROW_BYTES, D
from pyllama_long import _native

ALLOWED = 2e-2  # as a share of the largest value


class Disagreement(Exception):
    """One line that says which sides differ, and by how much."""


def agree(graphs: Graphs, side: Side, base: Array | None) -> None:
    """Compares a side's output with upstream's, and three rows with float64, after a run.

    base: upstream's output, or None where upstream does not run."""
    got = side.output()
    name = f"{side.name} {side.isa or ''}".strip()
    if not np.isfinite(got).all():
        raise Disagreement(f"{graphs.workload}: {name} gives numbers that are not finite")
    if base is not None:
        _compare(f"{graphs.workload}: {name} and upstream", got, base)
    if side.name == "ours":
        last = len(got) - 1
        for token, head in ((0, N_HEAD - 1), (last // 2, 5), (last, 0)):
            what = f"{graphs.workload}: row {token} of head {head} of {name} and float64"
            _compare(what, got[token, head], _row(graphs, token, head))


def _compare(what: str, got: Array, expected: Array) -> None:
    error = float(np.abs(got - expected).max() / np.abs(expected).max(initial=1e-30))
    if not np.any(expected):
        error = float(np.abs(got).max())
    if not error <= ALLOWED:
        raise Disagreement(f"{what} differ by {error:.1e} of the largest value; allowed: {ALLOWED:.0e}")


def _row(graphs: Graphs, token: int, head: int) -> Array:
    """The output [d] of one query of the last position, from the keys that the plan lists for it."""
    batch = graphs.batches[-1]
    one = batch.layouts[token // graphs.n_new]
    at = token % graphs.n_new
    phase = (batch.plan.prefill, batch.plan.tail)[one.phase[at]]
    pos, log_w = _native.phase_keys(phase, int(one.q_pos[at]), _native.head_number(head, N_HEAD, N_HEAD_KV))
    held = np.isin(pos, one.pos, assume_unique=True)
    cells = one.cell[np.searchsorted(one.pos, pos[held])]
    if not len(cells):
        return np.zeros(D)
    q = graphs.view(graphs.q, np.float32).reshape(-1, N_HEAD, D)[token, head].astype(np.float64)
    k, v = (_keys(graphs, tensor, one.stream, cells, head) for tensor in (graphs.k, graphs.v))
    logits = k @ q * batch.case.scale + log_w[held]
    sink = np.float64(-np.inf) if graphs.sinks is None else graphs.sinks[head].astype(np.float64)
    top = max(logits.max(), sink)
    weights = np.exp(logits - top)
    found: Array = weights @ v / (weights.sum() + np.exp(sink - top))
    return found


def _keys(graphs: Graphs, tensor: int, stream: int, cells: Array, head: int) -> Array:
    """[n, d] float64 of these cells, for a query head."""
    kv_type = graphs.workload.kv_type
    rows = graphs.view(tensor, np.uint8).reshape(graphs.n_seq, graphs.n_kv, N_HEAD_KV, ROW_BYTES[kv_type])
    raw = rows[stream, cells, head * N_HEAD_KV // N_HEAD].tobytes()
    return decode(raw, (len(cells), D), kv_type)
