"""Keys that are chosen by content: the op reads what it chose, and it chooses the blocks that matter."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from cases import CHOOSING, Array, Case, Seq, layout
from op_graph import FLOOR, OpCase

from pyllama_long import _native

ISAS = [name for name, usable in _native.isas().items() if usable]
NAIVE = {"amx": "bf16", "avx512bf16": "bf16", "neonbf16": "bf16"}


@cache
def ran(case: Case, isa: str) -> tuple[OpCase, Array]:
    """A case with the keys that it chose, and the op's output."""
    assert _native.lib.plong_cpu_isa_force(isa.encode())
    op = OpCase(case)
    got = op.run()
    assert _native.lib.plong_cpu_isa_force(b"")
    return op, got


def softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Array = weights / weights.sum(axis=-1, keepdims=True)
    return shares


@pytest.mark.parametrize("case", CHOOSING, ids=lambda case: case.name)
@pytest.mark.parametrize("isa", ISAS)
def test_equals_the_reference_with_the_chosen_keys(isa: str, case: Case) -> None:
    op, got = ran(case, isa)
    assert op.chosen is not None and op.chosen.any()
    expected = op.expected()
    naive = np.abs(op.expected(NAIVE.get(isa, "f32")) - expected).max()
    assert np.abs(got - expected).max() <= 3 * naive + FLOOR


@pytest.mark.parametrize("case", CHOOSING, ids=lambda case: case.name)
def test_every_instruction_set_chooses_the_same_keys(case: Case) -> None:
    first = ran(case, ISAS[0])[0].chosen
    assert first is not None
    for isa in ISAS[1:]:
        chosen = ran(case, isa)[0].chosen
        assert chosen is not None and np.array_equal(chosen, first), isa


def test_everything_equals_exact() -> None:
    plan = "sinks(4)+window(64)+topk(100%)"
    case = Case("choose/everything", plan=plan, seqs=(Seq(500, 100, tail=3),), kv_type="f32")
    op, _ = ran(case, ISAS[0])
    assert op.chosen is not None
    for isa in ISAS:
        _, got = ran(case, isa)
        exact = Case("choose/everything", seqs=case.seqs, kv_type="f32")
        expected = OpCase(exact).expected()
        naive = np.abs(OpCase(exact).expected(NAIVE.get(isa, "f32")) - expected).max()
        assert np.abs(got - expected).max() <= 3 * naive + FLOOR


@pytest.mark.parametrize("block", [16, 32, 64])
@pytest.mark.parametrize("kv_type", ["f16", "q4_0"])
def test_the_blocks_with_the_largest_share_are_chosen(block: int, kv_type: str) -> None:
    """A token's choice has at least 95% of the softmax that the best blocks have."""
    case = Case(
        f"choose/best/{block}/{kv_type}",
        plan=f"window(64)+topk(8, block={block})",
        seqs=(Seq(2000, 1, tail=1),),
        kv_type=kv_type,
        n_head=8,
        peaked=2.0,
    )
    op, _ = ran(case, ISAS[0])
    assert op.chosen is not None
    one = op.layouts[0]
    end = (2000 - 63) // 64 * 64
    shares = []
    for kv in range(case.n_head_kv):
        heads = slice(kv * 4, kv * 4 + 4)
        logits = op.q[0, heads].astype(np.float64) @ op.k[0, one.cell[:end], kv].T * case.scale
        mass = softmax(logits).mean(axis=0)
        blocks = mass.reshape(-1, block).sum(axis=1)
        chosen = op.chosen[0, kv * 4, :end]
        assert chosen.sum() == 8 * block
        shares.append(mass[chosen].sum() / np.sort(blocks)[-8:].sum())
    assert min(shares) > 0.95


def test_a_mass_ends_the_choice() -> None:
    """A query that matches one key takes its block and nothing else."""
    case = Case("choose/mass", plan="window(64)+topk(mass=0.9)", seqs=(Seq(1000, 1, tail=1),), kv_type="f32")
    op = OpCase(case)
    key = np.array(op.k)[0, 333]
    op.q[0] = 40 * np.repeat(key, 2, axis=0) / np.linalg.norm(key, axis=-1).repeat(2)[:, None]
    op.run()
    assert op.chosen is not None
    for head in range(case.n_head):
        assert np.flatnonzero(op.chosen[0, head]).tolist() == list(range(320, 352))


def test_numbers_that_are_not_finite_do_no_harm() -> None:
    """A NaN among the keys of a page is left out of its bounds; a query with one chooses something."""
    case = Case("choose/nan", plan="window(64)+topk(2)", seqs=(Seq(700, 3),), kv_type="f32")
    op = OpCase(case)
    k = np.array(op.k)
    k[0, 100, 0, 3], k[0, 200, 0, 5] = np.nan, np.inf
    op.k_bytes = k.astype(np.float32).tobytes()
    op.q[1, 0, 0] = np.nan
    op.run()
    assert op.chosen is not None and op.chosen[2].any()


def test_layouts_have_candidates() -> None:
    assert all(max(int(one.pos[-1]) for one in layout(case)[0]) > 200 for case in CHOOSING)
