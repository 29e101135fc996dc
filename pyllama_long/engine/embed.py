"""Embeddings of texts, in steps between those of running streams."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future

import numpy as np

from pyllama_long import log
from pyllama_long._native import llama_cpp
from pyllama_long.arrays import FloatArray, IntArray
from pyllama_long.engine.batching import Batching
from pyllama_long.engine.context import Context
from pyllama_long.engine.pool import Source
from pyllama_long.errors import DecodeError, EngineClosed, NotNumbers

_SALT = "\0embedding"  # no request has this one


class Embedder:
    """waiting: lists of texts with the future of their vectors; cancelling it ends the work within a step."""

    def __init__(self, batching: Batching, context: Context) -> None:
        self._batching, self._context = batching, context
        self.waiting: list[tuple[list[IntArray], Future[list[FloatArray]]]] = []
        self._running: Generator[None, None, None] | None = None
        self._future: Future[list[FloatArray]] = Future()  # of what runs

    @property
    def busy(self) -> bool:
        return self._running is not None or bool(self.waiting)

    @property
    def n_waiting(self) -> int:
        """The number of lists that wait for another one."""
        left = sum(not future.cancelled() for _, future in list(self.waiting))
        return left if self._running is not None else max(0, left - 1)

    def step(self) -> None:
        """Evaluates one chunk, if there is anything to do."""
        if self._running is not None and self._future.cancelled():
            self.stop()
            self._batching.changed = True
        if self._running is None and self.waiting:
            inputs, self._future = self.waiting.pop(0)
            self._running = self._texts(inputs, self._future)
        if self._running is not None:
            try:
                next(self._running)
            except StopIteration:
                self._running = None
                self._batching.changed = True

    def stop(self) -> None:
        """Ends the current work with EngineClosed."""
        if self._running is not None:
            self._running.close()
        self._running = None

    def _texts(self, inputs: list[IntArray], future: Future[list[FloatArray]]) -> Generator[None, None, None]:
        if future.cancelled():
            return
        try:
            vectors = []
            for ids in inputs:
                while self._batching.pool.available() - self._batching.committed < len(ids):
                    yield
                vectors.append((yield from self._text(ids)))
        except GeneratorExit:
            fail(future, EngineClosed())
            raise
        except Exception as error:
            fail(future, error)
        else:
            if future.set_running_or_notify_cancel():
                future.set_result(vectors)

    def _text(self, ids: IntArray) -> Generator[None, None, FloatArray]:
        """The model's own pooling, or, where it has none, the mean of the tokens' vectors. Raises DecodeError, and
        ValueError for a text that a model which pools cannot take at once."""
        batching, context, pool, n = self._batching, self._context, self._batching.pool, len(ids)
        pools = llama_cpp.llama_pooling_type(context.ctx) > 0
        if pools and n > context.n_batch:
            raise ValueError(f"the text has {n} tokens; this model embeds at most n_batch={context.n_batch}")
        held = pool.begin(Source(), ids, [], n, _SALT, context.rope.factor_for(n, context.n_ctx()))
        try:
            total = np.zeros(llama_cpp.llama_model_n_embd(context.model.model), np.float64)
            while held.n < n:
                batching.embedding_cells = n - held.n
                streams = sum(job.writing for job in batching.running)
                size = n if pools else min(n - held.n, batching.pace.room(held.n, streams, context.n_batch))
                if size:
                    total += _chunk(batching, context, held.seq, ids, held.n, size, pools)
                    pool.grown(held, size)
                if held.n < n:
                    yield
            if not np.isfinite(total).all():
                raise NotNumbers("embeddings")
            return (total / (1 if pools else n)).astype(np.float32)
        finally:
            batching.embedding_cells = 0
            pool.drop(held)


def fail(future: Future[list[FloatArray]], error: BaseException) -> None:
    """Gives an error to whoever waits for the vectors, if anybody still does."""
    if future.set_running_or_notify_cancel():
        future.set_exception(error)


def _chunk(
    batching: Batching, context: Context, seq: int, ids: IntArray, begin: int, n: int, pools: bool
) -> FloatArray:
    """The sum of the vectors of n tokens, or the pooled vector."""
    batch = context.batch
    batch.token[:n], batch.pos[:n] = ids[begin : begin + n], np.arange(begin, begin + n)
    batch.seq[:n], batch.logits[:n] = seq, 1
    if not batching.pool.make_room(n):
        raise DecodeError("there is no room in the KV cache for this text")
    context.want_embeddings(True)
    try:
        if code := context.decode(n):
            raise DecodeError(f"llama.cpp could not evaluate a text: code {code}; {log.complaint()}")
        if pools:
            return np.array(context.pooled(seq))
        with np.errstate(invalid="ignore"):  # whoever waits gets this as an error
            return np.asarray(np.sum([context.embedding(row) for row in range(n)], axis=0))
    finally:
        context.want_embeddings(False)
