"""A server on loopback, in a thread, whose every response is checked against the OpenAPI that it publishes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from jsonschema import Draft202012Validator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pyllama_long.cli.serving import listen
from pyllama_long.engine import Engine, EngineConfig
from pyllama_long.server.app import create_app
from pyllama_long.server.protocol import Protocol
from pyllama_long.server.settings import Settings


@dataclass
class Server:
    """faults: parts of responses that the OpenAPI does not allow."""

    url: str
    app: FastAPI
    keys: tuple[str, ...]
    faults: list[str] = field(default_factory=list)

    @property
    def engine(self) -> Engine:
        engine: Engine = self.app.state.state.loaded.engine
        return engine

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def cancelled(self, n: int, seconds: float = 5.0) -> None:
        """Waits until n requests have been cancelled since the start, and nothing runs."""
        end = time.monotonic() + seconds
        while self.engine.stats().cancelled < n and time.monotonic() < end:
            time.sleep(0.01)
        self.quiet()
        assert self.engine.stats().cancelled == n

    def quiet(self, seconds: float = 5.0) -> None:
        """Waits until nothing runs."""
        end = time.monotonic() + seconds
        while (stats := self.engine.stats()).running + stats.waiting and time.monotonic() < end:
            time.sleep(0.01)
        assert stats.running + stats.waiting == 0


@contextmanager
def running(
    config: EngineConfig, settings: Settings | None = None, protocol: type[Protocol] = Protocol
) -> Iterator[Server]:
    """A server that has loaded its model."""
    settings = settings or Settings(model_name="demo")
    app = create_app(settings, lambda progress: Engine(config, on_progress=progress))
    with listen("127.0.0.1", 0) as listening:
        server = Server(f"http://127.0.0.1:{listening.getsockname()[1]}", app, settings.api_keys)
        options = uvicorn.Config(
            _Checked(app, server.faults),
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=5,
            http=protocol,
        )
        uvicorn_server = uvicorn.Server(options)
        thread = threading.Thread(target=uvicorn_server.run, args=([listening],))
        thread.start()
        try:
            with server.client() as client:
                end = time.monotonic() + 30
                while client.get("/health").status_code != 200:
                    assert time.monotonic() < end, app.state.state.error
                    time.sleep(0.02)
            yield server
        finally:
            uvicorn_server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
    assert not server.faults, server.faults[0]


class _Checked:
    """Checks responses against the app's OpenAPI."""

    def __init__(self, app: FastAPI, faults: list[str]) -> None:
        self._app: ASGIApp = app
        self._openapi, self._faults = app.openapi(), faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, kind, body = 0, "", bytearray()

        async def sending(message: Message) -> None:
            nonlocal status, kind
            if message["type"] == "http.response.start":
                status = message["status"]
                kind = dict(message["headers"]).get(b"content-type", b"").decode().partition(";")[0]
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                if not message.get("more_body") and "route" in scope:
                    path = scope["route"].path
                    methods = self._openapi["paths"].get(path, {})
                    operation = methods.get(scope["method"].lower())
                    if operation is not None:
                        self._check(operation, status, kind, bytes(body))
            await send(message)

        await self._app(scope, receive, sending)

    def _check(self, operation: dict[str, Any], status: int, kind: str, body: bytes) -> None:
        found = operation["responses"]
        content = found.get(str(status), found["default"]).get("content", {})
        if not content and kind == "text/plain":
            return
        if kind not in content:
            self._faults.append(
                f"{operation['operationId']}: {status} {kind} is not described: {body[:200]!r}"
            )
            return
        schema = content[kind]["schema"]
        if kind == "text/event-stream":
            for line in body.decode().split("\n"):
                if line.startswith("data: ") and line != "data: [DONE]":
                    self._validate(operation, schema["x-events"], json.loads(line[6:]))
        elif kind == "application/json":
            self._validate(operation, schema, json.loads(body))

    def _validate(self, operation: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
        whole = {**schema, "components": self._openapi["components"]}
        for error in Draft202012Validator(whole).iter_errors(value):
            self._faults.append(f"{operation['operationId']}: {error.message[:600]} in {str(value)[:600]}")


def events(response: httpx.Response) -> list[Any]:
    """The JSON of a stream's events; the stream must have ended properly."""
    lines = [line for line in response.text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]", response.text[-300:]
    return [json.loads(line[6:]) for line in lines[:-1]]
