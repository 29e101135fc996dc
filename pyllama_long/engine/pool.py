"""The sequences in the cells: prompts continue from the longest cached prefix, idle sequences make room."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from pyllama_long.arrays import IntArray, common_prefix
from pyllama_long.engine import prefix
from pyllama_long.engine.cells import Cells
from pyllama_long.engine.context import Context
from pyllama_long.engine.seqfile import Bytes
from pyllama_long.engine.store import Store, StoredSequence

_WORTH = prefix.BLOCK  # tokens that a copy from outside the context must save
# tokens that rotating cached keys to another RoPE factor must save, since it is not exact
_WORTH_TURNING = 1024


@dataclass(eq=False)
class LiveSequence:
    """A sequence whose tokens ids[:n] are in the cells. busy: a request writes to it; else it is idle."""

    seq: int
    ids: IntArray
    n: int
    salt: str  # hashed
    factor: float
    hashes: list[bytes] = field(default_factory=list)
    used_at: float = 0.0
    busy: bool = True
    copied: int = 0  # tokens that it had when it was last copied in advance

    @property
    def text(self) -> IntArray:
        return self.ids[: self.n]


@dataclass(frozen=True)
class Source:
    """Where the first n tokens of a prompt come from."""

    entry: LiveSequence | StoredSequence | None = None
    n: int = 0


class Pool:
    """Only the engine's thread uses it."""

    def __init__(self, context: Context, store: Store) -> None:
        self._context, self.store = context, store
        self.cells = Cells(context.n_ctx())
        self.index: prefix.Index[LiveSequence] = prefix.Index()
        self.held: dict[int, LiveSequence] = {}
        self._ids = list(range(context.n_seq - 1, -1, -1))

    @property
    def idle(self) -> list[LiveSequence]:
        """The idle sequences, the least recently used first."""
        return sorted((h for h in self.held.values() if not h.busy), key=lambda h: h.used_at)

    def available(self, source: Source = Source()) -> int:
        """The number of cells that are free or held only by idle sequences, except those of the source."""
        keep = (source.entry.seq, source.n) if isinstance(source.entry, LiveSequence) else None
        return self.cells.free + self.cells.freed_by([h.seq for h in self.held.values() if not h.busy], keep)

    # ---- a request begins ----------------------------------------------------------------------------------

    def match(
        self, ids: IntArray, hashes: list[bytes], salt: str, factor: float, stored: bool = True
    ) -> Source:
        """The best source for a prompt; at least prefix.MIN_PREFILL of its tokens are left to evaluate. stored: also
        look outside the context."""
        limit, context = len(ids) - prefix.MIN_PREFILL, self._context
        if limit < 1:
            return Source()
        ids, hashes = ids[:limit], hashes[: limit // prefix.BLOCK]
        if context.whole_only:
            best: Source = Source(*self.index.find_whole(ids, salt, factor, limit))
            entry, n = self.store.find_whole(ids, salt, factor, limit) if stored else (None, 0)
            return Source(entry, n) if entry is not None and n >= best.n + _WORTH else best

        def usable(held: LiveSequence, n: int) -> bool:
            return context.reusable(held.seq, held.n, n)

        best = Source(*self.index.find(ids, hashes, salt, factor, wanted=usable))
        entry, n = self.store.find(ids, hashes, salt, factor) if stored else (None, 0)
        if entry is not None and n >= best.n + _WORTH:
            best = Source(entry, n)
        if context.rope.dynamic and best.n < len(ids) // 2:
            best = self._smaller_factor(ids, hashes, salt, factor, best)
        return best

    def _smaller_factor(
        self, ids: IntArray, hashes: list[bytes], salt: str, factor: float, best: Source
    ) -> Source:
        """An idle sequence with a smaller factor whose keys can be rotated, if that saves much. As in LongLlama, a
        text that has grown keeps the keys that were computed while it was short. A short text is read again, which
        gives the same result as without the long one."""

        def usable(held: LiveSequence, n: int) -> bool:
            return not held.busy and not self.cells.is_shared(held.seq)

        for other in self.index.factors(salt):
            if other < factor:
                held, n = self.index.find(ids, hashes, salt, other, 1, usable)
                if held is not None and n >= max(best.n + _WORTH_TURNING, len(ids) // 2):
                    best = Source(held, n)
        return best

    def begin(
        self,
        source: Source,
        ids: IntArray,
        hashes: list[bytes],
        room: int,
        salt: str,
        factor: float,
        data: Bytes | None = None,
    ) -> LiveSequence:
        """Makes a busy sequence with room for a prompt and its answer, `room` tokens in all; it begins with the
        tokens of the source. data: of a source outside the context; if it cannot be used, nothing is reused."""
        entry, n = source.entry, source.n
        if isinstance(entry, LiveSequence) and not entry.busy and (n == entry.n or entry.factor != factor):
            held = self._take_over(entry, n, factor)
        else:
            if isinstance(entry, LiveSequence):
                entry.used_at = time.monotonic()
            held = LiveSequence(self._free_id(entry), np.empty(0, np.int32), 0, salt, factor)
            self.held[held.seq] = held
            self._context.set_factor(held.seq, factor)
            if isinstance(entry, LiveSequence):
                self._context.fork(entry.seq, held.seq, n)
                self.cells.fork(entry.seq, held.seq, n)
                held.n = n
            elif entry is not None and data is not None:
                self._fill(held, entry, data, n)
        held.ids = np.empty(room, np.int32)
        held.ids[: len(ids)] = ids
        held.hashes, held.busy = hashes[: held.n // prefix.BLOCK], True
        self.index.add(held)
        return held

    def _take_over(self, held: LiveSequence, n: int, factor: float) -> LiveSequence:
        self.index.remove(held)
        if n < held.n:
            if not self._context.truncate(held.seq, n):
                n = 0
            self.cells.truncate(held.seq, n)
            held.n = n
        if factor != held.factor:
            self._context.set_factor(held.seq, factor)
            held.factor = factor
        return held

    def _fill(self, held: LiveSequence, stored: StoredSequence, data: Bytes, n: int) -> None:
        size = len(stored.text)
        if not self.make_room(size):
            return
        try:
            usable = self._context.set_state(held.seq, data, size)
        except RuntimeError:
            self.store.drop(stored)
            raise
        if not usable:
            self._context.set_factor(held.seq, held.factor)
            self.store.drop(stored)
            return
        self.cells.extend(held.seq, size)
        self.store.take(stored, whole=n == size)
        if n < size:
            if not self._context.reusable(held.seq, size, n) or not self._context.truncate(held.seq, n):
                self._context.truncate(held.seq, 0)
                n = 0
            self.cells.truncate(held.seq, n)
        held.n = n

    def _free_id(self, spare: object) -> int:
        if not self._ids:
            self.evict(next(h for h in self.idle if h is not spare))
        return self._ids.pop()

    def snapshot(self, held: LiveSequence, n: int) -> Bytes:
        """The contents of the cells of a sequence's first n tokens."""
        if n == held.n:
            return self._context.state(held.seq)
        part = self.begin(Source(held, n), held.ids[:n].copy(), held.hashes, n, held.salt, held.factor)
        try:
            return self._context.state(part.seq)
        finally:
            self.drop(part)

    # ---- a request goes on ---------------------------------------------------------------------------------

    def make_room(self, n: int) -> bool:
        """Evicts idle sequences until n cells are free; False when that is not enough."""
        while self.cells.free < n:
            idle = self.idle
            if not idle:
                return False
            self.evict(idle[0])
        return True

    def grown(self, held: LiveSequence, n: int) -> None:
        """Notes that n more tokens of ids are in the cells."""
        self.cells.extend(held.seq, n)
        held.n += n
        if held.n // prefix.BLOCK > len(held.hashes):
            held.hashes = prefix.chain(held.text, held.hashes, held.salt)
        self.index.add(held)

    def set_factor(self, held: LiveSequence, factor: float) -> bool:
        """Sets a new RoPE factor for a text that outgrows its own; False when there is no room for that."""
        if self.cells.is_shared(held.seq):
            # It gets its own copy of the cells, through main memory: nothing else copies them.
            if not self.make_room(self.cells.held(held.seq)):
                return False
            data = self._context.state(held.seq)
            self.index.remove(held)
            self._context.truncate(held.seq, 0)
            self.cells.truncate(held.seq, 0)
            if not self._context.set_state(held.seq, data, held.n):
                raise RuntimeError("a sequence could not be copied")
            self.cells.extend(held.seq, held.n)
        self.index.remove(held)
        self._context.set_factor(held.seq, factor)
        held.factor = factor
        self.index.add(held)
        return True

    # ---- a request ends ------------------------------------------------------------------------------------

    def release(self, held: LiveSequence) -> None:
        """Makes the sequence idle, or drops it if another one holds all of it."""
        self._context.set_tail(held.seq, None)
        held.busy, held.used_at = False, time.monotonic()
        held.ids = held.ids[: held.n].copy()
        twin, n = self.index.find(
            held.ids, held.hashes, held.salt, held.factor, wanted=lambda other, n: other is not held
        )
        if held.n == 0 or (twin is not None and n == held.n and not self._context.whole_only):
            self.drop(held)

    def drop(self, held: LiveSequence) -> None:
        self.index.remove(held)
        self._context.set_tail(held.seq, None)
        self._context.truncate(held.seq, 0)
        self.cells.truncate(held.seq, 0)
        self.cells.drop(held.seq)
        del self.held[held.seq]
        self._ids.append(held.seq)

    def evict(self, held: LiveSequence) -> None:
        """Drops an idle sequence, after copying it to the store if that is worth it."""
        assert not held.busy
        self.spill(held)
        self.drop(held)

    def spill(self, held: LiveSequence) -> None:
        """Copies an idle sequence to the store if that is worth it."""
        store = self.store
        if (
            not store.enabled
            or held.n < _WORTH
            or store.covers(held.text, held.hashes, held.salt, held.factor)
        ):
            return
        data = self._context.state(held.seq)
        store.put(StoredSequence(held.text.copy(), held.hashes, held.salt, held.factor, data))

    @property
    def has_uncopied(self) -> bool:
        """Whether `copy_ahead` has something to do."""
        return self.store.enabled and any(
            not held.busy and held.copied != held.n >= _WORTH for held in self.held.values()
        )

    def copy_ahead(self) -> None:
        """Copies an idle sequence to the store while nobody waits, if there is room. A later eviction then has
        nothing left to copy."""
        for held in reversed(self.idle):
            if held.copied != held.n >= _WORTH:
                held.copied = held.n
                if self.store.has_room(self._context.state_size(held.seq)):
                    self.spill(held)
                return

    def distrust(self, ids: IntArray, salt: str) -> None:
        """Drops all idle texts that may share broken keys with one that reused ids, here and in the store."""
        least = min(len(ids), prefix.BLOCK)
        for held in self.idle:
            if held.salt == salt and common_prefix(held.text, ids) >= least:
                self.drop(held)
        self.store.distrust(ids, salt, least)

    def drop_all(self, which: Iterable[LiveSequence]) -> None:
        for held in list(which):
            self.drop(held)
