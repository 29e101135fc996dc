"""Threads that prepare requests: a lane for small bodies and one for large ones, limited per client."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, TypeVar

from starlette.types import Receive, Scope

from .errors import ApiError

T = TypeVar("T")
_LARGE = 1 << 16  # bodies from this many bytes on use the large lane
_SMALL_THREADS, _LARGE_THREADS = 6, 2
_PER_CLIENT = (
    512,
    32,
)  # pieces of work of one key or address that run or wait, in the small and the large lane
_MAX_WORK = (2048, 128)  # the same for all clients together
_current: contextvars.ContextVar[Work | None] = contextvars.ContextVar("work", default=None)


class Lanes:
    """The lanes of one server. `enter` is called by its event loop, `refuse` and `stop` by any thread."""

    def __init__(self, timeout_s: float = 0.0) -> None:
        self.timeout_s, self.stopped, self.refuses = timeout_s, False, False
        self._pools = (
            ThreadPoolExecutor(_SMALL_THREADS, "small"),
            ThreadPoolExecutor(_LARGE_THREADS, "large"),
        )
        gate = threading.Event()
        for pool, n in zip(self._pools, (_SMALL_THREADS, _LARGE_THREADS), strict=True):
            for _ in range(n):  # all threads exist from the beginning
                pool.submit(gate.wait)
        gate.set()
        self._waiting: dict[asyncio.Task[Any], asyncio.AbstractEventLoop] = {}
        # tasks that wait for their body
        self._bodies: dict[asyncio.Task[Any], asyncio.AbstractEventLoop] = {}
        self._there: Counter[tuple[bool, str]] = Counter()
        self._lock = threading.Lock()

    def begin(self, scope: Scope) -> None:
        """Begins one piece of work, to which everything belongs that this request's task prepares from now on."""
        client = scope.get("client")
        address = client[0] if client else ""
        salt = scope.get("salt", "")
        _current.set(Work(self, address if salt in ("", "public") else salt))

    def enter(self, work: Work, function: Callable[[], T]) -> Future[T]:
        """Raises ApiError, 429 or 503, if a lane is full."""
        large = work.n_bytes >= _LARGE
        place = (large, work.client)
        with self._lock:
            if self.stopped:
                raise _stopping()
            if self._there[place] >= _PER_CLIENT[large]:
                message = "Too many of your requests are being prepared: wait for some of them."
                raise ApiError(429, message, type="rate_limit_error", code="too_many_requests", retry_after=2)
            if sum(n for (lane, _), n in self._there.items() if lane == large) >= _MAX_WORK[large]:
                raise ApiError(503, "The server is busy: try again later.", code="busy", retry_after=2)
            self._there[place] += 1

        def left(_: Future[T]) -> None:
            with self._lock:
                self._there[place] -= 1
                if not self._there[place]:
                    del self._there[place]

        future = self._pools[large].submit(function)
        future.add_done_callback(left)
        return future

    def refuse(self) -> None:
        """Stops waiting for bodies, since their requests would not be started any more."""
        self.refuses = True
        self._end_all(self._bodies)

    def stop(self) -> None:
        """Cancels waiting work; running work ends at its next `check`, without being waited for."""
        self.stopped = self.refuses = True
        self._end_all(self._bodies | self._waiting)
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)

    def _end_all(self, tasks: dict[asyncio.Task[Any], asyncio.AbstractEventLoop]) -> None:
        for task, loop in list(tasks.items()):
            with suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(self._end, task)

    def _end(self, task: asyncio.Task[Any]) -> None:
        if task in self._waiting or task in self._bodies:
            task.cancel()

    @contextmanager
    def until_stop(self, for_body: bool = False) -> Iterator[None]:
        """Wraps something that a task waits for: `stop` ends the wait, and so does `refuse` if it is for a body.
        Raises ApiError (503) then."""
        task, waiting = asyncio.current_task(), self._bodies if for_body else self._waiting
        if self.stopped or (for_body and self.refuses):
            raise _stopping()
        if task is not None:
            waiting[task] = asyncio.get_running_loop()
        try:
            yield
        except asyncio.CancelledError:
            if self.stopped or (for_body and self.refuses):
                raise _stopping() from None
            raise
        finally:
            if task is not None:
                waiting.pop(task, None)

    @property
    def is_busy(self) -> bool:
        with self._lock:
            return bool(self._there)


class Work:
    """The preparation of one request. n_bytes: of its body. receive: tells when the client disconnects."""

    def __init__(self, lanes: Lanes, client: str) -> None:
        self.lanes, self.client, self.n_bytes = lanes, client, 0
        self.receive: Receive | None = None
        self.cancelled = False
        self._started = time.monotonic()

    def check(self) -> None:
        """Raises ApiError if nobody waits for the work any more, or if it is late."""
        if self.cancelled:
            raise ApiError(499, "The client has gone.", code="client_closed_request")
        if self.lanes.stopped:
            raise _stopping()
        if (left := self.left_s()) is not None and left <= 0:
            message = f"Preparing the request took longer than the limit of {self.lanes.timeout_s:g} s."
            raise ApiError(408, message, type="timeout_error", code="timeout")

    def left_s(self) -> float | None:
        limit = self.lanes.timeout_s
        return limit - (time.monotonic() - self._started) if limit else None

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        future = start(function, *args)
        waited: set[asyncio.Future[Any]] = {future}
        watch = None if self.receive is None else asyncio.ensure_future(_gone(self.receive))
        if watch is not None:
            waited.add(watch)
        try:
            with self.lanes.until_stop():
                await asyncio.wait(waited, timeout=self.left_s(), return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                late = watch is None or not watch.done()
                if not late:
                    self.cancelled = True
                self.check()
            return await future
        except asyncio.CancelledError:
            self.cancelled = not self.lanes.stopped
            self.check()  # a lane that was stopped has cancelled it
            raise
        finally:
            if watch is not None:
                watch.cancel()
            if not future.done():
                self.cancelled = True
                future.cancel()


def _stopping() -> ApiError:
    return ApiError(503, "The server is shutting down.", code="shutting_down", retry_after=5)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def until_refused() -> AbstractContextManager[None]:
    """`Lanes.until_stop` for the current request's body."""
    work = _current.get()
    return nullcontext() if work is None else work.lanes.until_stop(for_body=True)


def received(n_bytes: int, receive: Receive) -> None:
    """Notes that the body of the current request has arrived."""
    work = _current.get()
    if work is not None:
        work.n_bytes, work.receive = n_bytes, receive


def check() -> None:
    """To be called by work in a thread between two pieces of it. Raises ApiError if it must end."""
    work = _current.get()
    if work is not None:
        work.check()


def is_over() -> bool:
    """Like `check`, for code with errors of its own: whether work in a thread must end."""
    try:
        check()
    except ApiError:
        return True
    return False


def start(function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
    """Begins work in the current request's lane. Raises ApiError."""
    work = _current.get()
    context = contextvars.copy_context()
    if work is None:
        return asyncio.get_running_loop().run_in_executor(None, lambda: context.run(function, *args))
    work.check()
    return asyncio.wrap_future(work.lanes.enter(work, lambda: context.run(function, *args)))


async def run(function: Callable[..., T], *args: Any) -> T:
    """Calls `start` and waits for its result. Raises ApiError when the client disconnects, or the time limit is
    over."""
    work = _current.get()
    if work is None:
        return await asyncio.to_thread(function, *args)
    return await work.run(function, *args)
