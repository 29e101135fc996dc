"""/v1/models, /v1/embeddings, /health, /metrics, /props and the page."""

from __future__ import annotations

import asyncio
import base64
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from pyllama_long import __version__

from .. import fields, lanes, metrics
from ..body import StrictRoute
from ..errors import ApiError, bad, from_engine
from ..run import while_connected
from ..schemas.tools import (
    Embedding,
    EmbeddingReply,
    EmbeddingRequest,
    EmbeddingUsage,
    Health,
    ModelInfo,
    ModelList,
    Props,
)
from ..state import Loaded, state_of
from .completions import prompts, tokens_of

router = APIRouter(route_class=StrictRoute)
_STUCK_S = 30.0  # without a turn of the engine; one step on a slow machine takes seconds
_WEB = Path(__file__).resolve().parent.parent / "web"
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:"


@router.get("/models", include_in_schema=False)
@router.get("/v1/models", response_model=ModelList, tags=["OpenAI"])
async def models(http: Request) -> ModelList:
    state = state_of(http)
    return ModelList(data=[_model(state.settings.model_name, state.loaded)])


@router.get("/models/{model:path}", include_in_schema=False)
@router.get("/v1/models/{model:path}", response_model=ModelInfo, tags=["OpenAI"])
async def model(model: str, http: Request) -> ModelInfo:
    state = state_of(http)
    if model != state.settings.model_name:
        raise ApiError(404, f"There is no model {model[:64]!r} here.", param="model", code="model_not_found")
    return _model(state.settings.model_name, state.loaded)


def _model(name: str, loaded: Loaded) -> ModelInfo:
    engine = loaded.engine
    meta = {"n_ctx": engine.n_ctx, "n_ctx_train": engine.n_train, "n_vocab": engine.n_vocab}
    return ModelInfo(id=name, created=loaded.created, meta=meta)


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
        # No thread waits: other requests need them.
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
    """A vector as llama-server's numbers of norms ask: -1 as it is, 0 so that the largest is 32,760, p so that
    its p-norm is 1. Zeros stay zeros."""
    values = np.asarray(vector, np.float64)
    largest = np.abs(values).max(initial=0.0)
    if norm < 0 or largest == 0:
        return values
    if norm == 0:
        return values / largest * 32760
    values = values / largest  # powers of large values are no overflow
    return values / (np.abs(values) ** norm).sum() ** (1 / norm)


def _cancel_started(starting: asyncio.Future[tuple[int, Future[list[Any]]]]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        starting.result()[1].cancel()


def _encoded(vector: Any, encoding: str | None) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
    return [float(value) for value in vector]


@router.head("/v1/health", include_in_schema=False)
@router.head("/health", include_in_schema=False)
@router.get("/v1/health", include_in_schema=False)
@router.get("/health", response_model=Health, tags=["state"], responses={503: {"model": Health}})
async def health(http: Request) -> Response:
    state = state_of(http)
    status: Literal["ok", "loading", "failed", "draining", "stuck"] = state.status
    if status == "ok" and state.engine_failed:
        status = "failed"
    elif status == "ok" and state.stuck_s() > _STUCK_S:
        status = "stuck"
    found = Health(status=status, progress=state.progress)
    headers = {} if status == "ok" else {"Retry-After": "2"}
    return JSONResponse(found.model_dump(), 200 if status == "ok" else 503, headers)


@router.get("/metrics", tags=["state"], response_class=Response)
async def prometheus(http: Request) -> Response:
    """Metrics in Prometheus's text format."""
    text = await lanes.run(state_of(http).metrics.text)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


@router.get("/props", response_model=Props, tags=["llama.cpp"])
async def props(http: Request) -> Props:
    state = state_of(http)
    loaded = state.loaded
    engine = loaded.engine
    return Props(
        model=state.settings.model_name,
        total_slots=engine.config.n_parallel,
        n_ctx=engine.n_ctx,
        n_ctx_train=engine.n_train,
        n_vocab=engine.n_vocab,
        attention=str(engine.plan),
        rope=str(engine.rope),
        overflow=state.settings.overflow,
        embeddings=engine.config.embedding,
        chat_template=engine.chat_template,
        default_generation_settings={"n_ctx": engine.n_ctx, "temperature": state.settings.temperature},
        explain=engine.explain(),
        stats=metrics.numbers(engine.stats()),
        version=__version__,
    )


def _file(name: str, kind: str) -> FileResponse:
    headers = {
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    return FileResponse(_WEB / name, media_type=kind, headers=headers)


page = APIRouter(include_in_schema=False)


@page.head("/")
@page.get("/")
async def index() -> Response:
    return _file("index.html", "text/html")


@page.get("/web/app.js")
async def script() -> Response:
    return _file("app.js", "text/javascript")


@page.get("/web/style.css")
async def style() -> Response:
    return _file("style.css", "text/css")
