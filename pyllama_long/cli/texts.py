"""Texts of files, arguments and terminals."""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyllama_long.cli.command_error import CommandError


def read_text(path: Path) -> str:
    """A text file, or stdin for `-`; CommandError when it cannot be read or is not text."""
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror or error}") from None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # PowerShell's encoding
        return data.decode("utf-16", errors="replace")
    if b"\0" in data:
        raise CommandError(f"{path} is not a text file")
    return data.decode("utf-8-sig", errors="replace")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """For code that writes a file; raises CommandError if that fails."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror or error}") from None


def plain(argument: str) -> str:
    """Text of a command line; bytes that are not UTF-8 become the replacement character."""
    return re.sub("[\ud800-\udfff]", "\ufffd", argument)


def clean(text: str) -> str:
    """Text of a model without control characters, which a terminal would obey."""
    return "".join(c for c in text if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f"))


def size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.3g} {unit}" if unit != "B" else f"{n_bytes:.0f} B"
        n_bytes /= 1024
    return f"{n_bytes:.3g} TiB"
