"""Old turns, searchable: found again, bounded, and set aside where the file is damaged."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from pyllama_long import cli
from pyllama_long.server import logs
from pyllama_long.server.errors import ApiError
from pyllama_long.server.overflow_store import Store
from pyllama_long.server.settings import Settings
from pyllama_long.server.state import State


@pytest.mark.parametrize("damage", ["text", "cut", "pages", "schema", "folder"])
def test_damaged_old_turns_are_set_aside(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, old = tmp_path / "turns.sqlite", [("user", f"number{i} " + "x" * 900) for i in range(30)]
    store = Store(path)
    store.search("salt", old, "number29")
    store.close()
    raw = bytearray(path.read_bytes())
    if damage == "text":
        path.write_bytes(b"no database at all")
    elif damage == "cut":
        path.write_bytes(raw[: len(raw) // 3])
    elif damage == "pages":
        raw[4096:] = b"\xa5" * (len(raw) - 4096)
        path.write_bytes(raw)
    else:
        path.unlink()
        if damage == "folder":
            path.mkdir()
        else:
            with contextlib.closing(sqlite3.connect(path)) as db:
                db.execute("CREATE TABLE turns (other TEXT)")
    store = Store(path)
    assert store.search("salt", old, "number29")[0].startswith("user: number29")
    store.close()
    assert len(list(tmp_path.glob("turns.sqlite.damaged-*"))) == 1
    assert "it is kept as turns.sqlite.damaged-" in caplog.text
    again = Store(path)
    assert again.n_bytes > 0
    again.close()


def test_old_turns_of_a_server_that_ends_are_not_set_aside(tmp_path: Path) -> None:
    store = Store(tmp_path / "turns.sqlite")
    store.close()
    with pytest.raises(ApiError, match="shutting down"):
        store.search("salt", [("user", "a word")], "word")
    assert [path.name for path in tmp_path.iterdir()] == ["turns.sqlite"]


def test_old_turns_that_others_use_are_not_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "turns.sqlite"
    Store(path).close()
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            Store(path, wait_s=0.1)
    assert not list(tmp_path.glob("*damaged*"))


def test_old_turns_are_bounded_by_bytes(tmp_path: Path) -> None:
    store = Store(tmp_path / "turns.sqlite", most_bytes=10_000)
    old = [("user", f"number{i} " + "x" * 900) for i in range(30)]
    store.search("salt", old, "number29")
    assert store.search("salt", old[-1:], "number29") and 0 < store.n_bytes <= 10_000
    store.close()
    again = Store(tmp_path / "turns.sqlite", most_bytes=10_000)
    assert 0 < again.n_bytes <= 10_000
    again.close()


def test_how_much_of_old_turns_is_kept_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Settings] = []
    monkeypatch.setattr(logs, "install", lambda _: None)
    monkeypatch.setattr("pyllama_long.cli.serving.serve", lambda config, settings, *_: found.append(settings))
    assert cli.run(["serve", "--keep-turns", "1"]) == 0
    state = State(found[0], lambda _: None)  # type: ignore[arg-type, return-value]
    for i in range(40):
        state.store.search("salt", [("user", f"number{i} " + "x" * 50_000)], f"number{i}")
    assert 0 < state.store.n_bytes <= 1 << 20
    state.close()


def test_the_store_finds_words_and_keeps_conversations_apart() -> None:
    store = Store()
    old = [("user", "The fox lives in the wood."), ("user", "The ship lies in the harbour.")]
    assert store.search("a", old, "Where is the ship?")[0] == "user: The ship lies in the harbour."
    assert store.search("a", old, "Where is the ship?")[0] == "user: The ship lies in the harbour."
    assert store.search("b", [("user", "Nothing of it.")], "ship") == []
    assert store.search("a", old, '"; DROP TABLE turns; -- NEAR( *') == []
    assert store.search("a", old[:1], "ship") == []
    store.close()
