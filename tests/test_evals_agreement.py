"""How far the predictions under a plan are from those of exact attention."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from llama_cpp import Llama

from pyllama_long import LongLlama, filler
from pyllama_long.evals import EvalError
from pyllama_long.evals.agreement import Agreement, Logits, divergences
from pyllama_long.evals.measure import Cell

EXACT, NARROW = (Cell("auto", plan, 400, "agreement") for plan in ("exact", "window(16)"))


@pytest.fixture(scope="module")
def narrow(demo_model: str) -> Iterator[LongLlama]:
    model = LongLlama(demo_model, n_ctx=512, attention=NARROW.plan, rope="native", precision="f32")
    yield model
    model.close()


@contextmanager
def agreement() -> Iterator[Agreement]:
    with closing(Agreement(" ".join(filler.sentences()), (400,), windows=2, last=50)) as task:
        yield task


def test_the_divergence_of_two_distributions() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (2, 4, 30)).astype(np.float32)
    p, q = (np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(1, keepdims=True) for x in logits)
    assert divergences(*logits) == pytest.approx((p * np.log(p / q)).sum(axis=1))
    assert divergences(logits[0], logits[0] + 100) == pytest.approx(0, abs=1e-5)
    logits[:, :, 3] = -np.inf  # a token that the model cannot say
    assert np.isfinite(divergences(*logits)).all()


def test_a_plan_is_compared_with_exact(llm: LongLlama, upstream: Llama, narrow: LongLlama) -> None:
    with agreement() as task:
        compare(task, llm, upstream, narrow)


def compare(task: Agreement, llm: LongLlama, upstream: Llama, narrow: LongLlama) -> None:
    same = [task.unit(llm, EXACT, i) for i in range(2)]
    [row] = task.rows(same)
    assert (row["kl"], row["same"], row["nats_more"]) == (0.0, 1.0, 0.0)
    found = [task.unit(narrow, NARROW, i) for i in range(2)]
    [row] = task.rows(found)
    assert row["samples"] == 2 and row["kl"] > 0.01 and row["same"] < 1 and row["kl_error"] > 0
    rows = []
    for model in (upstream, None):
        ids = task.window(llm, 400, 1)
        if model is not None:
            model.reset()  # type: ignore[no-untyped-call]
            model.eval(ids.tolist())
            rows.append(np.array(model.scores[349:399], np.float32))
        else:
            narrow.reset()
            narrow.eval(ids[:349].tolist())
            narrow.sequence.extend(ids[349:399], 50)
            rows.append(narrow.sequence.rows(50).copy())
    assert found[1]["kl"] == pytest.approx(divergences(*rows).mean(), rel=0.02)
    assert found[1]["same"] == pytest.approx(np.mean(rows[0].argmax(1) == rows[1].argmax(1)), abs=0.03)
    assert found[1]["exact_nats"] == pytest.approx(same[1]["nats"], rel=1e-6)
    assert row["nats_more"] == pytest.approx(row["nats"] - np.mean([unit["nats"] for unit in same]), rel=1e-6)


def test_a_run_that_goes_on_reads_exact_again(demo_model: str, llm: LongLlama, narrow: LongLlama) -> None:
    opened = []

    def open_exact(cell: Cell) -> LongLlama:
        opened.append(cell)
        return LongLlama(demo_model, n_ctx=512, n_batch=64, attention="exact", rope="native", precision="f32")

    with agreement() as whole, agreement() as again:
        for i in range(2):
            whole.unit(llm, EXACT, i)
        again.open_exact = open_exact
        for i in (1, 0):
            assert again.unit(narrow, NARROW, i) == whole.unit(narrow, NARROW, i)
    assert opened == [NARROW]


def test_logits_that_do_not_fit_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full").open("r+b", 0)  # noqa: SIM115  closed by Logits
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda buffering: full)
    logits = Logits(4, 10)
    with pytest.raises(EvalError, match=r"cannot be kept in .* lower --windows or --last"):
        logits.put(0, 0, np.zeros((4, 10), np.float32))
    logits.close()
