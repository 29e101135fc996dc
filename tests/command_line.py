"""Runs of the program, in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pyllama_long import cli

ENOUGH = ("--ctx", "1024", "--temp", "0")


def program(
    *arguments: str, stdin: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyllama_long", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        env={**os.environ, "PYTHONUTF8": "1", **(env or {})},
    )


def failed(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> str:
    """Runs a command that must fail, and returns its one line."""
    assert cli.run(arguments) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("pyllama-long: ") and printed.err.count("\n") == 1
    return printed.err
