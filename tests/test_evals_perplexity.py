"""Perplexity is that of upstream, and of the same tokens at every length."""

from __future__ import annotations

import numpy as np
import pytest
from llama_cpp import Llama

from pyllama_long import LongLlama, filler
from pyllama_long.evals import EvalError
from pyllama_long.evals.measure import Cell
from pyllama_long.evals.perplexity import Perplexity, score_end


def test_perplexity_is_that_of_upstream(llm: LongLlama, upstream: Llama) -> None:
    windows = Perplexity(" ".join(filler.sentences()), (200, 400), windows=2, last=100)
    cell = Cell("auto", "exact", 400, "perplexity")
    assert windows.count(llm, 400) == 2
    [row] = windows.rows([windows.unit(llm, cell, i) for i in range(2)])
    assert row["samples"] == 2 and row["depth"] is row["accuracy"] is None
    logprobs = []
    for i in range(2):
        ids = windows.window(llm, 400, i)
        assert len(ids) == 400 and ids[0] == llm.token_bos()
        upstream.reset()  # type: ignore[no-untyped-call]
        upstream.eval(ids.tolist())
        logits = np.asarray(upstream.scores[:400], np.float64)
        for place in range(300, 400):
            row_before = logits[place - 1]
            logprobs.append(row_before[ids[place]] - np.logaddexp.reduce(row_before))
    assert row["perplexity"] == pytest.approx(np.exp(-np.mean(logprobs)), rel=2e-3)
    assert 2 < row["perplexity"] < 1000
    halves = [-np.mean(half) for half in (logprobs[:100], logprobs[100:])]
    assert row["nats_error"] == pytest.approx(12.706 * abs(halves[0] - halves[1]) / 2, rel=1e-2)


def test_windows_of_all_lengths_end_at_the_same_places(llm: LongLlama) -> None:
    windows = Perplexity(" ".join(filler.sentences()), (200, 400, 10**6), last=100, seed=3)
    ends = [windows.window(llm, 400, i)[-199:].tolist() for i in range(5)]
    assert ends == [windows.window(llm, 200, i)[1:].tolist() for i in range(5)]
    assert len({tuple(end) for end in ends}) == 5
    with pytest.raises(EvalError, match="tokens only"):
        windows.window(llm, 10**6, 0)
    with pytest.raises(EvalError, match="too few to predict the last 100"):
        windows.count(llm, 101)


def test_what_is_scored_is_the_tail_of_a_plan(demo_model: str) -> None:
    from pyllama_long import LongLlama

    found = {}
    for plan in ("exact", "prefill: sinks(4)+window(64) | tail: exact", "sinks(4)+window(64)"):
        model = LongLlama(demo_model, n_ctx=512, attention=plan, precision="f32")
        ids = Perplexity(" ".join(filler.sentences()), (512,), last=100).window(model, 512, 0)
        found[plan] = score_end(model, ids, 100)
        assert model.n_tokens == 511
        model.close()
    assert len({round(value, 3) for value in found.values()}) == 3
