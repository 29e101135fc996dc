"""Keys that are chosen by content: the op reads what it chose, and it chooses the blocks that matter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from cases import QUANTIZED, Case, Seq
from op_graph import FLOOR, OpCase
from test_op import ISAS, NAIVE, forced  # noqa: F401

MAPS = ("native", "dca(96, 16)", "rerope(64)+logn", "self-extend(4, 40)", "native+logn")


def _cases() -> Iterator[Case]:
    plan = "sinks(4)+window(64)+topk(3)"
    yield Case("prefill", plan=plan, seqs=(Seq(0, 700),))
    yield Case("chunk", plan=plan, seqs=(Seq(500, 100),))
    yield Case("decode", plan=plan, seqs=(Seq(700, 1, tail=1),))
    yield Case("tail", plan=plan, seqs=(Seq(600, 40, tail=21),))
    yield Case("share", plan="window(70)+topk(20%, block=16)", seqs=(Seq(0, 500),))
    yield Case(
        "mass", plan="sinks(64)+window(1)+topk(mass=0.5, least=2, block=64)", seqs=(Seq(0, 700),), peaked=3
    )
    yield Case("all", plan="sinks(5)+window(100)+topk(100%)", seqs=(Seq(300, 200),))
    yield Case("below", plan="window(64)+topk(2); dense_below=400", seqs=(Seq(330, 170),))
    yield Case(
        "phases", plan="prefill: window(64)+topk(2) | tail: topk(9, block=16)", seqs=(Seq(600, 80, tail=9),)
    )
    yield Case("one", plan="prefill: window(99) | tail: topk(4)", seqs=(Seq(600, 80, tail=9),))
    yield Case("many", plan=plan, seqs=(Seq(0, 300), Seq(500, 1, tail=1), Seq(400, 70, tail=5)))
    yield Case("unified", plan=plan, seqs=(Seq(300, 70), Seq(500, 1, tail=1)), one_stream=True)
    yield Case("holes", plan=plan, seqs=(Seq(900, 70, holes=True, reordered=True),))
    yield Case("shared", plan=plan, seqs=(Seq(400, 9), Seq(430, 30, shared=300)), one_stream=True)
    yield Case("gone", plan=plan, seqs=(Seq(900, 12, gone=300),))
    for n_head, n_head_kv in ((1, 1), (7, 1), (15, 5), (32, 4), (48, 1)):
        yield Case(
            f"heads/{n_head}/{n_head_kv}",
            n_head=n_head,
            n_head_kv=n_head_kv,
            plan=plan,
            seqs=(Seq(400, 70, tail=3),),
        )
    for kv_type in ("f32", "bf16", *QUANTIZED):
        yield Case(f"type/{kv_type}", kv_type=kv_type, plan=plan, seqs=(Seq(600, 70, tail=2),))
    for d in (32, 80, 96, 128, 256):
        yield Case(f"dims/{d}", d_k=d, d_v=d, n_rot=32, plan=plan, seqs=(Seq(400, 70, tail=2),))
    for rope in MAPS:
        yield Case(f"map/{rope}", rope=rope, plan=plan, seqs=(Seq(600, 70, tail=2),))
    yield Case(
        "map/hadamard",
        rope="rerope(50)",
        kv_type="q8_0",
        hadamard=64,
        plan=plan,
        seqs=(Seq(600, 70, tail=2),),
    )
    yield Case("alibi", max_bias=8.0, n_rot=0, n_head=8, plan=plan, seqs=(Seq(600, 70, tail=2),))
    yield Case("cap", soft_cap=5.0, peaked=4.0, plan=plan, seqs=(Seq(600, 70, tail=2),))
    yield Case("sinks", sink=2.0, plan=plan, seqs=(Seq(600, 70, tail=2),))
    latent = Case("latent", n_head=20, n_head_kv=1, d_k=576, d_v=512, rot_first=512, neox=False, v_in_k=True)
    yield replace(latent, plan=plan, seqs=(Seq(300, 70, tail=2),))


CASES = list(_cases())
BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("forced", ISAS, indirect=True)
def test_equals_the_reference_with_the_chosen_keys(forced: str, case: Case) -> None:  # noqa: F811
    op = OpCase(case)
    got = op.run()
    assert op.chosen is not None and op.chosen.any()
    expected = op.expected()
    naive = np.abs(op.expected(NAIVE.get(forced, "f32")) - expected).max()
    assert np.abs(got - expected).max() <= 3 * naive + FLOOR
