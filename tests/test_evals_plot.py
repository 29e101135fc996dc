"""Plots of what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyllama_long.evals import EvalError, plot


def test_what_was_measured_is_drawn(tmp_path: Path) -> None:
    row = {"plan": "exact", "samples": 2}
    rows: list[dict[str, Any]] = [
        {**row, "rope": "native", "length": 512, "accuracy": 1.0, "perplexity": 20.0},
        {**row, "rope": "native", "length": 1024, "accuracy": 0.0, "perplexity": 900.0},
        {**row, "rope": "yarn", "length": 1024, "accuracy": None, "error": "no"},
    ]
    for name in ("needle", "perplexity"):
        plot.write_plot(tmp_path / f"{name}.png", name, rows, 512)
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(EvalError, match=r"x\.svg does not end in \.png"):
        plot.check_plot(Path("x.svg"))
