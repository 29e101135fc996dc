"""Keys that are chosen at random and stand for others: an estimate without bias, the same however it is computed."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from cases import CHOOSING, Array, Case, Seq
from op_graph import FLOOR, OpCase

from pyllama_long import _native
from pyllama_long.plan import AttentionPlan

ISAS = [name for name, usable in _native.isas().items() if usable]
LARGE = 40.0  # an attention sink far above all logits


def weights(op: OpCase) -> Array:
    """How many keys each chosen one stands for: [n_tokens, n_head, positions], 0 for others."""
    assert op.weights is not None
    return np.exp(op.weights)


@pytest.mark.parametrize("case", [c for c in CHOOSING if c.name.startswith("sample/")], ids=lambda c: c.name)
def test_each_stratum_has_one_key(case: Case) -> None:
    """The weights of a row's chosen keys sum up to the keys that its set parts leave; its sample's differ by one."""
    op = OpCase(case)
    op.run()
    found = weights(op)
    for one, (first, _) in zip(op.layouts, op._spans(), strict=True):
        for i, p in enumerate(one.q_pos):
            phase = (op.plan.prefill, op.plan.tail)[one.phase[i]]
            rows = 1 if one.phase[i] else 64
            end = (p // rows * rows - max(phase.window, 64) + 1) // 64 * 64
            end = 0 if p < phase.dense else end
            left = int(((one.pos >= phase.sinks) & (one.pos < end)).sum())
            mine = found[first + i]
            if phase.topk is None or phase.sample is not None:
                assert np.allclose(mine.sum(axis=1), left, rtol=1e-5)
            if phase.sample is not None and phase.topk is None:
                size = int(phase.sample.of(np.array(left)))
                assert ((mine > 0).sum(axis=1) == size).all()
                assert mine.max() - mine[mine > 0].min(initial=mine.max()) <= 1.001
            assert not mine[:, end:].any() if end > 0 else not mine.any()
            heads = mine.reshape(case.n_head_kv, -1, mine.shape[1])
            assert (heads == heads[:, :1]).all(), "heads that share keys share their sample"
    assert op.chosen is not None and op.chosen.any()


def test_the_place_of_a_query_block_sets_its_sample() -> None:
    plan = "sinks(4)+window(64)+sample(50)"
    case = Case("sample/place", plan=plan, seqs=(Seq(1000, 200, tail=9), Seq(1010, 190, tail=9)))
    op = OpCase(case)
    op.run()
    found = weights(op)
    one, other = found[:200], found[200:]
    assert np.array_equal(one[10:], other)  # the same text from another chunk on, and in company
    for tokens in (range(24), range(24, 88), range(88, 152), range(152, 191)):  # blocks of 64 positions
        assert all(np.array_equal(one[i], one[tokens[0]]) for i in tokens)
    samples = [one[i, 0].tobytes() for i in (0, 24, 88, 152, *range(191, 200))]
    assert len(set(samples)) == len(samples)
    for other_case in (replace(case, layer=4), replace(case, plan=plan.replace("50", "50, seed=1"))):
        changed = OpCase(other_case)
        changed.run()
        assert not any(np.array_equal(a, b) for a, b in zip(weights(changed)[:, 0], found[:, 0], strict=True))
    assert not np.array_equal(found[0, 0], found[0, 2])  # another kv head


def test_everything_equals_exact() -> None:
    seqs = (Seq(500, 100, tail=3),)
    expected = OpCase(Case("sample/everything", seqs=seqs, kv_type="f32")).expected()
    for plan in ("sinks(4)+window(64)+sample(100%)", "window(64)+topk(2)+sample(100%)", "sample(9999)"):
        op = OpCase(Case("sample/everything", plan=plan, seqs=seqs, kv_type="f32"))
        assert np.abs(op.run() - expected).max() <= 1e-2
        assert op.weights is not None and set(np.unique(op.weights)) == {-np.inf, 0.0}


@cache
def estimates(n: int, plan: str) -> tuple[Array, Array, Array]:
    """(numerators and denominators [n, tokens, heads, d_v] of as many seeds, the same of all keys, and of set parts).

    With a sink far above all logits, the op gives the numerator times a constant. The first dim of all values is 1, so
    that of the numerator is the denominator.
    """
    case = Case(
        "sample/seeds", plan=plan, seqs=(Seq(700, 66, tail=2),), kv_type="f32", sink=LARGE, peaked=1.5
    )
    op = OpCase(replace(case, d_v=4))
    op.sinks = np.full(case.n_head, LARGE, np.float32)
    v = np.array(op.v)
    v[..., 0] = 1
    op.v, op.v_bytes = v, v.astype(np.float32).tobytes()
    found = []
    for seed in range(n):
        op.plan = AttentionPlan.parse(plan.replace("seed=0", f"seed={seed}"))
        found.append(op.run(1) * np.exp(LARGE))
    op.plan, op.weights = AttentionPlan.parse("exact"), None
    return np.array(found), op.expected() * np.exp(LARGE), np.array(op.v)


@pytest.mark.parametrize(
    "plan",
    [
        "sinks(4)+window(64)+sample(40, seed=0)",
        "window(64)+topk(2)+sample(5%, seed=0)",
        "window(64)+lsh(60, 40, seed=0)",
    ],
)
def test_the_estimate_has_no_bias(plan: str) -> None:
    """Over 1,000 seeds, the mean numerators and denominators are those of all keys within their standard errors."""
    found, exact, _ = estimates(1000, plan)
    error = found.std(axis=0, ddof=1) / np.sqrt(len(found))
    z = (found.mean(axis=0) - exact) / error
    assert (error / exact)[..., 0].mean() < 0.02
    assert abs(z).max() < 5 and 0.8 < z.std() < 1.25 and abs(z.mean()) < 0.25


def test_strata_beat_a_sample_of_all() -> None:
    """The variance is at most that of as many keys drawn alike from all, with its error."""
    found, exact, _ = estimates(1000, "sinks(4)+window(64)+sample(40, seed=0)")
    assert (found.std(axis=0)[..., 0] / exact[..., 0]).mean() < 0.5


def test_no_index_is_made(demo_model: str) -> None:
    from pyllama_long import LongLlama

    llm = LongLlama(demo_model, n_ctx=1024, attention="sinks(4)+window(64)+sample(30)")
    try:
        ids = llm.tokenize(b"A sentence about nothing in particular. " * 60)[:600]
        llm.eval(ids)
        assert _native.index_memory(llm.ctx) == 0
        assert llm.attention_stats()["keys_read"] < 0.7 * llm.attention_stats()["keys_visible"]
    finally:
        llm.close()


@pytest.mark.parametrize("isa", ISAS)
def test_single_keys_are_exact_in_every_instruction_set(isa: str) -> None:
    """A row that reads one key of each stratum of equal keys has the output of all of them."""
    assert _native.lib.plong_cpu_isa_force(isa.encode())
    case = Case(
        "sample/equal", plan="window(64)+sample(20)", seqs=(Seq(700, 70, tail=3),), kv_type="f32", peaked=0.0
    )
    op = OpCase(case)
    position = np.repeat(np.arange(op.n_kv)[None, :, None, None] / op.n_kv, case.d_v, axis=-1)
    op.v = np.broadcast_to(position, op.v.shape)
    op.v_bytes = op.v.astype(np.float32).tobytes()
    got = op.run()
    assert _native.lib.plong_cpu_isa_force(b"")
    assert np.abs(got - op.expected()).max() <= 4e-3 + FLOOR
    assert np.abs(got[:, 0, 0] - (np.arange(700, 770) / 2 / op.n_kv)).max() < 0.02
