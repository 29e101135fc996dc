"""The thread that owns the context: admits requests, and evaluates one batch after another for all of them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from pyllama_long.engine import prefix
from pyllama_long.engine.config import EngineConfig
from pyllama_long.engine.context import Context
from pyllama_long.engine.embed import embed_steps
from pyllama_long.engine.events import Queued
from pyllama_long.engine.job import Job
from pyllama_long.engine.pace import Pace
from pyllama_long.engine.pool import Pool, Source
from pyllama_long.engine.stats import Counters, EngineStats
from pyllama_long.engine.step import Step
from pyllama_long.engine.store import Store, Stored
from pyllama_long.errors import DecodeError, EngineClosed, QueueFull
from pyllama_long.sequence import FloatArray, IntArray

logger = logging.getLogger("pyllama_long.engine")
T = TypeVar("T")
_MOST_ERRORS = 8  # unexpected ones in a row, until the engine gives up


class Loop:
    """`submit`, `call`, `embed`, `wake`, `stats` and `close` are for any thread, the rest is the loop's own."""

    def __init__(self, config: EngineConfig, context: Context, store: Store) -> None:
        self._config, self._context, self._store = config, context, store
        self.pool = Pool(context, store)
        self.pace = Pace(config.step_ms / 1000, config.prefill_share)
        self.counters = Counters()
        self.running: list[Job] = []
        self._waiting: list[Job] = []  # in the order of admission
        self._lock = threading.Condition()
        self._arrived: list[Job] = []
        self._calls: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._embeds: list[tuple[list[IntArray], Future[list[FloatArray]]]] = []
        self._woken = False
        self._deadline: float | None = None  # when closing
        self._ended = False
        self._changed = False  # something that may let a waiting request in
        self._deferred = False  # a request waits for another one that reads the same prompt
        self._fetched: dict[Job, tuple[Source, Future[Any]]] = {}
        self._embedding: Iterator[int] | None = None
        self._embed_cells = 0  # that an embedding still needs
        self._errors = 0
        self._thread = threading.Thread(target=self._run, name="pyllama-long-engine", daemon=True)
        self._thread.start()

    # ---- from any thread -----------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Raises QueueFull and EngineClosed."""
        with self._lock:
            self.check_open()
            n = len(self._arrived) + len(self._waiting)
            slots = max(0, self._config.n_parallel - len(self.running))
            if n - slots >= self._config.max_queue:
                seconds = self.counters.request_s * (n + 1) / self._config.n_parallel
                raise QueueFull(n, min(600.0, max(1.0, seconds)))
            self._arrived.append(job)
        self.wake()

    def call(self, function: Callable[[], T]) -> T:
        """Runs a function on the loop's thread, between two steps, and returns what it returns."""
        future: Future[T] = Future()
        with self._lock:
            self.check_open()
            self._calls.append((function, future))
        self.wake()
        return future.result()

    def embed(self, inputs: list[IntArray]) -> list[FloatArray]:
        future: Future[list[FloatArray]] = Future()
        with self._lock:
            self.check_open()
            self._embeds.append((inputs, future))
        self.wake()
        return future.result()

    def wake(self) -> None:
        with self._lock:
            self._woken = True
            self._lock.notify_all()

    def close(self, drain_s: float) -> None:
        """Takes no more requests, finishes for up to drain_s seconds what is there, then ends."""
        with self._lock:
            deadline = time.monotonic() + drain_s
            self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)
        self.wake()
        self._thread.join()

    def stats(self) -> EngineStats:
        pool, store, c = self.pool, self._store, self.counters
        idle = [held.seq for held in list(pool.held.values()) if not held.busy]
        kept = {key: value for key, value in vars(c).items() if key != "request_s"}
        return EngineStats(
            running=len(self.running),
            waiting=len(self._arrived) + len(self._waiting),
            cells_used=pool.cells.used,
            cells_idle=pool.cells.freed_by(idle),
            cells_total=pool.cells.total,
            sequences_idle=len(idle),
            sequences_total=self._context.n_seq,
            stored=len(store),
            ram_bytes=store.ram_bytes,
            disk_bytes=store.disk_bytes,
            spilled=store.spilled,
            restored=store.restored,
            **kept,
        )

    def check_open(self) -> None:
        """Raises EngineClosed."""
        if self._deadline is not None or self._ended:
            raise EngineClosed

    # ---- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        reason = EngineClosed("the engine was closed before the request was finished")
        try:
            while self._turn():
                pass
        except BaseException as error:
            logger.exception("the engine ends")
            reason = EngineClosed(f"the engine has failed: {error}")
        finally:
            self._end(reason)

    def _turn(self) -> bool:
        """One step with what goes around it; False when the engine is to end."""
        with self._lock:
            while not (self._woken or self.running or self._embedding or (self._changed and self._waiting)):
                self._lock.wait(None if self._deadline is None else 0.05)
                if self._deadline is not None:
                    break
            self._woken = False
            arrived, self._arrived = self._arrived, []
            self._waiting += arrived
            calls, self._calls = self._calls, []
        if arrived:
            self._waiting.sort(key=lambda job: (-job.request.priority, job.number))
            self._changed = True
        for function, future in calls:
            _answer(future, function)
        try:
            self._drop_cancelled()
            self._admit()
            for job in arrived:
                self._tell_position(job)
            if self._embedding is None and self._embeds:
                self._embedding = self._next_embedding()
            if self._embedding is not None and next(self._embedding, None) is None:
                self._embedding, self._changed = None, True
            if self.running:
                Step(self, self._context).run()
            self._errors = 0
        except Exception as error:
            self._errors += 1
            logger.exception("a step of the engine failed")
            self._start_over(error)
            if self._errors > _MOST_ERRORS:
                raise
        if self._deadline is None:
            return True
        work = self.running or self._waiting or self._embedding or self._embeds
        return bool(work) and time.monotonic() < self._deadline

    def _drop_cancelled(self) -> None:
        for job in [job for job in self.running if job.handle.cancelled]:
            self.finish(job, "cancelled")
        for job in [job for job in self._waiting if job.handle.cancelled]:
            self._waiting.remove(job)
            self._fetched.pop(job, None)
            self._close(job, "cancelled")
            self._changed = True

    def _tell_position(self, job: Job) -> None:
        if job in self._waiting:
            job.handle.put(Queued(self._waiting.index(job)))

    # ---- admission -----------------------------------------------------------------------------------------

    @property
    def committed(self) -> int:
        """Cells that running requests may still come to need."""
        jobs = sum(job.reserved - job.held.n for job in self.running if job.held is not None)
        return jobs + self._embed_cells

    def _admit(self) -> None:
        """Lets waiting requests in, in their order: one that does not fit holds up those behind it."""
        if not (self._changed or self._deferred) or not self._waiting:
            return
        self._changed = self._deferred = False
        for job in list(self._waiting):
            if len(self.running) >= self._config.n_parallel:
                break
            if self._comes(job):
                self._deferred = True
            elif not self._let_in(job):
                break

    def _comes(self, job: Job) -> bool:
        """Whether a running request is about to read what this one begins with: it is worth waiting for."""
        if self._context.whole_only or job.scores_prompt or job in self._fetched:
            return False
        most = 0
        for other in self.running:
            if not other.writing and (other.salt, other.factor) == (job.salt, job.factor):
                begin = prefix.common_blocks(other.hashes, job.hashes)
                end = min(begin + prefix.BLOCK, job.n - 1)
                n = prefix.common(other.ids[:end], job.ids[:end], min(begin, end))
                assert other.held is not None
                if n >= other.held.n + prefix.BLOCK:
                    most = max(most, n)
        if most == 0:
            return False
        return self.pool.match(job.ids, job.hashes, job.salt, job.factor).n + prefix.BLOCK < most

    def _let_in(self, job: Job) -> bool:
        pool, committed = self.pool, self.committed
        data = None
        fetched = self._fetched.get(job)
        if fetched is not None:
            source, future = fetched
            if not future.done():
                return False
            data = future.result()
            source = source if data is not None else self._match(job)
        else:
            source = self._match(job)
        entry = source.entry
        if isinstance(entry, Stored):
            needed = max(job.reserved, len(entry.text))
            if pool.available() - committed < needed:
                source, data = self._match(job, stored=False), None
            elif data is None:
                future = self._store.fetch(entry)
                self._fetched[job] = source, future
                if not future.done():
                    future.add_done_callback(lambda _: self._fetch_done())
                    return False
                return self._let_in(job)
        if pool.available(source) - committed < job.reserved - source.n:
            return False
        self._fetched.pop(job, None)
        self._waiting.remove(job)
        try:
            room = job.n + job.limit
            held = pool.begin(source, job.ids, job.hashes, room, job.salt, job.factor, data)
        except BaseException:
            self._waiting.insert(0, job)
            raise
        self.running.append(job)
        if self._context.has_phases or job.tail_start is not None:
            self._context.set_tail(held.seq, job.tail_start)
        self.counters.prefix_hits += held.n > 0
        self.counters.prompt_tokens += job.n
        self.counters.cached_tokens += held.n
        job.start(held)
        return True

    def _match(self, job: Job, stored: bool = True) -> Source:
        if job.scores_prompt:
            return Source()
        return self.pool.match(job.ids, job.hashes, job.salt, job.factor, stored)

    def _fetch_done(self) -> None:
        self._changed = True
        self.wake()

    def extend(self, job: Job, n: int) -> bool:
        """Reserves n more cells for a request without max_tokens; False when there is no room."""
        held = job.held
        assert held is not None
        if self.pool.available() - self.committed < n:
            return False
        job.reserved += n
        factor = self._context.rope.factor_for(job.reserved, self._context.n_ctx())
        if factor > held.factor:
            job.factor = factor
            return self.pool.set_factor(held, factor)
        return True

    # ---- the end of requests -------------------------------------------------------------------------------

    def finish(self, job: Job, reason: str) -> None:
        """Ends a running request; what was evaluated stays, idle."""
        assert job.held is not None
        self.running.remove(job)
        self.pool.release(job.held)
        self.counters.mix("request_s", time.monotonic() - job.started_at)
        self._close(job, reason)
        self._changed = True

    def fail(self, job: Job, error: BaseException) -> None:
        """Ends a running request with an error; its cells are freed."""
        assert job.held is not None
        self.running.remove(job)
        self.pool.drop(job.held)
        self.counters.failed += 1
        job.close()
        job.handle.fail(error)
        self._changed = True

    def _close(self, job: Job, reason: str) -> None:
        self.counters.completion_tokens += len(job.text.tokens)
        if reason == "cancelled":
            self.counters.cancelled += 1
        else:
            self.counters.finished += 1
        job.finish(reason)
        job.close()

    def _start_over(self, error: Exception) -> None:
        """After an error that nobody expected: every running request fails, and the cells are emptied."""
        for job in self.running:
            self.counters.failed += 1
            job.close()
            job.handle.fail(DecodeError(f"the engine met an error: {error}"))
        self.running.clear()
        if self._embedding is not None:
            self._embedding.close()  # type: ignore[attr-defined]
            self._embedding, self._embed_cells = None, 0
        self._context.clear()
        self.pool = Pool(self._context, self._store)
        self._changed = True

    def _end(self, reason: EngineClosed) -> None:
        with self._lock:
            self._ended = True
            waiting = self._waiting + self._arrived
            self._waiting, self._arrived = [], []
        for job in waiting:
            job.close()
            job.handle.fail(reason)
        for job in self.running:
            job.close()
            job.handle.fail(reason)
        for _, future in [*self._calls, *self._embeds]:
            future.set_exception(reason)
        if self._embedding is not None:
            self._embedding.close()  # type: ignore[attr-defined]
        try:
            for job in self.running:
                if job.held is not None:
                    self.pool.release(job.held)
            self.running.clear()
            if self._store.keeps_files:
                for held in self.pool.idle:
                    self.pool.spill(held)
                self._store.flush()
            self.pool.drop_all(self.pool.held.values())
        except Exception:
            logger.exception("idle sequences could not be kept")
        finally:
            self._store.close()
            self._context.close()

    # ---- embeddings ----------------------------------------------------------------------------------------

    def _next_embedding(self) -> Iterator[int]:
        with self._lock:
            inputs, future = self._embeds.pop(0)

        def steps() -> Iterator[int]:
            try:
                found = []
                for ids in inputs:
                    while self.pool.available() - self.committed < len(ids):
                        yield 0
                    vector = yield from self._embed_one(ids)
                    found.append(vector)
                future.set_result(found)
            except GeneratorExit:
                future.set_exception(EngineClosed())
                raise
            except Exception as error:
                future.set_exception(error)

        return steps()

    def _embed_one(self, ids: IntArray) -> Any:
        self._embed_cells = len(ids)
        try:
            for done, vector in embed_steps(self, self._context, ids):
                self._embed_cells = len(ids) - done
                if vector is not None:
                    return vector
                yield done
        finally:
            self._embed_cells = 0


def _answer(future: Future[Any], function: Callable[[], Any]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
