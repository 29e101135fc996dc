"""The model that a command opens."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import failed

from pyllama_long import cli
from pyllama_long.cli.model_options import ModelOptions
from pyllama_long.context_options import PRECISIONS


@pytest.mark.parametrize("command", [["inspect"], ["complete", "text", "-m"], ["chat", "-m"]])
def test_bad_model_files(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str]) -> None:
    whole = (Path(cli.__file__).parents[1] / "data" / "demo.gguf").read_bytes()
    files = {
        "empty.gguf": (b"", "is empty"),
        "random.gguf": (bytes(range(256)) * 40, "is not a GGUF file"),
        "cut.gguf": (whole[: len(whole) // 2], "is truncated"),
        "head.gguf": (whole[:5000], "is truncated"),
        "lying.gguf": (whole[:8] + b"\xff" * 7 + b"\x7f" + whole[16:], "announces"),
    }
    for name, (data, message) in files.items():
        (tmp_path / name).write_bytes(data)
        assert message in failed(capsys, [*command, str(tmp_path / name)], 1)
    assert "is a directory" in failed(capsys, [*command, str(tmp_path)], 1)
    assert "does not exist" in failed(capsys, [*command, str(tmp_path / "none.gguf")], 1)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precision_reaches_the_model(precision: str) -> None:
    llm = ModelOptions(precision=precision).open(512)
    assert llm.precision == precision
    llm.close()
