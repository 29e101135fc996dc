"""Requests that wait: which of them may begin, and with what."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future

from pyllama_long.arrays import common_prefix
from pyllama_long.checkpoints import Bytes
from pyllama_long.engine import prefix
from pyllama_long.engine.batching import Batching
from pyllama_long.engine.context import Context
from pyllama_long.engine.events import Queued
from pyllama_long.engine.job import Job
from pyllama_long.engine.pool import LiveSequence, Source
from pyllama_long.engine.store import Store, StoredSequence
from pyllama_long.errors import DecodeError


class Queue:
    """Orders requests by priority, then by age. When one has to wait for room, those behind it that fit may overtake
    it as long as that hardly delays it: see `_keeps_nobody`. Only the loop's thread uses it."""

    def __init__(
        self, batching: Batching, context: Context, store: Store, n_parallel: int, wake: Callable[[], None]
    ) -> None:
        """wake: ends the thread's sleep."""
        self._batching, self._context, self._store = batching, context, store
        self._n_parallel, self._wake = n_parallel, wake
        self._jobs: list[Job] = []
        self._fetched: dict[Job, dict[StoredSequence, Future[Bytes | None]]] = {}
        # a request waits for another one that reads the same prompt, or for a while for room to restore its own
        self._deferred = False

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def ready(self) -> bool:
        return self._batching.changed and bool(self._jobs)

    def add(self, jobs: list[Job]) -> None:
        if jobs:
            self._jobs = sorted([*self._jobs, *jobs], key=lambda job: (-job.request.priority, job.number))
            self._batching.changed = True

    def report_places(self, jobs: list[Job]) -> None:
        """Tells new requests that have to wait their place in the queue."""
        for job in jobs:
            if job in self._jobs:
                job.handle.put(Queued(self._jobs.index(job)))

    def remove_cancelled(self) -> list[Job]:
        gone = [job for job in self._jobs if job.handle.cancelled]
        for job in gone:
            self._remove(job)
            self._batching.changed = True
        return gone

    def clear(self) -> list[Job]:
        jobs, self._jobs = self._jobs, []
        return jobs

    def _remove(self, job: Job) -> None:
        self._jobs.remove(job)
        self._fetched.pop(job, None)

    def admit(self) -> None:
        """Begins the requests that can begin."""
        if not (self._batching.changed or self._deferred) or not self._jobs:
            return
        self._batching.changed = self._deferred = False
        first: Job | None = None  # the first that waits for room
        for job in list(self._jobs):
            if len(self._batching.running) >= self._n_parallel:
                break
            if self._prefix_is_coming(job):
                self._deferred = True
            elif first is None:
                if not self._begin(job):
                    first = job
            elif self._keeps_nobody(job, first):
                self._begin(job)
            # Others may overtake too, until together they have had as many cells as the waiting one needs.
            elif first.passed + job.reserved <= first.reserved and self._begin(job):
                first.passed += job.reserved

    def _keeps_nobody(self, job: Job, first: Job) -> bool:
        """Whether the request that waits for room is not delayed if this one begins first: because both fit, or
        because this one ends before the other can begin, judging by the most that running requests may write."""
        batching = self._batching
        room = batching.pool.available() - batching.committed
        if room >= first.reserved:
            return room >= first.reserved + job.reserved
        for other in sorted(batching.running, key=lambda other: other.limit - len(other.text.tokens)):
            room += other.reserved
            if room >= first.reserved:
                return job.n + job.limit <= other.limit - len(other.text.tokens)
        return False

    def _prefix_is_coming(self, job: Job) -> bool:
        """Whether a running request is just reading what this one begins with, so that it pays to wait."""
        context, most = self._context, 0
        if (context.whole_only and not context.keeps) or job.fresh or job in self._fetched:
            return False
        for other in self._batching.running:
            if not other.writing and (other.salt, other.factor) == (job.salt, job.factor):
                begin = prefix.common_blocks(other.hashes, job.hashes)
                end = min(begin + prefix.BLOCK, max(0, job.n - prefix.MIN_PREFILL))
                n = common_prefix(other.ids[:end], job.ids[:end], min(begin, end))
                least = prefix.BLOCK
                if context.whole_only:
                    n, least = max((place for place in other.places if place <= n), default=0), 1
                assert other.held is not None
                if n >= other.held.n + least:
                    most = max(most, n)
        return most > 0 and self._match(job).n + prefix.BLOCK < most

    def _begin(self, job: Job) -> bool:
        """Begins a request; False when it has to wait for room, or for its source to be read from disk."""
        batching, pool = self._batching, self._batching.pool
        source, data = self._source(job)
        if source is None:
            return False
        self._remove(job)
        try:
            room = job.n + job.limit
            held = pool.begin(source, job.ids, job.hashes, room, job.salt, job.factor, data)
        except Exception as error:
            job.close()
            job.handle.fail(DecodeError(f"the request could not begin: {error}"))
            raise
        batching.running.append(job)
        if self._context.has_phases or job.tail_start is not None:
            self._context.set_tail(held.seq, job.tail_start)
        batching.counters.prefix_hits += held.n > 0
        batching.counters.prompt_tokens += job.n
        batching.counters.cached_tokens += held.n
        pool.keep(held)  # where the last turn ended
        job.start(held)
        return True

    def _source(self, job: Job) -> tuple[Source | None, dict[StoredSequence, Bytes]]:
        """The source of a prompt's beginning, with the data of what is outside the context. None while that is being
        read, or there is no room."""
        while True:
            source = self._match(job)
            if isinstance(source.entry, StoredSequence) and not self._has_room(job, source):
                other = self._match(job, stored=False)
                if self._pays_to_wait(job, source.n - other.n):
                    self._deferred = True
                    return None, {}
                source = other
            if not self._has_room(job, source):
                return None, {}
            known = self._fetched.get(job, {})
            futures = {part: known.get(part) or self._store.fetch(part) for part in source.stored}
            if futures:
                self._fetched[job] = futures
            reading = [future for future in futures.values() if not future.done()]
            for future in reading:
                future.add_done_callback(lambda _: self._fetch_done())
            if reading:
                return None, {}
            data = {part: found for part, future in futures.items() if (found := future.result()) is not None}
            if len(data) == len(futures):
                return source, data
            del self._fetched[job]  # a file was damaged

    def _pays_to_wait(self, job: Job, n: int) -> bool:
        """Whether it may wait for room to restore n tokens: not longer than it takes to read them."""
        now = time.monotonic()
        if job.wait_until is None:
            job.wait_until = now + self._batching.pace.seconds(job.n, n)
        return now < job.wait_until

    def _has_room(self, job: Job, source: Source) -> bool:
        available, needed = self._batching.pool.available(source), job.reserved
        if isinstance(source.entry, LiveSequence):
            needed -= source.n
        elif source.entry is not None:  # sequences are restored whole, even where a part of them is wanted
            needed = max(needed, len(source.entry.text))
        return available - self._batching.committed >= needed

    def _fetch_done(self) -> None:
        self._batching.changed = True
        self._wake()

    def _match(self, job: Job, stored: bool = True) -> Source:
        if job.fresh:
            return Source()
        return self._batching.pool.match(job.ids, job.hashes, job.salt, job.factor, stored)
