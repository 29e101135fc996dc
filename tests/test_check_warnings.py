"""scripts/check_warnings.py turns a compiler's command into one that checks, and fails on a warning."""

from __future__ import annotations

import json
from pathlib import Path

import check_warnings
import pytest


def test_a_command_that_checks() -> None:
    command = (
        "cc -I/up/include -I/own -DX=1 -Wno-unused-function -O3 -MD -MT a.o -MF a.o.d -o a.o -c /own/a.c"
    )
    flags = ["cc", "-isystem", "/up/include", "-I/own", "-DX=1", "-Wno-unused-function", "-O3", "/own/a.c"]
    assert check_warnings.arguments(command, Path("/up")) == [*flags, *check_warnings.FLAGS]


@pytest.mark.parametrize(("body", "says"), [("int a;", "unused variable"), ("return;", "")])
def test_a_warning_is_an_error(tmp_path: Path, body: str, says: str) -> None:
    source = tmp_path / "a.c"
    source.write_text(f"void f(void);\nvoid f(void) {{ {body} }}\n")
    entry = {"command": f"cc -o a.o -c {source}", "directory": str(tmp_path), "file": str(source)}
    said = check_warnings.check(entry, tmp_path / "upstream")
    assert says in said and bool(said) == bool(says)


def test_no_build_no_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_warnings.main([str(tmp_path)]) == 2
    assert "make build" in capsys.readouterr().err
    (tmp_path / "compile_commands.json").write_text(json.dumps([]))
    assert check_warnings.main([str(tmp_path)]) == 1
