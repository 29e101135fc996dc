"""Checks of a plan: queries that also read every key measure what it leaves out, correct others, and set budgets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from cases import Array, Case, Seq
from engines import GREEDY, answer, prose
from op_graph import OpCase
from raw_model import Model
from watched import Rows, Watched

from pyllama_long import LongLlama, _native
from pyllama_long._native import llama_cpp as C
from pyllama_long.engine import Engine, EngineConfig, Request
from pyllama_long.plan import AttentionPlan, PlanError, choose_plan

DEMO = Path(__file__).parents[1] / "pyllama_long" / "data" / "demo.gguf"
N, HEADS, DIMS, LAYERS = 1100, 4, 64, 6
WINDOW = "sinks(4)+window(100)"
TOPK = "sinks(4)+window(64)+topk(3)"
ISAS = [name for name, usable in _native.isas().items() if usable]


@dataclass(frozen=True)
class Ran:
    """A prompt of N tokens under a plan: attention [N, HEADS, DIMS] of layer 0, whose inputs are the same under all
    plans, the meter, and the keys read."""

    rows: Rows
    errors: tuple[tuple[int, int, int, float], ...]  # layer, head, rows, relative error
    shared: tuple[float, ...]  # the same of heads that share keys, together
    keys: int


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    model = Model(DEMO)
    yield model
    model.close()


@cache
def ran(model: Model, plan: str, ubatch: int = 512, kind: str = "random") -> Ran:
    watched = Watched("kqv_out-0")
    tokens = model.tokens(N)
    if kind == "repeated":
        tokens = tokens[:50] * (N // 50)
    elif kind != "random":
        tokens = model.tokenize((Path(__file__).parents[1] / kind).read_text())[:N]
    with model.context(2048, plan, "rerope(128)+logn", watch=watched.watch, n_ubatch=ubatch) as context:
        context.decode(tokens)
        heads = _native.errors(context.ptr)
        errors = tuple((e.layer, e.head, e.rows, float(np.sqrt(e.error / e.norm))) for e in heads)
        group = HEADS // C.llama_model_n_head_kv(model.ptr)
        groups = [heads[i : i + group] for i in range(0, len(heads), group)]
        shared = tuple(
            float(np.sqrt(sum(e.error for e in some) / sum(e.norm for e in some))) for some in groups
        )
        keys = _native.stats(context.ptr).keys_read
    return Ran(watched.of("kqv_out-0", HEADS * DIMS).reshape(-1, HEADS, DIMS), errors, shared, keys)


def relative(got: Rows, want: Rows) -> float:
    return float(np.sqrt(((got - want) ** 2).sum() / (want**2).sum()))


@pytest.mark.parametrize("step", [16, 32, 64])
@pytest.mark.parametrize("base", [WINDOW, TOPK])
def test_what_is_left_out_of_a_check_is_added_to_the_queries_after_it(
    model: Model, base: str, step: int
) -> None:
    exact, sparse = ran(model, "exact").rows, ran(model, base).rows
    corrected = ran(model, f"{base}; delta={step}").rows
    p = np.arange(N)
    check = p // step * step
    full = check < 104 if base == WINDOW else np.abs(sparse[check] - exact[check]).max(axis=(1, 2)) == 0
    expected = np.where(full[:, None, None], sparse, sparse + exact[check] - sparse[check])
    assert np.abs(corrected - expected).max() < 1e-5
    assert np.abs(corrected - sparse).max() > 0.1


def test_a_check_alone_gives_its_query_the_exact_result(model: Model) -> None:
    exact, sparse = ran(model, "exact").rows, ran(model, WINDOW).rows
    checked = ran(model, f"{WINDOW}; check=32").rows
    at = (np.arange(N) % 32 == 0) & (np.arange(N) >= 104)
    assert np.abs(checked - np.where(at[:, None, None], exact, sparse)).max() < 1e-6


def test_the_meter_has_the_error_of_each_head(model: Model) -> None:
    exact, sparse = ran(model, "exact").rows, ran(model, WINDOW).rows
    errors = ran(model, f"{WINDOW}; check=16").errors
    assert [(layer, head) for layer, head, *_ in errors] == [
        (i, h) for i in range(LAYERS) for h in range(HEADS)
    ]
    at = np.arange(112, N, 16)
    for layer, head, rows, error in errors:
        assert rows == len(at)
        if layer == 0:
            assert error == pytest.approx(relative(sparse[at, head], exact[at, head]), rel=1e-3, abs=1e-6)


def test_the_measured_error_predicts_the_true_one(model: Model) -> None:
    measured, true = [], []
    for kind in ("random", "repeated", "README.md", "Makefile"):
        for base in (WINDOW, TOPK, "sinks(4)+window(300)"):
            exact, sparse = ran(model, "exact", kind=kind).rows, ran(model, base, kind=kind).rows
            for layer, head, _, error in ran(model, f"{base}; check=16", kind=kind).errors:
                if layer == 0:
                    measured.append(error)
                    true.append(relative(sparse[320:, head], exact[320:, head]))
    assert np.corrcoef(measured, true)[0, 1] >= 0.9


@pytest.mark.parametrize("kind", ["random", "repeated", "README.md", "Makefile"])
@pytest.mark.parametrize("error", [0.05, 0.01])
def test_the_error_of_a_plan_holds(model: Model, kind: str, error: float) -> None:
    exact, wide = ran(model, "exact", kind=kind), ran(model, f"{TOPK}; error={error}", kind=kind)
    assert relative(wide.rows, exact.rows) <= 1.5 * error
    assert len(wide.shared) > LAYERS and max(wide.shared) <= 1.01 * error


def test_a_smaller_error_reads_more_keys(model: Model) -> None:
    keys = [ran(model, f"{TOPK}; {end}").keys for end in ("check=16", "error=0.05", "error=0.005")]
    assert keys[0] < keys[1] < keys[2]


@pytest.mark.parametrize("plan", [f"{WINDOW}; delta=16", f"{TOPK}; error=0.02"])
def test_bits_do_not_depend_on_how_a_prompt_is_cut(model: Model, plan: str) -> None:
    first = ran(model, plan).rows
    for ubatch in (64, 192):
        assert np.array_equal(ran(model, plan, ubatch).rows, first)


class Stepped(OpCase):
    """A case whose last tokens are `step` apart, as checks are."""

    step = 16

    def batch(self) -> Array:
        one = self.layouts[0]
        n = len(one.q_pos)
        groups = [(0, 0, 0, n, int(one.q_pos[0]))]
        slots = [(one.stream, 0, len(one.runs()))]
        return _native.c_batch(self.plan, self.rope, slots, groups, one.runs(), step=self.step)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [1, 2, 9])
def test_positions_of_a_group_may_be_apart(isa: str, n: int) -> None:
    """Queries at every 16th position have the results that they have one by one, in the same wide tiles."""
    assert _native.lib.plong_cpu_isa_force(isa.encode())
    case = Case("checks/apart", seqs=(Seq(600, n),), kv_type="f16", rope="dca+yarn")
    op = Stepped(case)
    one = op.layouts[0]
    last = int(one.q_pos[-1])
    pos = last - 16 * np.arange(n)[::-1]
    op.layouts = [one._replace(q_pos=pos)]
    op.q = op._store(op.raw.q[:n], pos).astype(np.float32)
    got = op.run()
    expected = op.expected()
    naive = np.abs(op.expected({"amx": "bf16", "avx512bf16": "bf16"}.get(isa, "f32")) - expected).max()
    assert np.abs(got - expected).max() <= 3 * naive + 2e-6
    assert _native.lib.plong_cpu_isa_force(b"")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("window(9); delta=63", "delta=63 is not one of 16, 32, 64"),
        ("window(9); check=16, delta=16", "delta= checks the plan too"),
        ("window(9); error=0.1", "give it topk"),
        ("window(9)+topk(3); error=1.5", "not from 0 to 1"),
        ("window(9)+topk(3); error=x", "is not a number"),
    ],
)
def test_wrong_checks_are_refused(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        AttentionPlan.parse(text)


def test_adaptive_is_a_plan_whose_options_can_be_changed() -> None:
    plan = AttentionPlan.parse("adaptive")
    assert (plan.error, plan.checked, plan.dense_layers, plan.prefill.dense_below) == (0.1, 16, 2, 8192)
    other = AttentionPlan.parse("adaptive; error=0.02, dense_below=0, check=64")
    assert (other.error, other.checked, other.dense_layers, other.tail.dense_below) == (0.02, 64, 2, 0)
    assert AttentionPlan.parse(str(plan)) == plan
    assert choose_plan("auto; error=0.02", 4096, None)[0] == AttentionPlan.parse("adaptive; error=0.02")
    assert choose_plan("auto; dense_layers=1", 4096, None)[0] == AttentionPlan.parse("exact; dense_layers=1")


@pytest.mark.parametrize(
    "text", ["window(9); check=16", "window(9); delta=64", "window(9)+topk(3); check=16, error=0.02"]
)
def test_checks_read_back(text: str) -> None:
    plan = AttentionPlan.parse(text)
    assert str(plan) == text and AttentionPlan.parse(str(plan)) == plan
    assert plan.page == 64 and "also reads every key" in plan.explain()
    assert 0 < AttentionPlan.parse(text.split(";")[0]).share(5000) < plan.share(5000) < 1


def test_the_engine_reports_the_error() -> None:
    for plan, checked in ((f"{WINDOW}; check=16", True), (WINDOW, False)):
        with Engine(EngineConfig(DEMO, 1024, attention=plan)) as engine:
            usage = answer(engine.submit(Request(prose(engine, 600, 1), 4, GREEDY))).usage
            assert (usage.attention_error is not None) == checked
            assert (engine.stats().attention_error > 0.001) == checked


def test_a_model_reports_the_errors_of_its_heads() -> None:
    plan = f"{WINDOW}; check=16"
    with closing(LongLlama(model_path=str(DEMO), n_ctx=1024, attention=plan, verbose=False)) as llm:
        llm.eval(list(range(300, 900)))
        stats, meter = llm.attention_stats(), llm.attention_errors()
        assert stats["error"] == meter.error > 0.001
        assert stats["checked_rows"] == meter.rows == sum(head.rows for head in meter.heads)
        assert set(meter.layers()) == set(range(LAYERS))
        llm.attention_stats(reset=True)
        assert llm.attention_errors().heads == () and llm.attention_stats()["error"] == 0
