"""The embedded models."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from pyllama_long.cli.command_error import CommandError

EMBEDDED = ("demo", "longnet", "longnet-dense")


def embedded_model(name: str = "demo") -> Path:
    """The file of one of EMBEDDED. Raises CommandError when it is missing."""
    path = Path(str(resources.files("pyllama_long") / "data" / f"{name}.gguf"))
    if not path.is_file():
        raise CommandError("the embedded model is missing from this installation: install pyllama-long again")
    return path
