"""Old turns of conversations that outgrew the context, searchable with SQLite's full-text index, ranked by BM25."""

from __future__ import annotations

import hashlib
import logging
import re
import sqlite3
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path

from .errors import ApiError

_MAX_ROWS = 200_000
_MAX_WORDS = 64
_WORD = re.compile(r"\w+")
_SCHEMA = """
CREATE VIRTUAL TABLE IF NOT EXISTS turns USING fts5(
    text, role UNINDEXED, conversation UNINDEXED, place UNINDEXED, tokenize='unicode61');
CREATE TABLE IF NOT EXISTS known (conversation TEXT, digest TEXT, PRIMARY KEY (conversation, digest));
"""
_PASSING = re.compile(
    "locked|busy|readonly|read-only|unable to open|full|I/O|access|interrupt|no such module"
)
logger = logging.getLogger("pyllama_long.server")


class Store:
    """path: a file, which is renamed if it is damaged; None: in memory. most_bytes: of texts that are kept; wait_s:
    for other programs that use the file. For any thread."""

    def __init__(self, path: Path | None = None, most_bytes: int = 256 << 20, wait_s: float = 5.0) -> None:
        self._lock, self._path, self._wait_s = threading.Lock(), path, wait_s
        self._most_bytes, self._closed = most_bytes, False
        self.n_bytes = 0
        if path is not None and path.exists() and not path.is_file():
            self._set_aside("no plain file")
        try:
            self._open()
        except sqlite3.Error as error:
            self._begin_anew(error)

    def _open(self) -> None:
        name = str(self._path) if self._path else ":memory:"
        self._db = sqlite3.connect(name, self._wait_s, check_same_thread=False)
        try:
            self._db.executescript(_SCHEMA)
            (found,) = self._db.execute("SELECT sum(length(CAST(text AS BLOB))) FROM turns").fetchone()
        except BaseException:
            self._db.close()
            raise
        self.n_bytes = int(found or 0)

    def _begin_anew(self, error: sqlite3.Error) -> None:
        """Opens a new file in place of a damaged one. Raises the error if it has another reason."""
        # Python 3.10 does not have SQLite's codes, so errors caused by other programs or the disk are recognized by
        # their text.
        if self._path is None or not self._path.exists() or _PASSING.search(str(error)):
            raise error
        self._db.close()
        self._set_aside(str(error))
        self._open()

    def _set_aside(self, why: str) -> None:
        assert self._path is not None
        aside = self._path.with_name(f"{self._path.name}.damaged-{uuid.uuid4().hex[:8]}")
        self._path.rename(aside)
        # they belong to the old file, and a new one must not find them
        for end in ("-journal", "-wal", "-shm"):
            self._path.with_name(self._path.name + end).unlink(missing_ok=True)
        logger.warning(
            "old turns are forgotten, %s cannot be used (%s): it is kept as %s, delete it when you like",
            self._path,
            why,
            aside.name,
        )

    def search(self, salt: str, old: Sequence[tuple[str, str]], question: str, most: int = 8) -> list[str]:
        """Adds those of the (role, text) messages that are new, and returns the texts of the given messages that have
        most in common with the question, best first. Raises ApiError after `close`."""
        if not old:
            return []
        with self._lock:
            if self._closed:
                raise ApiError(503, "The server is shutting down.", code="shutting_down", retry_after=5)
            try:
                return self._search(salt, old, question, most)
            except sqlite3.DatabaseError as error:
                self._begin_anew(error)
                return self._search(salt, old, question, most)

    def _search(self, salt: str, old: Sequence[tuple[str, str]], question: str, most: int) -> list[str]:
        # A conversation is identified by its beginning, which its later requests share.
        name = hashlib.sha256(f"{salt}\0{old[0][0]}\0{old[0][1]}".encode()).hexdigest()
        digests = [hashlib.sha256(f"{role}\0{text}".encode()).hexdigest() for role, text in old]
        words = list(dict.fromkeys(_WORD.findall(question.lower())))[:_MAX_WORDS]
        with self._db:
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
            self._closed = True
            self._db.close()
