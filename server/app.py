"""The ASGI app: the routes, wrapped in keys, CORS, request ids, logs and metrics."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pyllama_long import __version__

from . import errors, fields, logs, openapi, protocol
from .routes import (
    chat,
    completions,
    embeddings,
    llama_cpp,
    messages,
    models,
    monitoring,
    page,
    responses,
    sessions,
    tokens,
)
from .security import PUBLIC, host_is_allowed
from .settings import Settings
from .state import Loader, State

_REQUEST_ID = re.compile(rb"^[\x21-\x7e]{1,128}$")


def create_app(settings: Settings, loader: Loader) -> FastAPI:
    """Makes the app. loader: opens the engine in a thread when the app starts."""
    state = State(settings, loader)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        state.load()
        yield
        await asyncio.to_thread(state.close)

    app = FastAPI(title="pyllama-long", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.state, app.state.max_body = state, settings.max_body
    apis = (
        chat,
        completions,
        responses,
        messages,
        llama_cpp,
        tokens,
        sessions,
        models,
        embeddings,
        monitoring,
    )
    for module in (*apis, page) if settings.page else apis:
        app.include_router(module.router)
    errors.install(app)
    openapi.install(app, with_keys=bool(settings.api_keys))
    app.add_middleware(_Guard, state=state)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After", fields.HEADER],
        )
    app.add_middleware(_Observed, state=state)
    return app


class _Guard:
    """Admits requests that were sent to an allowed host name and, if keys are required, have one."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if not host_is_allowed(scope, self._state.settings.allowed_hosts):
            message = "This server does not answer to that host name; --allowed-host lets it."
            refused = errors.ApiError(403, message, code="host_not_allowed")
            await errors.reply(refused, scope["path"], scope.get("request_id"))(scope, receive, send)
            return
        salt = self._state.keys.salt(scope)
        if salt is None and scope["path"] not in PUBLIC:
            message = "An API key is needed: send it as Authorization: Bearer KEY, or as X-Api-Key."
            error = errors.ApiError(401, message, code="invalid_api_key")
            answer = errors.reply(error, scope["path"], scope.get("request_id"))
            answer.headers["WWW-Authenticate"] = "Bearer"
            await answer(scope, receive, send)
            return
        scope["salt"] = salt or ""
        self._state.lanes.begin(scope)
        await self._app(scope, receive, send)


class _Observed:
    """Gives each request an id, a line in the log and an entry in the metrics; turns uncaught errors into error
    objects."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        scope["request_id"] = given.decode() if _REQUEST_ID.match(given) else f"req_{uuid.uuid4().hex}"
        status, started, gone = 0, time.monotonic(), False

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = scope["request_id"]
                headers.setdefault("X-Content-Type-Options", "nosniff")
                scope[protocol.EVENTS] = headers.get("content-type", "").startswith("text/event-stream")
            await send(message)

        try:
            names = [name for name, _ in scope["headers"]]
            if b"transfer-encoding" in names and b"content-length" in names:
                both = errors.bad("Both Content-Length and Transfer-Encoding: send one.", code="two_lengths")
                answer = errors.reply(both, scope["path"], scope["request_id"])
                answer.headers["Connection"] = "close"
                await answer(scope, receive, sending)
            else:
                await self._app(scope, receive, sending)
        except asyncio.CancelledError:
            gone = True
            if status == 0 and self._state.status == "draining":
                ended = errors.ApiError(
                    503, "The server is shutting down.", code="shutting_down", retry_after=5
                )
                await errors.reply(ended, scope["path"], scope["request_id"])(scope, receive, sending)
            else:
                raise
        except Exception as error:
            if isinstance(error, OSError) and status:
                gone = True
            elif status == 0:
                answer = errors.reply(errors.from_engine(error), scope["path"], scope["request_id"])
                await answer(scope, receive, sending)
            else:
                raise
        finally:
            self._note(scope, status, time.monotonic() - started, gone)

    def _note(self, scope: Scope, status: int, seconds: float, gone: bool) -> None:
        route: Any = scope.get("route")
        name = getattr(route, "path", "other")
        self._state.metrics.http(name, scope["method"], status, seconds)
        if name in ("/health", "/metrics"):
            return
        client = scope.get("client")
        logs.event(
            "request",
            request_id=scope["request_id"],
            method=scope["method"],
            route=name,
            status=status,
            seconds=round(seconds, 4),
            client=client[0] if client else None,
            **({"client_gone": True} if gone else {}),
        )
