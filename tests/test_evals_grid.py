"""Lengths and policies of a grid, as they are written."""

from __future__ import annotations

import pytest
from eval_tasks import task

from pyllama_long.evals import EvalError, grid
from pyllama_long.evals.journal import Journal
from pyllama_long.evals.retrieval import Retrieval
from pyllama_long.evals.statistics import mean_of_groups
from pyllama_long.rope import RopeError


def test_lengths_in_tokens_and_in_times_the_trained_length() -> None:
    assert grid.parse_lengths("4x, 1x,512,0.5x,700,2k,1.5K", 512) == (256, 512, 700, 1536, 2048)
    for text, n_train, message in (
        ("1x", 0, "in tokens"),
        ("0", 512, "is not from 1"),
        ("4q", 512, "no length"),
    ):
        with pytest.raises(EvalError, match=message):
            grid.parse_lengths(text, n_train)


def test_all_policies_are_those_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    known = grid.policies(["all"], 512, [512, 2048])
    assert {"native", "yarn", "dca+yarn", "rerope+logn"} <= set(known) <= set(grid.POLICIES)
    monkeypatch.setattr(grid, "POLICIES", ("native", "spiral"))
    assert grid.policies(["yarn", "all", "native"], 512, [512]) == ("yarn", "native")
    with pytest.raises(RopeError, match="spiral"):
        grid.policies(["spiral"], 512, [512])


def test_differences_are_of_questions_and_their_errors_of_documents() -> None:
    journal, plans = Journal({}), ("exact", "skim")
    cells = grid.cells(["auto"], plans, [512])
    scores = {"exact": [[1, 1, 1], [1, 0, 1]], "skim": [[0, 0, 0], [1, 0, 1]]}
    for cell in cells:
        for i, document in enumerate(scores[cell.plan]):
            journal.add(
                cell, {"unit": i, "found": {"answers": [{"score": s, "nats": 2.0 * s} for s in document]}}
            )
    rows = [
        {"task": c.task, "rope": c.rope, "plan": c.plan, "length": c.length, "documents": 2} for c in cells
    ]
    grid.compare(rows, {"needle": Retrieval(task())}, journal)
    assert "difference" not in rows[0]
    mean, error = mean_of_groups([[-1, -1, -1], [0, 0, 0]])
    assert mean == -0.5 and error is not None and error > 5  # two documents say little
    assert rows[1]["difference"] == {
        "rope": "auto",
        "plan": "exact",
        "accuracy": mean,
        "accuracy_error": error,
        "nats": 2 * mean,
        "nats_error": pytest.approx(2 * error),
    }
