"""Samples whose size follows from a bound on their error: the bound holds, and where it costs too much all is read."""

from __future__ import annotations

from dataclasses import replace

import check_verified
import numpy as np
import pytest
from cases import CHOOSING, Array, Case, Seq
from op_graph import FLOOR, OpCase, encode

from pyllama_long import LongLlama, _native
from pyllama_long.phase import Phase

ISAS = [name for name, usable in _native.isas().items() if usable]
PLAN = "sinks(4)+window(64)+verified(0.5, 0.5, least=2048)"
ALL = ("verified/all",)  # cases that read everything


def keys(op: OpCase) -> Array:
    """[n_tokens, n_head]: how many keys each chose."""
    assert op.chosen is not None
    return np.asarray(op.chosen.sum(axis=2))


@pytest.mark.parametrize(
    "case", [c for c in CHOOSING if c.name.startswith("verified/")], ids=lambda c: c.name
)
def test_the_chosen_keys_stand_for_all(case: Case) -> None:
    """Their weights sum up to the keys that set parts leave; blocks have the weight 1, and others are strata."""
    op = OpCase(case)
    op.run()
    assert op.weights is not None
    sampled = 0
    for one, (first, _) in zip(op.layouts, op._spans(), strict=True):
        for i, p in enumerate(one.q_pos):
            phase = op.plan.tail
            if not one.phase[i]:
                continue
            end = 0 if p < phase.dense else (p - max(phase.window, 64) + 1) // 64 * 64
            left = int(((one.pos >= phase.sinks) & (one.pos < end)).sum())
            mine = np.exp(op.weights[first + i])
            assert np.allclose(mine.sum(axis=1), left, rtol=1e-5)
            heads = mine.reshape(case.n_head_kv, -1, mine.shape[1])
            assert (heads == heads[:, :1]).all(), "heads that share keys share their sample"
            for head in mine:
                strata = head[head > 1]
                assert len(strata) == 0 or (len(strata) >= 256 and strata.max() - strata.min() <= 1.001)
                sampled += len(strata) > 0
    assert (sampled == 0) == (case.name in ALL)


def test_a_place_sets_what_is_chosen() -> None:
    """The same bits from another token on, in company, with other threads; another layer has another sample."""
    case = Case("verified/place", plan=PLAN, mean=1.0, seqs=(Seq(2600, 5, tail=5),))
    op = OpCase(case)
    got = op.run()
    assert op.weights is not None
    for threads in (1, 3):
        again = OpCase(case)
        assert np.array_equal(again.run(threads), got)
    late = OpCase(replace(case, seqs=(Seq(2602, 3, tail=3), Seq(100, 7))))
    for name in ("k", "v"):  # the same text
        getattr(late, name)[0, late.layouts[0].cell] = getattr(op, name)[0, op.layouts[0].cell]
    late.k_bytes, late.v_bytes = (encode(x, "f16") for x in (late.k, late.v))
    late.q[:3] = op.q[2:]
    found = late.run()
    assert late.weights is not None
    assert np.array_equal(found[:3], got[2:])
    assert np.array_equal(late.weights[:3, :, :2605], op.weights[2:])
    for other in (replace(case, layer=4), replace(case, plan=PLAN.replace("2048", "2048, seed=1"))):
        changed = OpCase(other)
        changed.run()
        assert changed.weights is not None and not np.array_equal(changed.weights, op.weights)


@pytest.mark.parametrize("isa", ISAS)
def test_what_costs_too_much_equals_exact(isa: str) -> None:
    assert _native.lib.plong_cpu_isa_force(isa.encode())
    case = Case("verified/strict", seqs=(Seq(2600, 3, tail=3),))
    exact = OpCase(case)
    bits, expected = exact.run(), exact.expected()
    few, strict = (
        OpCase(replace(case, plan=f"window(64)+verified({values})"))
        for values in ("", "0.000001, 0.000001, least=99")
    )
    assert np.array_equal(few.run(), bits), "with few keys, the plan is exact"
    got = strict.run()
    assert _native.lib.plong_cpu_isa_force(b"")
    assert (keys(strict) == [[(p - 63) // 64 * 64] * 4 for p in (2600, 2601, 2602)]).all()
    assert strict.weights is not None and set(np.unique(strict.weights)) == {-np.inf, 0.0}
    assert np.abs(got - expected).max() <= 4e-3 + FLOOR


@pytest.mark.parametrize("n_exact", [0, 1, 2, 4])
@pytest.mark.parametrize("threads", [1, 3])
def test_if_many_heads_read_everything_all_do(n_exact: int, threads: int) -> None:
    """It is faster for all of them together. The values of some kv heads cancel each other out."""
    case = Case("verified/heads", plan=PLAN, n_head=8, n_head_kv=4, mean=1.0, seqs=(Seq(2600, 2, tail=2),))
    op = OpCase(case)
    op.v[..., :n_exact, :] -= 1
    op.v_bytes = encode(op.v, "f16")
    got = op.run(threads)
    exact = keys(op)[:, ::2] == (2600 - 63) // 64 * 64 - 4
    assert (exact == (np.arange(4) < n_exact if n_exact < 2 else True)).all()
    assert np.abs(got - op.expected()).max() <= 4e-3


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", ["q", "near", "sampled"])
def test_what_is_no_number_shows(isa: str, bad: str) -> None:
    """In the rows of its kv head alone."""
    assert _native.lib.plong_cpu_isa_force(isa.encode())
    op = OpCase(Case("verified/nan", plan=PLAN, mean=1.0, seqs=(Seq(2600, 2, tail=2),), kv_type="f32"))
    op.run()
    if bad == "q":
        op.q[:, 0, 5] = np.nan
    else:
        assert op.chosen is not None
        at = 2590 if bad == "near" else np.flatnonzero(op.chosen[0, 0])  # any of them
        k = np.array(op.k)
        k[0, op.layouts[0].cell[at], 0, 7] = np.nan
        op.k_bytes = k.astype(np.float32).tobytes()
    got = op.run()
    assert _native.lib.plong_cpu_isa_force(b"")
    assert np.isnan(got[:, 0]).any(axis=1).all()
    assert np.isfinite(got[:, 2:]).all()


def test_a_needle_is_read() -> None:
    """A key that a base sample would hardly find is chosen for sure, at the cost of its block."""
    found = check_verified.measure(
        "sinks(4)+window(64)+verified(0.2, 0.05, least=4096)", "needle", "mean", 8192, 1
    )
    assert found.sampled.all() and found.read.mean() < 0.1
    assert max(*found.denominator, *found.numerator) < 0.2


def test_the_bound_holds(capsys: pytest.CaptureFixture[str]) -> None:
    """A sample of the campaign; some rows do exceed a third of eps, so that it can fail."""
    assert (
        check_verified.main(["--rows", "1280", "--keys", "6000", "--only", "flat/mean|needle|passage/mean"])
        == 0
    )
    assert '"problems": []' in capsys.readouterr().out
    found = check_verified.measure(
        "sinks(4)+window(64)+verified(0.1, 0.1, least=4096)", "passage", "mean", 6000, 3
    )
    assert found.sampled.any() and found.failed(0.03)[1] > 0.1


def test_a_sample_without_a_bound_is_found() -> None:
    found = check_verified.measure("sinks(4)+window(64)+sample(256)", "heavy", "mean", 6000, 0)
    assert min(found.failed(0.1)) > check_verified.most(0.1, len(found.read))


def test_a_model_reads_less_within_the_error(demo_model: str) -> None:
    plan = "tail: sinks(4)+window(64)+verified(0.3, 0.3, least=2048); check=16"
    llm = LongLlama(demo_model, n_ctx=4096, attention=plan, rope="rerope(128)+logn")
    try:
        ids = llm.tokenize(b"A sentence about nothing in particular, and another one. " * 400)[:3200]
        llm.eval(ids[:3100])
        llm.attention_stats(reset=True)
        for token in ids[3100:]:  # as in an answer
            llm.eval([token])
        stats = llm.attention_stats()
        assert _native.index_memory(llm.ctx) > 0
        assert 0.1 < stats["keys_read"] / stats["keys_visible"] < 0.9
        assert 0 < stats["error"] < 0.3
    finally:
        llm.close()


def test_the_first_position_that_leaves_keys_out() -> None:
    """Below it, fewer than `least` keys are to choose from."""
    for text, least in (("verified(least=100)", 100), ("sinks(70)+window(129)+verified(least=4096)", 4096)):
        phase = Phase.parse(text)
        at = np.array([phase.dense - 1, phase.dense])
        candidates = (at - max(phase.window, 64) + 1) // 64 * 64 - phase.sinks
        assert candidates[0] < least <= candidates[1]
