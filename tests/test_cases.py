"""The table of op cases: it covers what it should, and every cache layout is sound."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES, KV_TYPES, QUANTIZED, Case, layout, tensors
from reference import attention, rope_freqs

from pyllama_long.plan import AttentionPlan
from pyllama_long.rope import RopePolicy


def test_the_table_covers_the_op() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.d_k for case in CASES} == {32, 64, 80, 96, 128, 160, 192, 256, 576}
    assert {case.kv_type for case in CASES} == set(KV_TYPES) == {case.type_v for case in CASES}
    assert {RopePolicy.parse(case.rope, n_train=case.n_train, n_ctx=900).map for case in CASES} == {
        "absolute",
        "dca",
        "self-extend",
        "rerope",
    }
    for flag in ("holes", "reordered", "shared", "gone", "tail"):
        assert any(getattr(seq, flag) for case in CASES for seq in case.seqs), flag


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case) -> None:
    plan = AttentionPlan.parse(case.plan, n_train=case.n_train)
    rope = RopePolicy.parse(case.rope, n_train=case.n_train, n_ctx=900)
    assert case.n_head % case.n_head_kv == 0
    assert case.n_rot % 2 == 0
    assert case.n_rot <= case.d_k
    assert case.kv_type not in QUANTIZED or case.d_k % 32 == 0
    assert case.type_v not in QUANTIZED or case.d_v % 32 == 0
    layouts, n_kv = layout(case)
    q, k, v = tensors(case)
    assert n_kv <= 3008
    holders: dict[tuple[int, int], int] = {}
    freqs, magnitude = rope_freqs(rope, case.n_rot, case.base) if case.n_rot else (np.zeros(0), 1.0)
    begin = 0
    for seq, one in zip(case.seqs, layouts, strict=True):
        assert (np.diff(one.pos) > 0).all()
        assert len(set(one.cell.tolist())) == len(one.pos)
        assert 0 <= one.cell.min() <= one.cell.max() < n_kv
        assert one.q_pos.tolist() == one.pos[-seq.n_new :].tolist()
        assert one.phase.sum() == seq.tail
        for pos, cell in zip(one.pos.tolist(), one.cell.tolist(), strict=True):
            assert holders.setdefault((one.stream, cell), pos) == pos
        runs = [(p + i, c + i) for p, c, n in one.runs() for i in range(n)]
        assert runs == list(zip(one.pos.tolist(), one.cell.tolist(), strict=True))
        assert sum(n for _, _, n in one.groups()) == seq.n_new
        mine = slice(begin, begin := begin + seq.n_new)
        out = attention(
            q[mine],
            k[one.stream, one.cell],
            v[one.stream, one.cell],
            one.q_pos,
            one.pos,
            one.phase,
            plan,
            rope,
            case.scale,
            freqs,
            magnitude,
            case.n_rot,
            case.neox,
            layer=case.layer,
            rot_first=case.rot_first,
        )
        assert out.shape == (seq.n_new, case.n_head, case.d_v)
        assert np.isfinite(out).all()
        reads_nothing = (out == 0).all(axis=-1)
        assert case.name.startswith(("empty", "part", "sinks/empty")) or not reads_nothing.any()
    assert begin == len(q)


def test_layouts_and_contents_are_the_same_each_time() -> None:
    case = next(case for case in CASES if case.name == "sequences/shared-holes/exact")
    for first, second in zip(layout(case)[0], layout(case)[0], strict=True):
        np.testing.assert_array_equal(first.cell, second.cell)
    np.testing.assert_array_equal(tensors(case).k, tensors(case).k)
    assert len(layout(case)[0][0].runs()) > 5
