"""Keys that are chosen by hashes of their direction: which they are, and what is read of the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import CHOOSING, Array, Case, Seq
from op_graph import OpCase

from pyllama_long import LongLlama, _native

ISAS = [name for name, usable in _native.isas().items() if usable]
BITS = 16


def vectors(d: int) -> Array:
    """[d, BITS]: the random vectors of lsh.c, each value the sum of the four 16-bit parts of a SplitMix64 number."""
    x = np.arange(d * BITS, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    parts = sum((x >> np.uint64(shift) & np.uint64(65535)).astype(np.float64) for shift in (0, 16, 32, 48))
    found: Array = np.reshape(parts - 2 * 65535.0, (d, BITS))
    return found


def ranks(x: Array) -> Array:
    """[n] of vectors [n, d]: the signs of their products, as a Gray code."""
    bits = (x.astype(np.float64) @ vectors(x.shape[-1]) > 0).astype(np.int64)
    found: Array = np.cumsum(bits, axis=-1) % 2 @ (1 << np.arange(BITS - 1, -1, -1))
    return found


def nearest(keys: Array, queries: Array, budget: int) -> Array:
    """Which keys [n, d] queries [rows, d] choose: the widest blocks around all of their places within the budget."""
    n, rank, asked = len(keys), ranks(keys), ranks(queries)
    shift = BITS - min(BITS, max(4, int(n - 1).bit_length()))
    rank, asked = rank >> shift, asked >> shift
    order = np.argsort(rank, kind="stable")
    found = np.sort(rank)
    places = (np.searchsorted(found, asked, "left") + np.searchsorted(found, asked, "right")) // 2
    best = np.zeros(n, bool)
    for width in range(1, budget + 1):
        begin = np.maximum(0, np.minimum(places - width // 2, n - width))
        inside = (begin[:, None] <= np.arange(n)) & (np.arange(n) < begin[:, None] + width)
        if (taken := inside.any(axis=0)).sum() > budget:
            break
        best = taken
    chosen = np.zeros(n, bool)
    chosen[order[best]] = True
    return chosen


@pytest.mark.parametrize("budget", [9, 60, 400, 836])
@pytest.mark.parametrize("tail", [0, 1])
def test_the_keys_around_the_queries_in_the_order_of_hashes(tail: int, budget: int) -> None:
    seqs = (Seq(960, 1 if tail else 64, tail=tail),)
    op = OpCase(
        Case("lsh/order", plan=f"sinks(4)+window(100)+lsh({budget})", seqs=seqs, n_head=8, n_head_kv=2)
    )
    op.run()
    one, end = op.layouts[0], (960 - 99) // 64 * 64
    assert op.chosen is not None
    for kv in range(2):
        heads = slice(4 * kv, 4 * kv + 4)
        keys, queries = op.k[0, one.cell[4:end], kv], op.q[:, heads].reshape(-1, op.case.d_k)
        got = op.chosen[:, heads]
        assert (got == got[:1, :1]).all(), "queries that choose together read the same"
        assert not got[0, 0, end:].any() and not got[0, 0, :4].any()
        expected = nearest(keys, queries, budget)
        if not expected.any():  # a key for each row would be too many
            assert got[0, 0].sum() == budget
        else:
            assert np.array_equal(got[0, 0, 4:end], expected) and expected.sum() > 0.4 * budget


def test_everything_equals_exact() -> None:
    seqs = (Seq(500, 100, tail=3),)
    expected = OpCase(Case("lsh/everything", seqs=seqs, kv_type="f32")).expected()
    for plan in ("sinks(4)+window(64)+lsh(100%)", "window(64)+lsh(20, 100%)", "lsh(9999)"):
        for isa in ISAS:
            assert _native.lib.plong_cpu_isa_force(isa.encode())
            op = OpCase(Case("lsh/everything", plan=plan, seqs=seqs, kv_type="f32"))
            assert np.abs(op.run() - expected).max() <= 1e-2
            assert op.weights is not None and set(np.unique(op.weights)) == {-np.inf, 0.0}
    assert _native.lib.plong_cpu_isa_force(b"")


@pytest.mark.parametrize(
    "case", [c for c in CHOOSING if c.name.startswith("lsh/")], ids=lambda case: case.name
)
def test_the_sample_stands_for_what_is_left(case: Case) -> None:
    """No key counts twice, no more are chosen than allowed, and with a sample the weights are those of all keys."""
    op = OpCase(case)
    op.run()
    assert op.weights is not None
    found = np.exp(op.weights)
    for one, (first, _) in zip(op.layouts, op._spans(), strict=True):
        for i, p in enumerate(one.q_pos):
            phase = (op.plan.prefill, op.plan.tail)[one.phase[i]]
            rows = 1 if one.phase[i] else 64
            end = (p // rows * rows - max(phase.window, 64) + 1) // 64 * 64
            end = 0 if p < phase.dense_below else end
            held = one.pos[(one.pos >= phase.sinks) & (one.pos < end)]
            mine = found[first + i]
            assert not mine[:, np.setdiff1d(np.arange(mine.shape[1]), held)].any()
            if phase.lsh is None or not len(held):
                continue
            most = int(phase.lsh.most(np.array(len(held))))
            if phase.sample is None:
                assert ((mine > 0).sum(axis=1) <= most).all() and mine.max() == 1
            else:
                assert np.allclose(mine.sum(axis=1), len(held), rtol=1e-5)


def test_a_query_finds_the_key_of_its_direction() -> None:
    """One that is the direction of a key reads it, wherever that is, and whatever else asks."""
    plan = "window(64)+lsh(5%)"
    op = OpCase(
        replace(
            Case("lsh/found", plan=plan, seqs=(Seq(3000, 1, tail=1),), kv_type="f32"), n_head=2, n_head_kv=2
        )
    )
    for at in (0, 777, 2870):
        op.q[0] = 3 * np.array(op.k)[0, op.layouts[0].cell[at]]
        op.run()
        assert op.chosen is not None and op.chosen[0, :, at].all()


def test_numbers_that_are_not_finite_do_no_harm() -> None:
    op = OpCase(Case("lsh/nan", plan="window(64)+lsh(20)", seqs=(Seq(700, 3),), kv_type="f32"))
    k = np.array(op.k)
    k[0, 100, 0, 3], k[0, 200, 0, 5] = np.nan, np.inf
    op.k_bytes = k.astype(np.float32).tobytes()
    op.q[1, 0, 0], op.q[2, 0, 0] = np.nan, np.inf
    op.run()
    assert op.chosen is not None and op.chosen.any(axis=-1).all()


def test_the_index_of_hashes_is_small(demo_model: str) -> None:
    """Two bytes for each key, beside those of topk if the other phase wants them."""
    with_hashes, sizes = "sinks(4)+window(64)+lsh(30)", []
    for plan in (with_hashes, "window(64)+topk(3)", f"prefill: window(64)+topk(3) | tail: {with_hashes}"):
        llm = LongLlama(demo_model, n_ctx=1024, attention=plan)
        try:
            llm.eval(llm.tokenize(b"A sentence about nothing in particular. " * 60)[:600])
            sizes.append(_native.index_memory(llm.ctx))
            assert llm.attention_stats()["keys_read"] < 0.7 * llm.attention_stats()["keys_visible"]
        finally:
            llm.close()
    assert 0 < 10 * sizes[0] < sizes[1] and sizes[2] == sizes[0] + sizes[1]
