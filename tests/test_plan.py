"""Attention plans: text, errors, presets and shares."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import keys

from pyllama_long import _native, pattern
from pyllama_long.lsh import Lsh
from pyllama_long.phase import Align, Weight
from pyllama_long.plan import ALL, PRESETS, AttentionPlan, Branch, Phase, PlanError, choose_plan
from pyllama_long.sample import Sample
from pyllama_long.topk import Topk
from pyllama_long.verified import Verified


def both(phase: Phase, dense_layers: int = 0) -> AttentionPlan:
    return AttentionPlan(phase, phase, dense_layers)


@st.composite
def phases(draw: st.DrawFn, dense_below: int = 0) -> Phase:
    if draw(st.integers(0, 7)) == 0:
        return Phase(window=ALL, dense_below=dense_below)
    counts = st.sampled_from((0, 1, 3, 17, 40))
    branches = []
    for segment in sorted(draw(st.sets(st.integers(1, 70), max_size=5))):
        branches.append(Branch(segment, draw(st.integers(1, min(9, segment)))))
    sinks, window, global_ = draw(counts), draw(counts), draw(counts)
    if not (sinks or window or global_ or branches):
        window = 1
    if not branches:
        return Phase(sinks, window, global_, dense_below)
    weight: Weight = draw(st.sampled_from(get_args(Weight)))
    align: Align = draw(st.sampled_from(get_args(Align)))
    return Phase(sinks, window, global_, dense_below, tuple(branches), weight, align)


@st.composite
def plans(draw: st.DrawFn) -> AttentionPlan:
    below = draw(st.sampled_from((0, 0, 25)))
    prefill = draw(phases(below))
    tail = draw(st.one_of(st.just(prefill), phases(below)))
    return AttentionPlan(prefill, tail, draw(st.sampled_from((0, 2))))


@given(plans())
def test_text_reads_back_as_the_same_plan(plan: AttentionPlan) -> None:
    assert AttentionPlan.parse(str(plan)) == plan
    assert plan.explain()


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("exact", AttentionPlan(Phase(window=ALL), Phase(window=ALL))),
        (" sinks( 64 ) +window(4096) ", both(Phase(sinks=64, window=4096))),
        ("global(3)+sinks(2)", both(Phase(sinks=2, global_=3))),
        (
            "prefill: sinks(4)+window(508) | tail: exact; dense_layers=2",
            AttentionPlan(Phase(sinks=4, window=508), Phase(window=ALL), 2),
        ),
        ("tail: exact | prefill: window(3)", AttentionPlan(Phase(window=3), Phase(window=ALL))),
        (
            "window(3); dense_below=9; dense_layers=1",
            both(Phase(window=3, dense_below=9), dense_layers=1),
        ),
        (
            "dilated(segments=8/20, rates=1/3, weight=stride, align=query)",
            both(Phase(branches=(Branch(8, 1), Branch(20, 3)), weight="stride", align="query")),
        ),
        (
            "dilated(w0=10, alpha=3, n=3)",
            both(Phase(branches=(Branch(10, 1), Branch(30, 3), Branch(90, 9)))),
        ),
        ("prefill: streaming | tail: auto", AttentionPlan(Phase(sinks=4, window=2048), Phase(window=ALL))),
    ],
)
def test_parse(text: str, plan: AttentionPlan) -> None:
    assert AttentionPlan.parse(text) == plan


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_plans(name: str) -> None:
    plan = AttentionPlan.parse(name)
    assert AttentionPlan.parse(str(plan)) == plan
    assert AttentionPlan.default(None, name) == plan


def test_defaults() -> None:
    assert str(AttentionPlan.default(512)) == "exact"
    assert str(AttentionPlan.parse("skim", n_train=512)) == "prefill: sinks(4)+window(508) | tail: exact"
    assert str(AttentionPlan.parse("skim", n_train=8192)) == "prefill: sinks(64)+window(4096) | tail: exact"
    assert str(AttentionPlan.parse("longnet")) == (
        "dilated(segments=2048/4096/8192/16384/32768, rates=1/2/4/8/16)"
    )
    skim = AttentionPlan.default(512, "skim")
    assert skim.explain().splitlines() == [
        "the prompt reads the first 4 tokens, and the last 508 tokens",
        "the last turn and the answer read every key",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "hash(64)",
            "unknown part 'hash'; known: exact, sinks(n), window(n), global(n), dilated(...), topk(...), lsh(...), ",
        ),
        ("lsh", "lsh needs a number of keys or a share: lsh(4096), lsh(3%)"),
        ("lsh()", "lsh needs a number of keys or a share"),
        ("lsh(0)", "lsh: '0' is not a whole number from 1"),
        ("lsh(0%)", "lsh: a share is from 0% to 100%"),
        ("lsh(3%, 0)", "sample: '0' is not a whole number from 1"),
        ("lsh(3%, 1%, 5)", "lsh: unknown '5'; write lsh(4096), lsh(3%), or with a sample of the rest"),
        ("lsh(3%, bits=7)", "lsh: unknown 'bits'; write lsh(4096)"),
        ("lsh(3%, seed=7)", "lsh: seed= is that of a sample"),
        ("lsh(3%, 1%, seed=-1)", "sample: seed: '-1' is not a whole number from 0"),
        ("lsh(3%)+lsh(4%)", "lsh is given twice"),
        ("lsh(3%, 1%)+sample(2%)", "sample is given twice"),
        ("lsh(3%)+topk(3%)", "topk and lsh do not go together"),
        ("lsh(3%)+dilated()", "lsh and dilated do not go together"),
        ("exact+lsh(9)", "exact reads every key: leave the other parts out"),
        ("prefill: hyper | tail: exact", "hyper is a plan of both phases"),
        ("window(9)+lsh(3%); error=0.1", "error= holds by the blocks that topk takes"),
        ("topk", "topk needs a number of blocks, a share or a mass"),
        ("topk()", "topk needs a number of blocks, a share or a mass"),
        ("topk(0)", "topk: '0' is not a whole number from 1"),
        ("topk(0%)", "topk: a share is from 0% to 100%, and a mass from 0 to 1"),
        ("topk(101%)", "topk: a share is from 0% to 100%"),
        ("topk(x%)", "topk: 'x' is not a number"),
        ("topk(3, 4)", "topk: '4' is a second limit of the same kind"),
        ("topk(mass=0)", "topk: a share is from 0% to 100%, and a mass from 0 to 1"),
        ("topk(mass=nan)", "topk: mass: 'nan' is not a number"),
        ("topk(8, least=9)", "topk: 8 blocks and least=9 do not go together"),
        ("topk(8, block=20)", "topk: block=20 is not one of 16, 32, 64"),
        ("topk(8, blocks=20)", "topk: unknown 'blocks'; write topk(64), topk(3%) or topk(mass=0.95)"),
        ("topk(8)+dilated()", "topk and dilated do not go together"),
        ("topk(8)+topk(9)", "topk is given twice"),
        ("exact+topk(9)", "exact reads every key: leave the other parts out"),
        ("sample", "sample needs a number of keys or a share: sample(1024), sample(3%)"),
        ("sample()", "sample needs a number of keys or a share"),
        ("sample(0)", "sample: '0' is not a whole number from 1"),
        ("sample(2147483648)", "sample: '2147483648' is not a whole number from 1 to 2147483647"),
        ("sample(0%)", "sample: a share is from 0% to 100%"),
        ("sample(100.1%)", "sample: a share is from 0% to 100%"),
        ("sample(nan%)", "sample: 'nan' is not a number"),
        ("sample(3%, 4%)", "sample: '4%' is a second limit of the same kind"),
        ("sample(3, 4%, 5)", "sample: unknown '5'; write sample(1024) or sample(3%)"),
        ("sample(3, share=4)", "sample: unknown 'share'; write sample(1024) or sample(3%)"),
        ("sample(3, seed=-1)", "sample: seed: '-1' is not a whole number from 0"),
        ("sample(8)+dilated()", "sample and dilated do not go together"),
        ("sample(8)+sample(9)", "sample is given twice"),
        ("exact+sample(9)", "exact reads every key: leave the other parts out"),
        ("verified(0)", "verified: eps=0 is not from 0.000001 to 0.999999"),
        ("verified(1)", "verified: eps=1 is not from 0.000001 to 0.999999"),
        ("verified(0.1, 1)", "verified: delta=1 is not from 0.000001 to 0.999999"),
        ("verified(0.1, -0.1)", "verified: delta=-0.1 is not from 0.000001 to 0.999999"),
        ("verified(1e-9)", "verified: eps=1e-09 is not from 0.000001 to 0.999999"),
        ("verified(nan)", "verified: eps: 'nan' is not a number"),
        ("verified(5%)", "verified: eps: '5%' is not a number"),
        ("verified(0.1, 0.1, 9)", "verified: unknown '9'; write verified(0.05, 0.05)"),
        ("verified(0.1, eps=0.2)", "verified: eps is given twice"),
        ("verified(error=0.2)", "verified: unknown 'error'; write verified(0.05, 0.05)"),
        ("verified(least=2147483648)", "verified: least: '2147483648' is not a whole number from 0"),
        ("verified+verified", "verified is given twice"),
        ("verified+sample(9)", "verified draws a sample of its own: leave sample out"),
        ("verified+dilated()", "verified and dilated do not go together"),
        ("exact+verified", "exact reads every key: leave the other parts out"),
        ("prefill: verified | tail: exact", "verified is for single queries: give it to the tail"),
        ("verified; error=0.1", "error= holds by the blocks that topk takes in the prefill"),
        ("sinks(4)+slash(1, 2)", "unknown part 'slash'; known: exact"),
        (
            "hyperbole",
            "unknown part 'hyperbole'; known: .*; presets: auto, exact, streaming, longformer, longnet, skim",
        ),
        ("", "a part is missing in ''"),
        ("sinks(4)++window(2)", "a part is missing in 'sinks(4)++window(2)'"),
        ("sinks", "sinks needs one number of tokens: sinks(64)"),
        ("window(1, 2)", "window needs one number of tokens"),
        ("window(0)", "window: '0' is not a whole number from 1 to 2147483647"),
        ("window(-3)", "window: '-3' is not"),
        ("window(2147483648)", "window: '2147483648' is not"),
        ("window(4k)", "window: '4k' is not"),
        ("sinks(4", "cannot read 'sinks(4'"),
        ("sinks(4))", "cannot read 'sinks(4))'"),
        ("window(3)+window(4)", "window is given twice"),
        ("exact+window(4)", "exact or window is given twice"),
        ("exact+sinks(4)", "exact reads every key: leave the other parts out"),
        ("exact(3)", "exact takes no values"),
        ("dilated(segments=8/16)", "dilated needs segments= and rates= together"),
        ("dilated(segments=8, rates=1, n=2)", "dilated needs segments= and rates= together"),
        ("dilated(segments=8/16, rates=1)", "2 segments but 1 rates"),
        ("dilated(segments=16/8, rates=1/2)", "segments 16/8 must ascend"),
        ("dilated(segments=8, rates=9)", "rate 9 is not from 1 to its segment 8"),
        ("dilated(n=17)", "n=17 branches, at most 16"),
        ("dilated(n=16, alpha=9)", "is not from 1 to 1073741824"),
        ("dilated(8)", "dilated: unknown '8'; known: segments="),
        ("dilated(blocks=8)", "dilated: unknown 'blocks'; known: segments="),
        ("dilated(weight=mean)", "unknown weight 'mean'; known: count, stride, none"),
        ("dilated(align=left)", "unknown align 'left'; known: segment, query"),
        ("dilated(n=2, n=3)", "sets n twice"),
        ("dilated()+dilated()", "dilated is given twice"),
        ("exact; alpha=64", "unknown option 'alpha'; known: dense_below=n, dense_layers=n, check=n"),
        ("exact; dense_below=x", "dense_below: 'x' is not a whole number from 0"),
        ("exact; dense_below=1, dense_below=2", "option dense_below is given twice"),
        ("prefill: exact | tial: exact", "unknown phase 'tial'; write prefill: ... | tail: ..."),
        ("exact | exact", "unknown phase 'exact'; write prefill"),
        ("tail: exact | tail: exact", "phase tail is given twice"),
        ("prefill: skim | tail: exact", "skim is a plan of both phases"),
        ("prefill: adaptive | tail: exact", "adaptive is a plan of both phases"),
    ],
)
def test_errors_are_one_line_and_name_the_piece(text: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        AttentionPlan.parse(text)
    said = str(caught.value)
    assert "\n" not in said
    assert all(piece in said for piece in message.split(".*"))


def test_values_built_by_hand_are_checked() -> None:
    for make in (
        lambda: Phase(),
        lambda: Phase(sinks=-1),
        lambda: Phase(window=3, weight="stride"),
        lambda: Phase(window=ALL, sinks=1),
        lambda: AttentionPlan(Phase(window=3, dense_below=2), Phase(window=3)),
        lambda: AttentionPlan(Phase(window=3), Phase(window=3), -1),
        lambda: AttentionPlan.default(512, "hyperbole"),
        lambda: AttentionPlan.parse("skim", n_train=0),
        lambda: AttentionPlan.parse("exact").share(0),
    ):
        with pytest.raises(PlanError):
            make()


def test_choose_plan() -> None:
    plan, why = choose_plan("auto; dense_layers=1", 512, None)
    assert str(plan) == "exact; dense_layers=1"
    assert "every key" in why
    plan, why = choose_plan(" auto", 512, ([2048, 4096], [1, 2]))
    assert str(plan) == "dilated(segments=2048/4096, rates=1/2)"
    assert "GGUF" in why
    plan, why = choose_plan("auto; dense_layers=1", 512, ([2048, 4096], [1, 2]))
    assert str(plan) == "dilated(segments=2048/4096, rates=1/2); dense_layers=1"
    plan, why = choose_plan("skim", 512, ([2048, 4096], [1, 2]))
    assert plan == AttentionPlan.default(512, "skim")
    assert why == "asked for"
    with pytest.raises(PlanError, match="the GGUF's attention"):
        choose_plan("auto", 512, ([2048, 1024], [1, 2]))


@settings(deadline=None)
@given(phases(), st.integers(1, 90), st.integers(1, 5))
def test_share_counts_the_keys_of_the_formulas(phase: Phase, n: int, n_head: int) -> None:
    for h in range(n_head):
        counts = pattern.counts(phase, n, h)
        for p in range(0, n, 7):
            positions = keys(phase, p, h)[0]
            assert pattern.keys(phase, p, h).tolist() == positions.tolist()
            assert counts[p] == len(positions)
    read = sum(len(keys(phase, p, h)[0]) for p in range(n) for h in range(n_head))
    assert AttentionPlan(phase, phase).share(n, n_head) == pytest.approx(read / n_head / (n * (n + 1) / 2))


def test_share_of_layers() -> None:
    plan = AttentionPlan.parse("window(1); dense_layers=2")
    assert plan.share(9) == pytest.approx(9 / 45)
    assert plan.share(9, n_layer=4) == pytest.approx((2 + 2 * 0.2) / 4)
    assert plan.share(9, n_layer=1) == 1.0


def test_share_of_long_prompts() -> None:
    n = 131072
    assert AttentionPlan.parse("exact").share(n) == 1.0
    pairs = n * (n + 1) // 2
    window = AttentionPlan.parse("window(4096)").share(n)
    assert window == pytest.approx((pairs - (n - 4096) * (n - 4095) // 2) / pairs, rel=1e-12)
    longnet = AttentionPlan.parse("longnet").share(n, 32)
    # The paper's cost, the sum of w / r^2, counts a key once for each branch that reads it.
    paper = sum(w / r**2 for w, r in zip((2048, 4096, 8192, 16384, 32768), (1, 2, 4, 8, 16), strict=True)) / n
    assert 0.7 * paper < longnet < paper


@pytest.mark.parametrize(
    ("text", "reach"),
    [
        ("exact", ALL),
        ("window(300)", 300),
        ("sinks(4)+window(300)", ALL),
        ("window(300)+dilated(segments=128/512, rates=1/2)", 512),
        ("dilated(segments=128/512, rates=1/2, align=query)", 512),
        ("prefill: window(300) | tail: exact", ALL),
        ("window(300); dense_below=800", 800),
        ("window(300); dense_layers=1", ALL),
    ],
)
def test_reach_is_the_furthest_that_a_query_reads(text: str, reach: int) -> None:
    plan = AttentionPlan.parse(text)
    assert plan.reach == reach
    n = 1500
    furthest = max(p - int(pattern.keys(plan.tail, p, h)[0]) + 1 for p in range(n) for h in range(2))
    # a lattice need not contain the furthest place
    assert plan.dense_layers or furthest in (min(reach, n), min(reach, n) - 1)


@pytest.mark.parametrize(
    ("text", "topk"),
    [
        ("topk(64)", Topk(blocks=64)),
        ("topk(3%)", Topk(share=0.03)),
        ("topk(100%)", Topk()),
        ("topk(2.5%, mass=0.9, least=4, block=16)", Topk(share=0.025, mass=0.9, least=4, block=16)),
        ("topk(9, 50%, block=64)", Topk(blocks=9, share=0.5, block=64)),
    ],
)
def test_topk_is_read_and_written(text: str, topk: Topk) -> None:
    plan = AttentionPlan.parse(f"window(64)+{text}")
    assert plan.prefill.topk == plan.tail.topk == topk
    assert AttentionPlan.parse(str(plan)) == plan and str(plan) == f"window(64)+{text}"
    assert plan.page == AttentionPlan.parse(f"prefill: exact | tail: {text}").page == 64
    assert plan.reach == ALL and "blocks of" in plan.explain()


@pytest.mark.parametrize(
    ("text", "verified"),
    [
        ("verified", Verified()),
        ("verified()", Verified(0.05, 0.05)),
        ("verified(0.1)", Verified(0.1)),
        ("verified(0.1, 0.01, least=9, seed=7)", Verified(0.1, 0.01, 9, 7)),
        ("verified(delta=0.5, eps=0.999999)", Verified(0.999999, 0.5)),
    ],
)
@pytest.mark.parametrize("form", ["{}", "tail: {}", "prefill: exact | tail: {}"])
def test_verified_is_read_and_written(text: str, verified: Verified, form: str) -> None:
    """Without phases, the prefill is exact: it is for single queries."""
    plan = AttentionPlan.parse(form.format(text))
    assert (plan.prefill, plan.tail) == (Phase(window=ALL), Phase(verified=verified))
    assert AttentionPlan.parse(str(plan)) == plan
    assert "or all" in plan.explain() and plan.page == 64


def test_a_plan_may_verify_at_most_all_keys() -> None:
    phase = Phase.parse("sinks(4)+window(64)+topk(3)+verified(least=100)")
    for p in (50, 166, 167, 900):
        assert _native.phase_count(phase, p, 0) == pattern.counts(phase, p + 1)[p] == p + 1


@pytest.mark.parametrize(
    ("text", "sample"),
    [
        ("sample(64)", Sample(keys=64)),
        ("sample(3%)", Sample(share=0.03)),
        ("sample(100%)", Sample()),
        ("sample(2.5%, seed=7)", Sample(share=0.025, seed=7)),
        ("sample(9, 50%, seed=2147483647)", Sample(keys=9, share=0.5, seed=2147483647)),
    ],
)
def test_sample_is_read_and_written(text: str, sample: Sample) -> None:
    plan = AttentionPlan.parse(f"sinks(4)+{text}")
    assert plan.prefill.sample == plan.tail.sample == sample
    assert AttentionPlan.parse(str(plan)) == plan and str(plan) == f"sinks(4)+{text}"
    assert plan.page == 64 and AttentionPlan.parse(f"prefill: exact | tail: {text}").page == 1
    assert plan.reach == ALL and "at random" in plan.explain()


@pytest.mark.parametrize(
    ("text", "lsh", "sample", "written"),
    [
        ("lsh(4096)", Lsh(keys=4096), None, "lsh(4096)"),
        ("lsh(2.5%)", Lsh(share=0.025), None, "lsh(2.5%)"),
        ("lsh(100%)", Lsh(), None, "lsh(100%)"),
        ("lsh(3%, 1%)", Lsh(share=0.03), Sample(share=0.01), "lsh(3%)+sample(1%)"),
        ("lsh(64, 256, seed=7)", Lsh(keys=64), Sample(keys=256, seed=7), "lsh(64)+sample(256, seed=7)"),
    ],
)
def test_lsh_is_read_and_written(text: str, lsh: Lsh, sample: Sample | None, written: str) -> None:
    plan = AttentionPlan.parse(f"sinks(4)+{text}")
    assert plan.prefill.lsh == plan.tail.lsh == lsh and plan.tail.sample == sample
    assert AttentionPlan.parse(str(plan)) == plan and str(plan) == f"sinks(4)+{written}"
    assert plan.page == AttentionPlan.parse(f"prefill: exact | tail: {text}").page == 64
    assert plan.reach == ALL and "hashes are nearest" in plan.explain()


@pytest.mark.parametrize(
    "text",
    [
        "window(9)+topk(2)",
        "lsh(9)",
        "sinks(3)+window(80)+lsh(30%)+sample(7%)",
        "lsh(100%)",
        "sinks(70)+window(200)+topk(10%, block=16)",
        "topk(100%)",
        "sample(9)",
        "sinks(3)+window(80)+sample(7%)",
        "topk(10%, block=16)+sample(20%)",
        "topk(3)+sample(100%); dense_below=200",
    ],
)
def test_shares_count_what_the_kernel_may_choose(text: str) -> None:
    plan = AttentionPlan.parse(text)
    n = 700
    counts = pattern.counts(plan.prefill, n)
    assert counts.tolist() == [_native.phase_count(plan.prefill, p, 0, rows=64) for p in range(n)]
    assert (counts <= np.arange(1, n + 1)).all()
