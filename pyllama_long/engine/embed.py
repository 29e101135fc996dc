"""The embedding of a text, in steps between those of running streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from pyllama_long import log
from pyllama_long._native import llama_cpp
from pyllama_long.engine.context import Context
from pyllama_long.engine.pool import Source
from pyllama_long.errors import DecodeError
from pyllama_long.sequence import FloatArray, IntArray

if TYPE_CHECKING:
    from pyllama_long.engine.loop import Loop

_SALT = "\0embedding"  # which no request has


def embed_steps(loop: Loop, context: Context, ids: IntArray) -> Iterator[tuple[int, FloatArray | None]]:
    """Evaluates a text; yields (tokens done, None) after each chunk and at the end (all, vector [n_embd]).

    The vector is the model's own pooling, or, where it has none, the mean of its tokens' vectors; it is not
    normalized. Raises DecodeError, and ValueError for a text that a model which pools cannot take at once.
    """
    pools = llama_cpp.llama_pooling_type(context.ctx) > 0
    n, n_ctx, pool = len(ids), context.n_ctx(), loop.pool
    if pools and n > context.n_batch:
        raise ValueError(f"the text has {n} tokens; this model embeds at most n_batch={context.n_batch}")
    held = pool.begin(Source(), ids, [], n, _SALT, context.rope.factor_for(n, n_ctx))
    try:
        total = np.zeros(llama_cpp.llama_model_n_embd(context.model.model), np.float64)
        while held.n < n:
            streams = sum(job.writing for job in loop.running)
            size = loop.pace.room(held.n, streams, context.n_batch)
            size = n if pools else min(n - held.n, size)
            if size:
                total += _chunk(loop, context, held.seq, ids, held.n, size, pools)
                pool.grown(held, size)
            if held.n < n:
                yield held.n, None
        yield n, (total / (1 if pools else n)).astype(np.float32)
    finally:
        pool.drop(held)


def _chunk(
    loop: Loop, context: Context, seq: int, ids: IntArray, begin: int, n: int, pools: bool
) -> FloatArray:
    """The sum of the vectors of n tokens, or the pooled vector."""
    batch = context.batch
    batch.token[:n], batch.pos[:n] = ids[begin : begin + n], range(begin, begin + n)
    batch.seq[:n], batch.logits[:n] = seq, 1
    if not loop.pool.make_room(n):
        raise DecodeError("there is no room in the KV cache for this text")
    context.want_embeddings(True)
    try:
        if code := context.decode(n):
            raise DecodeError(f"llama.cpp could not evaluate a text: code {code}; {log.complaint()}")
        if pools:
            return np.array(context.pooled(seq))
        return np.asarray(np.sum([context.embedding(row) for row in range(n)], axis=0))
    finally:
        context.want_embeddings(False)
