"""What an eval has measured, as JSON lines in a file, so that a stopped run goes on where it stood.

The first line holds the settings, each other line a unit of a cell. A line that was being written when the run was
stopped is dropped.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

from pyllama_long.evals import EvalError
from pyllama_long.evals.measure import Cell, Found

__all__ = ["Journal"]

_KIND = "pyllama-long eval"
_HEADER_BYTES = 1 << 20  # of the first line at most
_CELL = ("task", "rope", "plan", "length")
# Fields of a unit's line, and their types.
_FIELDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("task", "rope", "plan", "rope_used", "plan_used"), str),
    **dict.fromkeys(("length", "unit", "units", "asked"), int),
    **dict.fromkeys(("keys_read", "keys_visible", "seconds"), (int, float)),
    "found": dict,
}


class Journal:
    """Units by cell, those of the file included; without a file they are kept in memory alone.

    settings: whatever the units depend on, as JSON. Raises EvalError for a file with others, for one that is damaged,
    and for one that another run is writing.
    """

    def __init__(self, settings: dict[str, Any], path: Path | None = None) -> None:
        self._units: dict[Cell, dict[int, Found]] = {}
        self._file: IO[bytes] | None = None
        self.path = path
        self.resumed = 0  # units that were there at the beginning
        if path is None:
            return
        with ExitStack() as stack:
            if path.exists() and not path.is_file():
                raise EvalError(f"{path} cannot be used: it is not a file")
            try:
                self._file = stack.enter_context(path.open("a+b"))
                self._begin(path, settings)
            except OSError as error:
                raise EvalError(f"{path} cannot be used: {error.strerror or error}") from None
            stack.pop_all()

    def _begin(self, path: Path, settings: dict[str, Any]) -> None:
        """Locks the file and reads it, or writes its first line."""
        assert self._file is not None
        _lock(self._file, path)
        header = json.dumps({"kind": _KIND, "settings": settings}, sort_keys=True).encode() + b"\n"
        self._file.seek(0)
        data = self._file.readline(_HEADER_BYTES)
        if data.endswith(b"\n"):  # else it is no file of ours, however long
            data += self._file.read()
        end = data.rfind(b"\n") + 1
        if not end and header.startswith(data):
            self._file.truncate(0)
            self._write(header)
            return
        self._read(data[:end], settings)
        self._file.truncate(end)

    def units(self, cell: Cell) -> dict[int, Found]:
        """The lines of a cell by the number of their unit."""
        return self._units.setdefault(cell, {})

    def add(self, cell: Cell, line: Found) -> None:
        """Keeps a unit; line: as in the file, without the cell. Raises EvalError if the file cannot be written."""
        line = {**{key: getattr(cell, key) for key in _CELL}, **line}
        self.units(cell)[line["unit"]] = line
        if self._file is not None:
            try:
                self._write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            except OSError as error:
                raise EvalError(f"{self.path} cannot be written: {error.strerror or error}") from None

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # a line that could not be written, which `add` has said
                self._file.close()

    def _write(self, line: bytes) -> None:
        assert self._file is not None
        self._file.write(line)
        self._file.flush()

    def _read(self, data: bytes, settings: dict[str, Any]) -> None:
        first, *lines = data.split(b"\n")[:-1] or [b""]
        header = _object(first)
        if header is None or header.get("kind") != _KIND:
            raise EvalError(f"{self.path} was not written by `eval --resume`: name another file")
        kept = header.get("settings")
        if kept != json.loads(json.dumps(settings)):
            others = _different(kept if isinstance(kept, dict) else {}, settings)
            raise EvalError(
                f"{self.path} belongs to a run with other settings ({others}): repeat those, or name another file"
            )
        for number, text in enumerate(lines, 2):
            line = _object(text)
            if line is None or not all(isinstance(line.get(key), kind) for key, kind in _FIELDS.items()):
                raise EvalError(f"{self.path} is damaged: remove its line {number}, or name another file")
            cell = Cell(**{key: line[key] for key in _CELL})
            self.units(cell)[line["unit"]] = line
            self.resumed += 1


def _object(text: bytes) -> dict[str, Any] | None:
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
        if isinstance(found, dict):
            return found
    return None


def _different(kept: dict[str, Any], asked: dict[str, Any]) -> str:
    """The settings that differ, in words."""
    found = []
    for key in sorted({*kept, *asked}):
        if kept.get(key) != asked.get(key):
            found.append(f"{key} {_short(kept.get(key))}, now {_short(asked.get(key))}")
    return "; ".join(found)


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lock(file: IO[bytes], path: Path) -> None:
    """Raises EvalError if another process holds the file."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise EvalError(f"{path} is being written by another eval: name another file") from None
