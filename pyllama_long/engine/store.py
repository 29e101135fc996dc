"""Sequences and checkpoints outside the context: in main memory up to a limit, then on disk up to another."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np

from pyllama_long.arrays import IntArray, common_prefix
from pyllama_long.checkpoints import Limits, spare
from pyllama_long.engine import prefix, seqfile
from pyllama_long.engine.seqfile import Bytes, Damaged, Header

T = TypeVar("T")
logger = logging.getLogger("pyllama_long.engine")
SUFFIX = ".seq"
_NAME = re.compile(rf"[0-9a-f]{{32}}{re.escape(SUFFIX)}")
_NO_LIMITS = Limits()


@dataclass(eq=False)
class StoredSequence:
    """A text with the contents of its cells: in `data`, in the file `path`, or for a moment in both."""

    text: IntArray
    hashes: list[bytes]
    salt: str  # hashed
    factor: float
    data: Bytes | None
    path: Path | None = None
    size: int = 0  # bytes of the file
    used_at: float = 0.0
    pinned: bool = False  # a session's file, which the store does not delete
    moving: bool = False  # being written to disk
    gone: bool = False
    partial: bool = False  # a checkpoint: what cannot go back, without the cells


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("a cached sequence cannot be deleted: %s", error)


class Store:
    """Only the engine's thread calls it; a thread of its own writes and reads the files. A damaged file is deleted, a
    full disk is logged: neither fails a request.
    """

    def __init__(
        self, model: str, ram: int, disk: int, folder: Path | None, limits: Limits = _NO_LIMITS
    ) -> None:
        """limits: of checkpoints, whose memory counts apart; on disk they count like texts."""
        self._model, self._ram, self._disk, self._folder = model, ram, disk, folder
        self._limits = limits
        self.index: prefix.Index[StoredSequence] = prefix.Index()
        self.checkpoints: prefix.Index[StoredSequence] = prefix.Index()
        self._lock = threading.RLock()  # guards the index, the sizes, and `data` and `path` of each text
        self._files: ThreadPoolExecutor | None = None
        self.ram_bytes = self.disk_bytes = self.spilled = self.restored = 0
        self.checkpoint_bytes = self.checkpoint_hits = 0
        self._session_bytes = 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._scan(folder)

    def _scan(self, folder: Path) -> None:
        """Reads the folder. Only files with names of our form count; all others belong to somebody else."""
        seqfile.clean(folder)
        found: list[StoredSequence] = []
        for path in seqfile.listed(folder, SUFFIX):
            if _NAME.fullmatch(path.name) is None:
                continue
            try:
                header, ids = seqfile.peek(path)
                stat = path.stat()
                if stat.st_size > self._disk:
                    raise Damaged(f"{path} has {stat.st_size} bytes, more than cache_disk")
            except Damaged as error:
                logger.warning("a cached sequence is deleted: %s", error)
                _delete(path)
                continue
            except OSError as error:
                logger.warning("a cached sequence is not used: %s", error)
                continue
            if header.model == self._model:
                stored = self.describe(header, ids)
                stored.path, stored.size, stored.used_at = path, stat.st_size, stat.st_mtime
                found.append(stored)
            else:
                self._foreign(path, stat.st_size)
        for stored in sorted(found, key=lambda s: s.used_at):
            self._table(stored).add(stored)
            self.disk_bytes += stored.size
        with self._lock:
            self._shrink_disk()

    def _foreign(self, path: Path, size: int) -> None:
        """Counts another model's file, which is the first to be deleted for room."""
        ids = np.empty(0, np.int32)
        self.index.add(StoredSequence(ids, [], f"\0{path.name}", 1.0, None, path, size))
        self.disk_bytes += size

    @staticmethod
    def describe(header: Header, ids: IntArray) -> StoredSequence:
        hashes = prefix.chain(ids, [], header.salt)
        return StoredSequence(ids, hashes, header.salt, header.factor, None, partial=header.partial)

    def __len__(self) -> int:
        return len(self.index)

    # ---- keeping -------------------------------------------------------------------------------------------

    @property
    def enabled(self) -> bool:
        return self._ram > 0 or self._disk > 0

    def has_room(self, n: int) -> bool:
        """Whether n more bytes fit into memory without dropping anything."""
        return self.ram_bytes + n <= self._ram

    @property
    def keeps_files(self) -> bool:
        return self._disk > 0

    def covers(self, ids: IntArray, hashes: list[bytes], salt: str, factor: float) -> bool:
        """Whether a text that begins with this one is there already."""
        with self._lock:
            return self.index.find(ids, hashes, salt, factor, 1)[1] == len(ids)

    def find(
        self,
        ids: IntArray,
        hashes: list[bytes],
        salt: str,
        factor: float,
        wanted: Callable[[StoredSequence, int], bool] = lambda stored, n: True,
    ) -> tuple[StoredSequence | None, int]:
        """Like `Index.find`, for texts that share at least one block."""
        with self._lock:
            return self.index.find(ids, hashes, salt, factor, 1, wanted)

    def find_whole(
        self, ids: IntArray, salt: str, factor: float, limit: int
    ) -> tuple[StoredSequence | None, int]:
        with self._lock:
            return self.index.find_whole(ids, salt, factor, limit)

    def put(self, stored: StoredSequence) -> None:
        """Adds a text with its data; older ones may be moved to disk or deleted for it."""
        stored.used_at = time.time()
        assert stored.data is not None
        with self._lock:
            while (shorter := self._shorter(stored)) is not None:
                self._forget(shorter)
            self.index.add(stored)
            self.ram_bytes += len(stored.data)
            self.spilled += 1
            self._shrink_ram(self._ram)

    def prefixes(self, ids: IntArray, hashes: list[bytes], salt: str, factor: float) -> list[StoredSequence]:
        """The checkpoints of places in a text, in order."""
        with self._lock:
            return self.checkpoints.prefixes(ids, hashes, salt, factor)

    def keep(self, stored: StoredSequence, others: Iterable[StoredSequence]) -> None:
        """Adds a checkpoint. others: those of the same text. Where there is no room, the oldest ones of other texts are
        moved to disk or deleted first, then those of this text that are missed least."""
        stored.used_at = time.time()
        assert stored.data is not None
        with self._lock:
            own = sorted([stored, *(s for s in others if not s.gone)], key=lambda s: len(s.text))
            self.checkpoints.add(stored)
            self.checkpoint_bytes += len(stored.data)
            self.touch(own)
            while len(own) > self._limits.most:
                self._forget(own.pop(spare([len(s.text) for s in own])))
            self._shrink_checkpoints(self._limits.n_bytes, own)

    @staticmethod
    def touch(checkpoints: Iterable[StoredSequence]) -> None:
        """Notes that a text with these checkpoints goes on."""
        now = time.time()
        for stored in checkpoints:
            stored.used_at = now

    def used(self, checkpoint: StoredSequence) -> None:
        """Notes that a text has gone on from a checkpoint."""
        self.checkpoint_hits += 1
        if checkpoint.path is not None:
            with contextlib.suppress(OSError):
                os.utime(checkpoint.path)

    def take(self, stored: StoredSequence, whole: bool) -> None:
        """Notes that the text is in the context again, as a whole or in part; if whole, it needs no copy in
        memory."""
        with self._lock:
            stored.used_at = time.time()
            self.restored += 1
            if whole and stored.path is None and not stored.gone:
                self._forget(stored)
            elif stored.path is not None:
                self._drop_data(stored)
        if stored.path is not None:
            with contextlib.suppress(OSError):
                os.utime(stored.path)

    def fetch(self, stored: StoredSequence) -> Future[Bytes | None]:
        """Fetches the data; None if the file is damaged or gone."""
        with self._lock:
            ready: Future[Bytes | None] = Future()
            if stored.data is not None or stored.path is None:
                ready.set_result(stored.data)
                return ready
            return self._submit(self._read, stored, stored.path)

    def adopt(self, stored: StoredSequence) -> None:
        """Adds a session's file, which stays where it is."""
        stored.pinned, stored.used_at = True, time.time()
        with self._lock:
            self.index.add(stored)

    def make_room(self, n: int, session_bytes: int) -> None:
        """Deletes idle texts on disk to make room for a session of n bytes, besides session_bytes for the others.
        Raises OSError when cache_disk is too small."""
        with self._lock:
            if not self._disk:
                return
            if session_bytes + n > self._disk:
                raise OSError(
                    errno.ENOSPC,
                    f"sessions may take {self._disk} bytes (cache_disk) in all: delete others first",
                )
            self._session_bytes = session_bytes + n
            self._shrink_disk()

    def count_sessions(self, n: int) -> None:
        """Sets how many bytes sessions take on disk, which count towards cache_disk."""
        with self._lock:
            self._session_bytes = n
            if self._disk:
                self._shrink_disk()

    def drop(self, stored: StoredSequence) -> None:
        """Forgets a text whose data could not be used."""
        with self._lock:
            if not stored.gone:
                self._forget(stored)

    def distrust(self, ids: IntArray, salt: str, least: int) -> None:
        """Forgets all texts that share at least `least` tokens with ids. Files of sessions stay."""
        with self._lock:
            for stored in self._all():
                if stored.salt == salt and common_prefix(stored.text, ids) >= least:
                    self._forget(stored)

    def flush(self) -> None:
        """Writes what is in memory to disk, the latest ones first, as long as they fit."""
        if not self._disk:
            return
        with self._lock:
            room = self._disk - self._session_bytes
            for stored in sorted(self._all(), key=lambda s: s.used_at, reverse=True):
                room -= stored.size if stored.data is None else len(stored.data)
                if room < 0 and not stored.pinned and not stored.moving:
                    self._forget(stored)
            self._shrink_ram(0)
            self._shrink_checkpoints(0, [])

    def close(self) -> None:
        """Waits until all files are written."""
        if self._files is not None:
            self._files.shutdown(wait=True)

    # ---- the rest is called with the lock held -------------------------------------------------------------

    def _table(self, stored: StoredSequence) -> prefix.Index[StoredSequence]:
        return self.checkpoints if stored.partial else self.index

    def _all(self) -> Iterator[StoredSequence]:
        return chain(self.index, self.checkpoints)

    def _drop_data(self, stored: StoredSequence) -> None:
        """Frees what is in memory of a text, if anything is."""
        n = 0 if stored.data is None else len(stored.data)
        stored.data = None
        if stored.partial:
            self.checkpoint_bytes -= n
        else:
            self.ram_bytes -= n

    def _shorter(self, stored: StoredSequence) -> StoredSequence | None:
        """A text that this one begins with, and that is therefore no longer needed."""
        return self.index.find(
            stored.text,
            stored.hashes,
            stored.salt,
            stored.factor,
            1,
            lambda other, n: n == len(other.text) and not other.pinned,
        )[0]

    def _forget(self, stored: StoredSequence) -> None:
        stored.gone = True
        self._table(stored).remove(stored)
        self._drop_data(stored)
        if stored.path is not None and not stored.pinned:
            self.disk_bytes -= stored.size
            _delete(stored.path)
            stored.path = None

    def _shrink_ram(self, limit: int) -> None:
        in_ram = [(s, len(s.data)) for s in self.index if s.data is not None and not s.moving]
        size = sum(n for _, n in in_ram)
        for stored, n in sorted(in_ram, key=lambda pair: pair[0].used_at):
            if size <= limit:
                break
            size -= n
            self._move_out(stored, n)

    def _shrink_checkpoints(self, limit: int, own: list[StoredSequence]) -> None:
        """own: those that are the last to go, in the order of their text. When the disk is too slow, those that it
        would have to take next are forgotten."""
        writing = sum(len(s.data) for s in self.checkpoints if s.data is not None and s.moving)
        in_ram = [s for s in self.checkpoints if s.data is not None and not s.moving]
        size = sum(len(s.data) for s in in_ram if s.data is not None)
        mine = [s for s in own if s in in_ram]
        others = sorted((s for s in in_ram if s not in mine), key=lambda s: -s.used_at)
        while size > limit and in_ram:
            stored = others.pop() if others else mine.pop(spare([len(s.text) for s in mine]))
            in_ram.remove(stored)
            assert stored.data is not None
            n = len(stored.data)
            size -= n
            if limit and writing + n > limit:
                self._forget(stored)
            else:
                writing += n
                self._move_out(stored, n)

    def _move_out(self, stored: StoredSequence, n: int) -> None:
        """Moves n bytes of memory to disk, or forgets them."""
        if n <= self._disk - self._session_bytes and self._folder is not None:
            stored.moving = True
            self._submit(self._write, stored, self._folder)
        else:
            self._forget(stored)

    def _shrink_disk(self) -> None:
        on_disk = (s for s in self._all() if s.path is not None and not s.pinned)
        for stored in sorted(on_disk, key=lambda s: s.used_at):
            if self.disk_bytes + self._session_bytes <= self._disk:
                break
            self._forget(stored)

    def _submit(self, function: Callable[..., T], *args: object) -> Future[T]:
        try:
            if self._files is None:
                self._files = ThreadPoolExecutor(1, "pyllama-long-files")
            return self._files.submit(function, *args)
        except RuntimeError:  # the process is ending and starts no more threads
            done: Future[T] = Future()
            done.set_result(function(*args))
            return done

    # ---- on the thread for files ---------------------------------------------------------------------------

    def _write(self, stored: StoredSequence, folder: Path) -> None:
        with self._lock:
            data = stored.data
            if stored.gone or data is None:
                stored.moving = False
                return
        header = Header(
            self._model,
            stored.salt,
            stored.factor,
            len(stored.text),
            len(data),
            created=time.time(),
            partial=stored.partial,
        )
        path = folder / f"{uuid.uuid4().hex}{SUFFIX}"
        try:
            size = seqfile.write(path, header, stored.text, data)
        except OSError as error:
            what = "a checkpoint" if stored.partial else "an idle sequence"
            logger.warning("%s is forgotten, it cannot be written: %s", what, error)
            size = 0
        with self._lock:
            stored.moving = False
            if not size and not stored.gone:
                self._forget(stored)
            elif size and stored.gone:
                _delete(path)
            elif size:
                stored.path, stored.size = path, size
                self.disk_bytes += size
                self._drop_data(stored)
                self._shrink_disk()

    def _read(self, stored: StoredSequence, path: Path) -> Bytes | None:
        try:
            header, ids, data = seqfile.read(path)
            same = header.model == self._model and header.partial == stored.partial
            if same and np.array_equal(ids, stored.text):
                return data
            logger.warning("a saved sequence is not used: %s holds another text now", path)
        except Damaged as error:
            if stored.pinned:
                logger.warning("a session is not used: %s", error)
            else:
                logger.warning("a saved sequence is deleted: %s", error)
                _delete(path)
        except OSError as error:
            logger.warning("a saved sequence is not used: %s", error)
        self.drop(stored)
        return None
