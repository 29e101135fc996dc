"""Texts of files, and texts for terminals."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import failed

from pyllama_long.cli.texts import clean, read_text


def test_files_that_cannot_be_read_or_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "cannot be read" in failed(capsys, ["complete", "-f", str(tmp_path / "none.txt")], 1)
    (tmp_path / "binary").write_bytes(b"a\0b")
    assert "not a text file" in failed(capsys, ["complete", "-f", str(tmp_path / "binary")], 1)
    (tmp_path / "blank").touch()
    assert "is empty" in failed(capsys, ["complete", "-f", str(tmp_path / "blank")], 1)
    png = str(tmp_path / "none" / "plan.png")
    assert "cannot be written" in failed(capsys, ["plan", "exact", "--length", "64", "--png", png], 1)
    assert "cannot be written" in failed(capsys, ["eval", "needle", "--plot", png], 1)
    for command in (["plan", "exact", "--png"], ["eval", "needle", "--plot"]):
        assert "writes PNG: a.txt does not end in .png" in failed(capsys, [*command, "a.txt"], 1)


def test_text_that_powershell_writes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Größe".encode("utf-16"))
    assert read_text(tmp_path / "a.txt") == "Größe"


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert clean("a\x1b[2Jb\r\x07\x9b1m\tc\nd") == "a[2Jb1m\tc\nd"
