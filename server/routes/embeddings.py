"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
from concurrent.futures import Future
from typing import Any

import numpy as np
from fastapi import APIRouter, Request

from .. import fields, lanes
from ..body import StrictRoute
from ..connection import while_connected
from ..errors import bad, from_engine
from ..schemas.embeddings import Embedding, EmbeddingReply, EmbeddingRequest, EmbeddingUsage
from ..state import state_of
from .completions import prompts, tokens_of

router = APIRouter(route_class=StrictRoute)


@router.post("/embedding", include_in_schema=False)
@router.post("/embeddings", include_in_schema=False)
@router.post("/v1/embeddings", response_model=EmbeddingReply, tags=["OpenAI"])
async def embeddings(request: EmbeddingRequest, http: Request) -> EmbeddingReply:
    fields.check(request, http)
    state = state_of(http)
    loaded = state.loaded
    if not loaded.engine.config.embedding:
        raise bad("This server gives no embeddings: start it with --embeddings.", code="no_embeddings")
    inputs = prompts(request.input)

    def start() -> tuple[int, Future[list[Any]]]:
        tokens = [tokens_of(loaded, one, special=False, param="input") for one in inputs]
        return sum(map(len, tokens)), loaded.engine.start_embedding(tokens)

    async def work() -> tuple[int, list[Any]]:
        starting = lanes.start(start)
        try:
            n_tokens, future = await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_cancel_started)
            raise
        # This does not block a thread, since other requests need them.
        return n_tokens, await asyncio.wrap_future(future)

    try:
        n_tokens, vectors = await while_connected(http, work())
    except Exception as error:
        raise from_engine(error, "input") from None
    if request.dimensions not in (None, len(vectors[0])):
        raise bad(f"dimensions: this model gives {len(vectors[0])}.", "dimensions")
    data = [
        Embedding(
            index=i, embedding=_encoded(scaled(vector, request.embd_normalize), request.encoding_format)
        )
        for i, vector in enumerate(vectors)
    ]
    usage = EmbeddingUsage(prompt_tokens=n_tokens, total_tokens=n_tokens)
    return EmbeddingReply(data=data, model=state.settings.model_name, usage=usage)


def scaled(vector: Any, norm: int) -> Any:
    """Normalizes a vector by llama-server's numbers: -1: not at all; 0: so that the largest value is 32,760; p: so
    that its p-norm is 1. Zeros stay zeros."""
    values = np.asarray(vector, np.float64)
    largest = np.abs(values).max(initial=0.0)
    if norm < 0 or largest == 0:
        return values
    if norm == 0:
        return values / largest * 32760
    values = values / largest  # so that powers of large values do not overflow
    return values / (np.abs(values) ** norm).sum() ** (1 / norm)


def _cancel_started(starting: asyncio.Future[tuple[int, Future[list[Any]]]]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        starting.result()[1].cancel()


def _encoded(vector: Any, encoding: str | None) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
    return [float(value) for value in vector]
