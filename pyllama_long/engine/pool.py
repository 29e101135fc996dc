"""The sequences in the cells: prompts continue from the longest cached prefix, idle sequences make room."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from pyllama_long.arrays import IntArray, common_prefix
from pyllama_long.checkpoints import Bytes
from pyllama_long.engine import prefix
from pyllama_long.engine.cells import Cells
from pyllama_long.engine.context import Context
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
    checkpoints: list[StoredSequence] = field(
        default_factory=list
    )  # of its text and of what will be read, in order

    @property
    def text(self) -> IntArray:
        return self.ids[: self.n]


@dataclass(frozen=True)
class Source:
    """Where the first n tokens of a prompt come from: from a text that has at least these, and, where its memory cannot
    go back to them, a checkpoint of them. A recurrent state needs no text."""

    entry: LiveSequence | StoredSequence | None = None
    n: int = 0
    checkpoint: StoredSequence | None = None

    @property
    def stored(self) -> list[StoredSequence]:
        """What has to be fetched."""
        return [part for part in (self.entry, self.checkpoint) if isinstance(part, StoredSequence)]


Fetched: TypeAlias = Mapping[StoredSequence, Bytes]
Part: TypeAlias = tuple[StoredSequence, Bytes]  # a checkpoint and its data


def _better(live: Source, stored: Source) -> Source:
    """What is outside the context has to save more than the way back in takes."""
    return stored if stored.entry is not None and stored.n >= live.n + _WORTH else live


def _cut(entry: LiveSequence | StoredSequence | None, n: int, places: Sequence[StoredSequence]) -> Source:
    """A text that shares n tokens, up to the last of its checkpoints there."""
    last = next((place for place in reversed(places) if len(place.text) <= n), None)
    return Source() if entry is None or last is None else Source(entry, len(last.text), last)


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
        found = self.cells.free + self.cells.freed_by([h.seq for h in self.held.values() if not h.busy], keep)
        page = self._context.plan.page
        if page > 1:  # the last page of each sequence that is busy, and of the next one, belongs to it alone
            found -= page * (1 + sum(h.busy for h in self.held.values()))
        return max(0, found)

    # ---- a request begins ----------------------------------------------------------------------------------

    def match(
        self, ids: IntArray, hashes: list[bytes], salt: str, factor: float, stored: bool = True
    ) -> Source:
        """The best source for a prompt; at least prefix.MIN_PREFILL of its tokens are left to evaluate. stored: also
        look outside the context."""
        limit = len(ids) - prefix.MIN_PREFILL
        if limit < 1:
            return Source()
        ids, hashes = ids[:limit], hashes[: limit // prefix.BLOCK]
        best = self.longest(ids, hashes, salt, factor, stored)
        if self._context.rope.dynamic and best.n < len(ids) // 2:
            best = self._smaller_factor(ids, hashes, salt, factor, best)
        whole = best.n - best.n % self._context.plan.page
        if best.checkpoint is None and whole < best.n:
            best = replace(best, n=whole) if whole else Source()
        return best

    def longest(
        self,
        ids: IntArray,
        hashes: list[bytes],
        salt: str,
        factor: float,
        stored: bool = True,
        wanted: Callable[[LiveSequence], bool] = lambda held: True,
    ) -> Source:
        """The source that has most of a text, with this factor. wanted: which live sequences may be used."""
        context, index, store = self._context, self.index, self.store
        if context.whole_only:
            live = index.find_whole(ids, salt, factor, len(ids), wanted)
            kept = store.find_whole(ids, salt, factor, len(ids)) if stored else (None, 0)
        else:

            def usable(held: LiveSequence, n: int) -> bool:
                return wanted(held) and context.reusable(held.seq, held.n, n)

            def has_window(kept: StoredSequence, n: int) -> bool:
                return (
                    n == len(kept.text) or not context.small.window or len(kept.text) <= context.small.window
                )

            live = index.find(ids, hashes, salt, factor, wanted=usable)
            kept = store.find(ids, hashes, salt, factor, has_window) if stored else (None, 0)
        best = _better(Source(*live), Source(*kept))
        places = store.prefixes(ids, hashes, salt, factor) if context.keeps else []
        if not places or len(places[-1].text) <= best.n:
            return best
        if context.small.alone:
            return Source(None, len(places[-1].text), places[-1])
        live = index.find(ids, hashes, salt, factor, wanted=lambda held, n: wanted(held))
        kept = store.find(ids, hashes, salt, factor) if stored else (None, 0)
        other = _better(_cut(*live, places), _cut(*kept, places))
        return other if other.n > best.n else best

    def _smaller_factor(
        self, ids: IntArray, hashes: list[bytes], salt: str, factor: float, best: Source
    ) -> Source:
        """An idle sequence with a smaller factor whose keys can be rotated, if that saves much. As in LongLlama, a
        text that has grown keeps the keys that were computed while it was short. A short text is read again, which
        gives the same result as without the long one."""

        def usable(held: LiveSequence) -> bool:
            return not held.busy and not self.cells.is_shared(held.seq)

        for other in self.index.factors(salt):
            if other < factor:
                found = self.longest(ids, hashes, salt, other, False, usable)
                turns = isinstance(found.entry, LiveSequence)
                if turns and found.n >= max(best.n + _WORTH_TURNING, len(ids) // 2):
                    best = found
        return best

    def begin(
        self,
        source: Source,
        ids: IntArray,
        hashes: list[bytes],
        room: int,
        salt: str,
        factor: float,
        data: Fetched = MappingProxyType({}),
    ) -> LiveSequence:
        """Makes a busy sequence with room for a prompt and its answer, `room` tokens in all; it begins with the
        tokens of the source. data: of what the source has outside the context; if it cannot be used, nothing is
        reused."""
        entry, n, checkpoint = source.entry, source.n, source.checkpoint
        part = None if checkpoint is None else (checkpoint, data[checkpoint])
        if isinstance(entry, LiveSequence) and not entry.busy and (n == entry.n or entry.factor != factor):
            held = self._take_over(entry, n, factor, part)
        else:
            if isinstance(entry, LiveSequence):
                entry.used_at = time.monotonic()
            held = LiveSequence(self._free_id(entry), np.empty(0, np.int32), 0, salt, factor)
            self.held[held.seq] = held
            self._context.set_factor(held.seq, factor)
            if isinstance(entry, LiveSequence):
                self._context.fork(entry.seq, held.seq, n)
                self.cells.fork(entry.seq, held.seq, n)
                self._cut(held, n, part)
            elif entry is not None:
                self._fill(held, entry, data[entry], n, part)
            elif part is not None and self.make_room(n):
                self.cells.extend(held.seq, n)
                self._cut(held, n, part)
        if self._context.keeps:
            held.checkpoints = self.store.prefixes(ids, hashes, salt, factor)
            self.store.touch(held.checkpoints)
        held.ids = np.empty(room, np.int32)
        held.ids[: len(ids)] = ids
        held.hashes, held.busy = hashes[: held.n // prefix.BLOCK], True
        self.index.add(held)
        return held

    def _take_over(self, held: LiveSequence, n: int, factor: float, part: Part | None) -> LiveSequence:
        self.index.remove(held)
        held.busy = True
        self._cut(held, n, part)
        if factor != held.factor:
            self._context.set_factor(held.seq, factor)
            held.factor = factor
        return held

    def _fill(
        self, held: LiveSequence, stored: StoredSequence, data: Bytes, n: int, part: Part | None
    ) -> None:
        size = len(stored.text)
        if not self.make_room(size):
            return
        try:
            usable = self._with_room(lambda: self._context.set_state(held.seq, data, size))
        except RuntimeError:
            self.store.drop(stored)
            raise
        if not usable:
            self._context.set_factor(held.seq, held.factor)
            self.store.drop(stored)
            return
        self.cells.extend(held.seq, size)
        self.store.take(stored, whole=n == size)
        self._cut(held, n, part)

    def _cut(self, held: LiveSequence, n: int, part: Part | None) -> None:
        """Leaves the first n of the tokens that are in a sequence's cells: none if its memory cannot go back."""
        context, size = self._context, self.cells.held(held.seq)
        if part is not None:
            checkpoint, data = part
            done = self._with_room(lambda: context.go_back(held.seq, data, n))
            self.store.used(checkpoint) if done else self.store.drop(checkpoint)
        else:
            done = n == size or (context.reusable(held.seq, size, n) and context.truncate(held.seq, n))
        if not done:
            n = 0
            context.truncate(held.seq, 0)
            if context.length(held.seq):
                raise RuntimeError("a checkpoint has positions that cannot be: all cells are emptied")
        self.cells.truncate(held.seq, n)
        held.n = n

    def _with_room(self, load: Callable[[], bool]) -> bool:
        """Tries to load a state. Windows have cells of their own, which are not counted: idle sequences make room."""
        while not load():
            idle = self.idle
            if not self._context.small.window or not idle:
                return False
            self.evict(idle[0])
        return True

    def _free_id(self, spare: object) -> int:
        if not self._ids:
            self.evict(next(h for h in self.idle if h is not spare))
        return self._ids.pop()

    def snapshot(self, source: Source) -> Bytes | None:
        """The contents of the cells of a live source. None if its checkpoint cannot be used."""
        held, n = source.entry, source.n
        assert isinstance(held, LiveSequence)
        if n == held.n:
            return self._context.state(held.seq)
        data = {
            part: found for part in source.stored if (found := self.store.fetch(part).result()) is not None
        }
        if len(data) < len(source.stored):
            return None
        busy, held.busy = held.busy, True  # it is not taken over
        try:
            part = self.begin(source, held.ids[:n].copy(), held.hashes, n, held.salt, held.factor, data)
        finally:
            held.busy = busy
        try:
            return self._context.state(part.seq) if part.n == n else None
        finally:
            self.drop(part)

    # ---- a request goes on ---------------------------------------------------------------------------------

    def keep(self, held: LiveSequence, least: int = 0) -> None:
        """Keeps a checkpoint of a sequence as it is now, unless there is one near, or one less than `least` tokens
        before."""
        context = self._context
        if not context.keeps:
            return
        known = held.checkpoints = [known for known in held.checkpoints if not known.gone]
        at = sum(len(one.text) <= held.n for one in known)
        last = len(known[at - 1].text) if at else 0
        if held.n - last < max(least, context.limits.near):
            return
        data = context.small.read(held.seq)
        if data is not None:
            made = StoredSequence(held.text.copy(), held.hashes, held.salt, held.factor, data, partial=True)
            self.store.keep(made, known)
            known.insert(at, made)

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
        held.checkpoints = []  # they have the old factor
        self.index.add(held)
        return True

    # ---- a request ends ------------------------------------------------------------------------------------

    def release(self, held: LiveSequence) -> None:
        """Makes the sequence idle, or drops it if another one holds all of it."""
        self._context.set_tail(held.seq, None)
        held.busy, held.used_at = False, time.monotonic()
        held.ids, held.checkpoints = held.ids[: held.n].copy(), []

        def has_all(other: LiveSequence, n: int) -> bool:
            return other is not held and self._context.reusable(other.seq, other.n, n)

        twin, n = self.index.find(held.ids, held.hashes, held.salt, held.factor, wanted=has_all)
        if held.n == 0 or (twin is not None and n == held.n):
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
