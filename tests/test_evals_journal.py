"""The file of a run that can go on: what it keeps, and files that it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pyllama_long.evals import EvalError
from pyllama_long.evals.journal import Journal
from pyllama_long.evals.measure import Cell

CELL = Cell("auto", "exact", 512, "vt")
OTHER = Cell("native", "skim", 1024, "cwe")
LINE = {
    "units": 2,
    "asked": 20,
    "rope_used": "native",
    "plan_used": "exact",
    "keys_read": 1,
    "keys_visible": 2,
    "seconds": 0.5,
    "found": {"nats": 0.25},
}
SETTINGS = {"seed": 0, "model": {"name": "a.gguf", "digest": "x"}}


def written(path: Path) -> bytes:
    journal = Journal(SETTINGS, path)
    for unit in range(2):
        journal.add(CELL, {**LINE, "unit": unit})
    journal.add(OTHER, {**LINE, "unit": 0, "found": {"text": 'ä\n"\u2028'}})
    journal.close()
    return path.read_bytes()


def test_units_come_back(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    written(path)
    again = Journal(SETTINGS, path)
    assert again.resumed == 3 and set(again.units(CELL)) == {0, 1} and again.units(Cell("a", "b", 1)) == {}
    assert again.units(CELL)[1]["found"] == {"nats": 0.25}
    assert again.units(OTHER)[0]["found"] == {"text": 'ä\n"\u2028'}
    again.close()


def test_a_file_that_was_cut_anywhere_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    whole = written(path)
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    assert len(ends) == 4
    for at in (0, 1, 5, ends[0] - 1, ends[0], ends[0] + 1, ends[1] - 1, ends[2] + 40, len(whole) - 1):
        path.write_bytes(whole[:at])
        journal = Journal(SETTINGS, path)
        kept = sum(end <= at for end in ends[1:])
        assert journal.resumed == kept
        if not kept:
            journal.add(CELL, {**LINE, "unit": 0})
        journal.close()
        assert path.read_bytes() == whole[: ends[max(kept, 1)]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"Call me Ishmael.\n", "was not written by"),
        (b"Call me Ishmael", "was not written by"),
        (b"[1]\n", "was not written by"),
        (b'{"kind": "pyllama-long eval"}\n', "other settings"),
        (b"\xff\xfe\x00\n", "was not written by"),
        (b"[" * 100_000 + b"\n", "was not written by"),
    ],
)
def test_other_files_are_refused_and_left_as_they_are(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(data)
    with pytest.raises(EvalError, match=message):
        Journal(SETTINGS, path)
    assert path.read_bytes() == data


@pytest.mark.parametrize("change", ["{", "", "[]", "null", '{"unit": 0}', "found", "unit"])
def test_a_damaged_line_is_named(tmp_path: Path, change: str) -> None:
    path = tmp_path / "run.jsonl"
    lines = written(path).decode().split("\n")
    if change in ("found", "unit"):
        change = json.dumps({**json.loads(lines[2]), change: "x"})
    lines[2] = change
    path.write_text("\n".join(lines))
    with pytest.raises(EvalError, match="remove its line 3"):
        Journal(SETTINGS, path)
    assert path.read_text() == "\n".join(lines)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({**SETTINGS, "seed": 1}, "seed 0, now 1"),
        ({**SETTINGS, "kv_type": "q8_0"}, 'kv_type none, now "q8_0"'),
        ({"seed": 0, "model": None}, "model .*now none"),
    ],
)
def test_other_settings_are_named(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    path = tmp_path / "run.jsonl"
    written(path)
    with pytest.raises(EvalError, match=named):
        Journal(settings, path)


def test_one_run_at_a_time_and_folders_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    first = Journal(SETTINGS, path)
    with pytest.raises(EvalError, match="by another eval"):
        Journal(SETTINGS, path)
    first.close()
    Journal(SETTINGS, path).close()
    with pytest.raises(EvalError, match="cannot be used"):
        Journal(SETTINGS, tmp_path / "none" / "run.jsonl")
    for place in (tmp_path, Path("/dev/full")):
        with pytest.raises(EvalError, match="cannot be used: it is not a file"):
            Journal(SETTINGS, place)


def test_without_a_file_units_are_kept_in_memory() -> None:
    journal = Journal({})
    journal.add(CELL, {**LINE, "unit": 1})
    assert set(journal.units(CELL)) == {1}
    journal.close()
