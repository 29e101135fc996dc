"""Old turns of conversations that outgrew the context, to be searched: SQLite's full-text index, ranked by BM25."""

from __future__ import annotations

import hashlib
import re
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

_MAX_ROWS = 200_000
_MAX_BYTES = 256 << 20  # of all texts together
_MAX_WORDS = 64
_WORD = re.compile(r"\w+")
_SCHEMA = """
CREATE VIRTUAL TABLE IF NOT EXISTS turns USING fts5(
    text, role UNINDEXED, conversation UNINDEXED, place UNINDEXED, tokenize='unicode61');
CREATE TABLE IF NOT EXISTS known (conversation TEXT, digest TEXT, PRIMARY KEY (conversation, digest));
"""


class Store:
    """path: a file; None: in memory. most_bytes: of texts that are kept. Any thread may use it."""

    def __init__(self, path: Path | None = None, most_bytes: int = _MAX_BYTES) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(str(path) if path else ":memory:", check_same_thread=False)
        self._db.executescript(_SCHEMA)
        self._most_bytes = most_bytes
        (found,) = self._db.execute("SELECT sum(length(CAST(text AS BLOB))) FROM turns").fetchone()
        self.n_bytes = int(found or 0)

    def search(self, salt: str, old: Sequence[tuple[str, str]], question: str, most: int = 8) -> list[str]:
        """Adds (role, text) messages that it does not know yet, and returns the texts of those that have most in
        common with the question, best first; those of the given messages only."""
        if not old:
            return []
        # A conversation is known by its beginning, which later requests of it share.
        name = hashlib.sha256(f"{salt}\0{old[0][0]}\0{old[0][1]}".encode()).hexdigest()
        digests = [hashlib.sha256(f"{role}\0{text}".encode()).hexdigest() for role, text in old]
        words = list(dict.fromkeys(_WORD.findall(question.lower())))[:_MAX_WORDS]
        with self._lock, self._db:
            for (role, text), digest in zip(old, digests, strict=True):
                added = self._db.execute("INSERT OR IGNORE INTO known VALUES (?, ?)", (name, digest))
                if added.rowcount:
                    row = (text, role, name, digest)
                    self.n_bytes += len(text.encode())
                    self._db.execute(
                        "INSERT INTO turns (text, role, conversation, place) VALUES (?, ?, ?, ?)", row
                    )
            self._trim()
            if not words:
                return []
            query = " OR ".join(f'"{word}"' for word in words)
            rows = self._db.execute(
                "SELECT role, text, place FROM turns WHERE turns MATCH ? AND conversation = ? "
                "ORDER BY bm25(turns) LIMIT ?",
                (query, name, 4 * most),
            ).fetchall()
        wanted = set(digests)
        return [f"{role}: {text}" for role, text, place in rows if place in wanted][:most]

    def _trim(self) -> None:
        """Forgets the oldest turns beyond the limits."""
        oldest_first = self._db.execute("SELECT rowid, length(CAST(text AS BLOB)) FROM turns ORDER BY rowid")
        last, left = None, self.n_bytes
        while left > self._most_bytes and (row := oldest_first.fetchone()) is not None:
            last, left = row[0], left - row[1]
        oldest_first.close()
        if last is not None:
            places = "SELECT conversation, place FROM turns WHERE rowid <= ?"
            self._db.execute(f"DELETE FROM known WHERE (conversation, digest) IN ({places})", (last,))
            self._db.execute("DELETE FROM turns WHERE rowid <= ?", (last,))
            self.n_bytes = left
        (n,) = self._db.execute("SELECT count(*) FROM known").fetchone()
        if n > _MAX_ROWS:
            oldest = "SELECT rowid FROM turns ORDER BY rowid LIMIT ?"
            places = f"SELECT conversation, place FROM turns WHERE rowid IN ({oldest})"
            self._db.execute(
                f"DELETE FROM known WHERE (conversation, digest) IN ({places})", (n - _MAX_ROWS,)
            )
            self._db.execute(f"DELETE FROM turns WHERE rowid IN ({oldest})", (n - _MAX_ROWS,))
            (found,) = self._db.execute("SELECT sum(length(CAST(text AS BLOB))) FROM turns").fetchone()
            self.n_bytes = int(found or 0)

    def close(self) -> None:
        with self._lock:
            self._db.close()
