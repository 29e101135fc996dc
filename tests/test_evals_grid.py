"""Lengths and policies of a grid, as they are written."""

from __future__ import annotations

import pytest

from pyllama_long.evals import EvalError, grid
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
