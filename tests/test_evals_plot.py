"""Plots of what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyllama_long.evals import EvalError, plot


def test_what_was_measured_is_drawn(tmp_path: Path) -> None:
    def total(accuracy: float) -> dict[str, Any]:
        return {"accuracy": accuracy, "interval": [0.2, 1.0], "nats": 0.5, "nats_error": None}

    row = {"plan": "exact", "samples": 2}
    agreement = {"kl": 0.1, "kl_error": 0.01, "same": 0.9, "same_error": None}
    needle: list[dict[str, Any]] = [
        {**row, "task": "needle", "rope": "native", "length": 512, "total": total(1.0)},
        {**row, "task": "needle", "rope": "native", "length": 1024, "total": total(0.0)},
        {**row, "task": "needle", "rope": "yarn", "length": 1024, "accuracy": None, "error": "no"},
    ]
    others: list[dict[str, Any]] = [
        {**row, "task": "perplexity", "rope": "native", "length": 512, "perplexity": 20.0},
        {**row, "task": "perplexity", "rope": "native", "length": 1024, "perplexity": 900.0},
        {**row, "task": "agreement", "rope": "native", "length": 512, **agreement},
    ]
    for name, rows in (("needle", needle), ("others", others), ("both", [*needle, *others])):
        plot.write_plot(tmp_path / f"{name}.png", rows, 512)
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(EvalError, match=r"x\.svg does not end in \.png"):
        plot.check_plot(Path("x.svg"))
