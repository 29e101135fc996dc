"""`plan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyllama_long import cli


def test_plan_as_json_and_drawing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    png = tmp_path / "plan.png"
    options = ["--length", "2048", "--png", str(png)]
    assert cli.run(["plan", "sinks(4)+window(256)", "--json", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["plan"] == "sinks(4)+window(256)"
    assert report["longest_path"] == 9  # sinks do not look back
    assert 0.22 < report["shares"]["2048"] < 0.26
    assert png.read_bytes().startswith(b"\x89PNG")
    assert cli.run(["plan", "window(256)", "--length", "2048"]) == 0
    shown = capsys.readouterr().out
    assert "█" in shown and "longest path at 2,048: 9 layers" in shown
