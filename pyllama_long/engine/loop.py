"""The thread that owns the context: it admits requests, and evaluates one batch after another for all of them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from pyllama_long.arrays import FloatArray, IntArray
from pyllama_long.engine.batching import Batching
from pyllama_long.engine.config import EngineConfig
from pyllama_long.engine.context import Context
from pyllama_long.engine.embed import Embedder, fail
from pyllama_long.engine.job import Job
from pyllama_long.engine.pace import Pace
from pyllama_long.engine.queue import Queue
from pyllama_long.engine.stats import EngineStats
from pyllama_long.engine.step import Step
from pyllama_long.engine.store import Store
from pyllama_long.errors import DecodeError, EngineClosed, EngineFailed, QueueFull

logger = logging.getLogger("pyllama_long.engine")
T = TypeVar("T")
_IDLE_S = 2.0  # without work, after which idle sequences are copied to the store
_MAX_ERRORS = 8  # unexpected errors in a row before the engine gives up


class Loop:
    """`submit`, `call`, `embed`, `wake`, `stats` and `close` may be called from any thread, the rest only from its
    own."""

    def __init__(self, config: EngineConfig, context: Context, store: Store) -> None:
        self._config, self._context, self._store = config, context, store
        self.batching = Batching(context, store, Pace(config.step_ms / 1000, config.prefill_share))
        self._masks = ThreadPoolExecutor(1, "pyllama-long-masks")  # computes the masks of grammars
        self._lock = threading.Condition()
        self._arrived: list[Job] = []
        self._calls: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._woken = False
        self._deadline: float | None = None  # of closing
        self._users_s: float | None = None
        self._ended = False
        self._queue = Queue(self.batching, context, store, config.n_parallel, self.wake)
        self._embedder = Embedder(self.batching, context)
        self._errors = 0
        self._open_step = self._stopped = False
        self._last_step, self._resting = time.monotonic(), False
        self.failure: str | None = None  # why the thread has failed
        self._thread = threading.Thread(target=self._run, name="pyllama-long-engine", daemon=True)
        self._thread.start()

    # ---- from any thread -----------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Raises QueueFull and EngineClosed."""
        with self._lock:
            self.check_open()
            n = len(self._arrived) + len(self._queue)
            slots = max(0, self._config.n_parallel - len(self.batching.running))
            if n >= slots:
                self._check_room(n - slots, n)
            self._arrived.append(job)
            self._stop_step()
        self.wake()

    def _stop_step(self) -> None:
        """Ends the step that is being evaluated, or about to be, if it may be ended. Called with the lock held."""
        if self._open_step and self._has_slot:
            self._open_step, self._stopped = False, True
            self._context.stop(True)

    @property
    def _has_slot(self) -> bool:
        return len(self.batching.running) < self._config.n_parallel

    def _check_room(self, excess: int, n: int) -> None:
        """Raises QueueFull. excess: how many of the n requests have to wait for others."""
        embeddings = self._embedder.n_waiting
        if excess + embeddings >= self._config.max_queue:
            seconds = self.batching.counters.request_s * (n + embeddings + 1) / self._config.n_parallel
            raise QueueFull(n + embeddings, min(600.0, max(1.0, seconds)))

    def call(self, function: Callable[[], T]) -> T:
        """Runs a function on the loop's thread, between two steps, and returns what it returns."""
        future: Future[T] = Future()
        self.check_open()  # before taking the lock, which is never released after a fork
        with self._lock:
            self.check_open()
            self._calls.append((function, future))
        self.wake()
        return future.result()

    def embed(self, inputs: list[IntArray]) -> Future[list[FloatArray]]:
        """Raises QueueFull and EngineClosed."""
        future: Future[list[FloatArray]] = Future()
        self.check_open()
        with self._lock:
            self.check_open()
            if self._embedder.busy:
                n = len(self._arrived) + len(self._queue)
                self._check_room(max(0, n + len(self.batching.running) - self._config.n_parallel), n)
            self._embedder.waiting.append((inputs, future))
        self.wake()
        return future

    def wake(self) -> None:
        if self._context.forked:
            return
        with self._lock:
            self._woken = True
            self._lock.notify_all()

    def close(self, drain_s: float, users_s: float | None = None) -> None:
        """Takes no more requests, goes on with those that are there for up to drain_s seconds, then ends. users_s:
        the longest wait for other threads that use the model.

        Does nothing after a fork: the thread and everything that it holds belong to the parent."""
        if self._context.forked:
            return
        with self._lock:
            deadline = time.monotonic() + drain_s
            self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)
            self._users_s = users_s if self._users_s is None else self._users_s
        self.wake()
        if threading.current_thread() is not self._thread:  # it may be this thread that collects garbage
            self._thread.join()

    def stats(self) -> EngineStats:
        pool, store, c = self.batching.pool, self._store, self.batching.counters
        idle = [held.seq for held in list(pool.held.values()) if not held.busy]
        kept = {key: value for key, value in vars(c).items() if key != "request_s"}
        return EngineStats(
            running=len(self.batching.running),
            waiting=len(self._arrived) + len(self._queue) + self._embedder.n_waiting,
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
            checkpoints=len(store.checkpoints),
            checkpoint_bytes=store.checkpoint_bytes,
            checkpoint_hits=store.checkpoint_hits,
            **kept,
        )

    def check_open(self) -> None:
        """Raises EngineClosed."""
        self._context.check_process()
        if self.failure is not None:
            raise EngineFailed(self.failure)
        if self._deadline is not None or self._ended:
            raise EngineClosed

    @property
    def last_step(self) -> float:
        """When the thread last began a step, by time.monotonic; now, while it has nothing to do."""
        return time.monotonic() if self._resting else self._last_step

    @property
    def has_work(self) -> bool:
        """Whether anybody is waiting for the thread."""
        return bool(
            self.batching.running or self._arrived or self._calls or len(self._queue) or self._embedder.busy
        )

    # ---- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        reason = EngineClosed("the engine was closed before the request was finished")
        try:
            while self._go_round():
                pass
        except BaseException as error:
            logger.exception("the engine ends")
            self.failure = f"the engine has failed: {error}"
            reason = EngineFailed(self.failure)
        finally:
            self._end(reason)

    def _go_round(self) -> bool:
        """Runs one step and the work around it; False when the engine is to end."""
        with self._lock:
            idle, self._resting = False, True
            while not (self._woken or self.batching.running or self._embedder.busy or self._queue.ready):
                idle = not self._lock.wait(self._patience())
                if idle or self._deadline is not None:
                    break
            self.batching.step_began, self._last_step, self._resting = (
                time.perf_counter(),
                time.monotonic(),
                False,
            )
            self._woken = False
            arrived, self._arrived = self._arrived, []
            calls, self._calls = self._calls, []
            self._queue.add(arrived)
        for function, future in calls:
            _answer(future, function)
        try:
            if idle and self._deadline is None:
                self.batching.pool.copy_ahead()
            self._drop_cancelled()
            self._queue.admit()
            self._queue.report_places(arrived)
            self._embedder.step()
            if self.batching.running:
                self._step()
            self._errors = 0
        except Exception as error:
            self._errors += 1
            logger.exception("a step of the engine failed")
            self._start_over(error)
            if self._errors > _MAX_ERRORS:
                raise
        if self._deadline is None:
            return True
        work = self.batching.running or len(self._queue) or self._embedder.busy
        return bool(work) and time.monotonic() < self._deadline

    def _step(self) -> None:
        try:
            Step(self.batching, self._context).run(self._masks, self._interruptible)
        finally:
            self._queue.add(self.batching.take_again())

    @contextmanager
    def _interruptible(self, may_stop: bool) -> Iterator[Callable[[], bool]]:
        """Wraps an evaluation that a new request may end, so that it does not wait for a chunk of a long prompt. Two
        in a row are never ended, so that the long prompt progresses. Yields a function that tells whether it was
        ended."""
        with self._lock:
            self._open_step = may_stop and not self.batching.was_stopped
            self._stopped = False
            if self._arrived:
                self._stop_step()
        try:
            yield lambda: self._stopped
        finally:
            with self._lock:
                self._open_step = False
                if self._stopped:
                    self._context.stop(False)
            if may_stop:
                self.batching.was_stopped = self._stopped

    def _patience(self) -> float | None:
        """Seconds until there is something to do without a request."""
        if self._deadline is not None:
            return 0.05
        return _IDLE_S if self.batching.pool.has_uncopied else None

    def _drop_cancelled(self) -> None:
        for job in [job for job in self.batching.running if job.handle.cancelled]:
            self.batching.finish(job, "cancelled")
        for job in self._queue.remove_cancelled():
            self.batching.close(job, "cancelled")

    # ---- the end of requests -------------------------------------------------------------------------------

    def _start_over(self, error: Exception) -> None:
        """Fails every running request and empties the cells, after an unexpected error."""
        failed = self.batching.running[:]
        try:
            self._embedder.stop()
        except Exception:
            logger.exception("a text that was embedded could not be ended")
        try:
            self.batching.start_over()
        finally:
            for job in failed:
                self.batching.counters.failed += 1
                self._fail(job, DecodeError(f"the engine met an error: {error}"))

    def _fail(self, job: Job, reason: Exception) -> None:
        """Gives the reason to whoever waits for the request, whatever else goes wrong."""
        job.handle.fail(reason)
        try:
            job.close()
        except Exception:
            logger.exception("a sampler could not be freed")

    def _end(self, reason: EngineClosed) -> None:
        with self._lock:
            self._ended = True
            waiting = self._queue.clear() + self._arrived
            self._arrived = []
        for job in [*waiting, *self.batching.running]:
            self._fail(job, reason)
        for _, future in self._calls:
            future.set_exception(reason)
        self._calls.clear()
        for _, waiting_one in self._embedder.waiting:
            fail(waiting_one, reason)
        self._embedder.waiting.clear()
        self._masks.shutdown()
        try:
            self._embedder.stop()
            for job in self.batching.running:
                if job.held is not None:
                    self.batching.pool.release(job.held)
            self.batching.running.clear()
            if self._store.keeps_files:
                for held in self.batching.pool.idle:
                    self.batching.pool.spill(held)
                self._store.flush()
            self.batching.pool.drop_all(self.batching.pool.held.values())
        except Exception:
            logger.exception("idle sequences could not be kept")
        finally:
            self.batching.running.clear()
            self._store.close()
            self._context.close(self._users_s)


def _answer(future: Future[Any], function: Callable[[], Any]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
