"""Checks that the sides agree before anything is timed, and some of our rows against float64."""

from __future__ import annotations

import numpy as np
from cases import Array
from op_graph import decode

from attention_bench.graphs import Graphs, Side
from attention_bench.workloads import row_bytes
from pyllama_long import _native

ALLOWED = 2e-2  # as a share of the largest value
# With more dims, upstream's decode is further off, since it adds V in half precision: 5% at 131,072 keys.
ALLOWED_LATENT = 1e-1
# Large logits, of chosen keys or of a trained model's, are rounded to bf16 by more.
ALLOWED_LARGE = 5e-2


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
        allowed = (
            ALLOWED_LATENT if graphs.case.v_in_k else ALLOWED_LARGE if graphs.workload.lifelike else ALLOWED
        )
        _compare(f"{graphs.workload}: {name} and upstream", got, base, allowed)
    if side.name == "ours":
        last, n_head = len(got) - 1, graphs.case.n_head
        for token, head in ((0, n_head - 1), (last // 2, 5), (last, 0)):
            what = f"{graphs.workload}: row {token} of head {head} of {name} and float64"
            large = graphs.choices[-1] or graphs.workload.lifelike
            allowed = ALLOWED_LARGE if large else ALLOWED
            _compare(what, got[token, head], _row(graphs, token, head), allowed)


def _compare(what: str, got: Array, expected: Array, allowed: float = ALLOWED) -> None:
    error = float(np.abs(got - expected).max() / np.abs(expected).max(initial=1e-30))
    if not np.any(expected):
        error = float(np.abs(got).max())
    if not error <= allowed:
        raise Disagreement(f"{what} differ by {error:.1e} of the largest value; allowed: {allowed:.0e}")


def _row(graphs: Graphs, token: int, head: int) -> Array:
    """The output [d] of one query of the last position, from the keys that the plan lists for it."""
    batch = graphs.batches[-1]
    one = batch.layouts[token // graphs.n_new]
    at = token % graphs.n_new
    phase = (batch.plan.prefill, batch.plan.tail)[one.phase[at]]
    number = _native.head_number(head, batch.case.n_head, batch.case.n_head_kv)
    pos, log_w = _native.phase_keys(phase, int(one.q_pos[at]), number)
    choices = graphs.choices[-1]
    if choices is not None:
        weights = batch.chosen_keys(graphs.works[-1], graphs.view(choices, np.int32))[token, head]
        chosen = np.flatnonzero(weights > -np.inf)  # none of those that the plan lists
        log_w = np.concatenate([log_w, weights[chosen]])
        order = np.argsort(np.concatenate([pos, chosen]), kind="stable")
        pos, log_w = np.concatenate([pos, chosen])[order], log_w[order]
    held = np.isin(pos, one.pos, assume_unique=True)
    cells = one.cell[np.searchsorted(one.pos, pos[held])]
    if not len(cells):
        return np.zeros(batch.case.d_v)
    shape = (-1, batch.case.n_head, batch.case.d_k)
    q = graphs.view(graphs.q, np.float32).reshape(shape)[token, head].astype(np.float64)
    k = _keys(graphs, graphs.k, one.stream, cells, head, batch.case.d_k)
    v = k[:, : batch.case.d_v]
    if not batch.case.v_in_k:
        v = _keys(graphs, graphs.v, one.stream, cells, head, batch.case.d_v)
    logits = k @ q * batch.case.scale + log_w[held]
    sink = np.float64(-np.inf) if graphs.sinks is None else graphs.sinks[head].astype(np.float64)
    top = max(logits.max(), sink)
    weights = np.exp(logits - top)
    found: Array = weights @ v / (weights.sum() + np.exp(sink - top))
    return found


def _keys(graphs: Graphs, tensor: int, stream: int, cells: Array, head: int, dims: int) -> Array:
    """[n, dims] float64 of these cells, for a query head."""
    case = graphs.case
    shape = (graphs.n_seq, graphs.n_kv, case.n_head_kv, row_bytes(dims, case.kv_type))
    rows = graphs.view(tensor, np.uint8).reshape(shape)
    raw = rows[stream, cells, head * case.n_head_kv // case.n_head].tobytes()
    return decode(raw, (len(cells), dims), case.kv_type)
