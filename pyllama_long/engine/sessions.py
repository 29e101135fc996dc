"""Saved sequences with names. Each is a file of its own, whole or absent."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from pyllama_long.arrays import IntArray, as_ids
from pyllama_long.checkpoints import Bytes
from pyllama_long.engine import prefix, seqfile
from pyllama_long.engine.context import Context
from pyllama_long.engine.fingerprint import salt_hash
from pyllama_long.engine.handle import Handle
from pyllama_long.engine.loop import Loop
from pyllama_long.engine.pool import LiveSequence, Source
from pyllama_long.engine.seqfile import Damaged, Header
from pyllama_long.engine.store import Store, StoredSequence, logger

# `list` is a method below.
Hashes: TypeAlias = list[bytes]
_SUFFIX = ".session"
_MAX_NAME = 256


@dataclass(frozen=True)
class SessionInfo:
    """created: seconds since 1970; n_bytes: size of the file. usable: whether it was made with this model and these
    settings."""

    name: str
    n_tokens: int
    n_bytes: int
    created: float
    usable: bool


Infos: TypeAlias = list[SessionInfo]


class Sessions:
    """For any thread. A session belongs to the salt that it was saved under and is invisible under others."""

    def __init__(self, loop: Loop, context: Context, store: Store, model: str, folder: Path | None) -> None:
        self._loop, self._context, self._store, self._model = loop, context, store, model
        self._folder = None if folder is None else folder / "sessions"
        self._saving = threading.Lock()
        try:
            if self._folder is not None and self._folder.is_dir():
                seqfile.clean(self._folder)
                store.count_sessions(self._size())
        except OSError as error:
            logger.warning("sessions cannot be read: %s", error)

    def save(self, what: Handle | Sequence[int], name: str, salt: str = "") -> SessionInfo:
        """Writes what is cached of a request's text, or of tokens; if it has left the context, also everything that
        follows in the stored copy. A handle brings its own salt. Raises ValueError when nothing of it is cached or
        the name cannot be used, and OSError."""
        if isinstance(what, Handle):
            salt, tokens = what.salt, list(what.tokens)
        else:
            tokens = list(what)
        path, ids, hashed = self._path(name, salt), as_ids(tokens), salt_hash(salt)
        hashes = prefix.chain(ids, [], hashed)
        held = self._loop.call(lambda: self._state(ids, hashes, hashed))
        text, factor, data = held if held is not None else self._stored(ids, hashes, hashed)
        header = Header(self._model, hashed, factor, len(text), len(data), time.time(), name)
        with self._saving:  # one at a time, so that their sizes are counted
            n = len(data) + 4 * len(text) + seqfile.HEAD
            self._store.make_room(n, self._size(path))
            size = seqfile.write(path, header, text, data)
        return SessionInfo(name, len(text), size, header.created, True)

    def restore(self, name: str, salt: str = "") -> SessionInfo:
        """Lets requests that begin with the session's text reuse it from now on. Raises KeyError, and ValueError for
        a file that is damaged or was made with other settings."""
        path = self._path(name, salt)
        try:
            header, ids = seqfile.peek(path)
            if header.n_tokens > self._context.n_ctx():
                raise ValueError(
                    f"the session {name!r} has {header.n_tokens} tokens, more than the context of "
                    f"{self._context.n_ctx()}"
                )
            header, ids, _ = seqfile.read(path)
        except FileNotFoundError:
            raise KeyError(name) from None
        except Damaged as error:
            raise ValueError(f"the session {name!r} cannot be used: {error}") from error
        if header.model != self._model or header.salt != salt_hash(salt) or header.partial:
            raise ValueError(
                f"the session {name!r} was saved under another model, attention plan, RoPE policy or KV type"
            )
        stored = Store.describe(header, ids.copy())
        stored.path, stored.size = path, path.stat().st_size
        if not self._store.covers(stored.text, stored.hashes, stored.salt, stored.factor):
            self._loop.call(lambda: self._store.adopt(stored))
        return SessionInfo(name, header.n_tokens, stored.size, header.created, True)

    def list(self, salt: str = "") -> Infos:
        """The sessions of this salt, by name."""
        if self._folder is None or not self._folder.is_dir():
            return []
        found = []
        for path in seqfile.listed(self._folder, _SUFFIX):
            try:
                header, _ = seqfile.peek(path)
                size = path.stat().st_size
            except (OSError, Damaged) as error:
                logger.warning("a session is not listed: %s", error)
                continue
            if header.salt == salt_hash(salt):
                usable = header.model == self._model
                found.append(SessionInfo(header.name, header.n_tokens, size, header.created, usable))
        return sorted(found, key=lambda info: info.name)

    def delete(self, name: str, salt: str = "") -> None:
        """Deletes a session. Raises KeyError when there is none."""
        with self._saving:
            try:
                self._path(name, salt).unlink()
            except FileNotFoundError:
                raise KeyError(name) from None
            self._store.count_sessions(self._size())

    def _size(self, besides: Path | None = None) -> int:
        """The size of all sessions but one, in bytes."""
        assert self._folder is not None
        total = 0
        for path in seqfile.listed(self._folder, _SUFFIX):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size if path != besides else 0
        return total

    def _path(self, name: str, salt: str) -> Path:
        if self._folder is None:
            raise ValueError("sessions need a folder: give cache_dir")
        if not 0 < len(name) <= _MAX_NAME or not name.isprintable():
            raise ValueError(f"a session's name has 1 to {_MAX_NAME} printable characters")
        self._folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(f"{salt_hash(salt)}/{name}".encode()).hexdigest()
        return self._folder / f"{digest[:40]}{_SUFFIX}"

    def _state(self, ids: IntArray, hashes: Hashes, salt: str) -> tuple[IntArray, float, Bytes] | None:
        """The contents of the cells that hold most of a text, unless a stored copy holds more. On the loop's
        thread."""
        pool = self._loop.batching.pool
        found = [pool.longest(ids, hashes, salt, factor, False) for factor in pool.index.factors(salt)]
        best = max(found, key=lambda source: source.n, default=Source())
        if not best.n or self._most_stored(ids, hashes, salt)[1] > best.n:
            return None
        if isinstance(best.entry, LiveSequence):
            factor, data = best.entry.factor, pool.snapshot(best)
        else:
            assert best.checkpoint is not None  # of a recurrent state, which is all that there is
            factor, data = best.checkpoint.factor, self._store.fetch(best.checkpoint).result()
        return None if data is None else (ids[: best.n].copy(), factor, data)

    def _most_stored(self, ids: IntArray, hashes: Hashes, salt: str) -> tuple[StoredSequence | None, int]:
        factors, store = set(self._store.index.factors(salt)), self._store
        if self._context.whole_only:  # a recurrent state can only be continued at its end
            found = [store.find_whole(ids, salt, factor, len(ids)) for factor in factors]
        else:
            found = [store.find(ids, hashes, salt, factor) for factor in factors]
        return max(found, key=lambda pair: pair[1], default=(None, 0))

    def _stored(self, ids: IntArray, hashes: Hashes, salt: str) -> tuple[IntArray, float, Bytes]:
        entry, _ = self._most_stored(ids, hashes, salt)
        data = None if entry is None else self._store.fetch(entry).result()
        if entry is None or data is None:
            raise ValueError("nothing of this text is cached: send it as a request first")
        return entry.text, entry.factor, data
