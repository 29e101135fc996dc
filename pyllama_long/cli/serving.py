"""Runs a server until a signal ends it: its socket, uvicorn, and what it prints when the model is loaded."""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pyllama_long.cli.command_error import CommandError, refused

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from pyllama_long.engine import Engine
    from pyllama_long.server.settings import Settings

_BODIES_S = 1.0  # seconds for the rest of bodies whose requests are refused
_LAST_WORDS_S = 5  # seconds for sending errors to requests that did not end within --drain


def serve(
    config: dict[str, Any],
    settings: Settings,
    host: str,
    port: int,
    tls: tuple[str, str] | None = None,
    max_connections: int = 0,
) -> int:
    """Runs until a signal ends it; returns the exit code. config: fields of EngineConfig."""
    from pyllama_long.engine import Engine, EngineConfig
    from pyllama_long.server.app import create_app

    engine_config = EngineConfig(**config)
    with listen(host, port) as listening:
        app = create_app(settings, lambda progress: Engine(engine_config, on_progress=progress))
        server = _uvicorn(app, settings, tls, max_connections)
        state = app.state.state
        bound, used = listening.getsockname()[:2]

        def on_loaded() -> None:
            if state.error is not None:
                server.should_exit = True
            elif state.status == "ok":
                _tell(
                    state.loaded.engine, settings, bound, f"http{'s' if tls else ''}://{_shown(bound)}:{used}"
                )

        state.on_loaded = on_loaded
        with _signals(server, state, settings.drain_s):
            server.run(sockets=[listening])
    if state.error is not None:
        with refused():
            raise state.error
    # threads inside the library can only be ended with the process
    if state.is_loading or state.lanes.is_busy:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def _uvicorn(
    app: FastAPI, settings: Settings, tls: tuple[str, str] | None, max_connections: int
) -> uvicorn.Server:
    """Raises CommandError if the certificate cannot be used."""
    import uvicorn

    from pyllama_long.server.protocol import limited

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        http=limited(max_connections),
        timeout_graceful_shutdown=math.ceil(settings.drain_s) + _LAST_WORDS_S,
        timeout_keep_alive=30,
        ssl_certfile=None if tls is None else tls[0],
        ssl_keyfile=None if tls is None else tls[1],
    )
    try:
        config.load()
    except OSError as error:
        files = " and ".join(tls or ())
        raise CommandError(
            f"{files} cannot be used as certificate and key: {error.strerror or error}"
        ) from None
    return uvicorn.Server(config)


def _shown(address: str) -> str:
    """An address in the form of URLs."""
    return f"[{address}]" if ":" in address else address


def _tell(engine: Engine, settings: Settings, bound: str, url: str) -> None:
    """Prints that the model is loaded: one line on stdout for programs, and what runs on stderr."""
    from pyllama_long.server import pace
    from pyllama_long.server.security import is_loopback

    try:
        print(f"{settings.model_name} is ready at {url}", flush=True)
    except OSError as error:  # whoever reads it is gone, or the disk is full: clients can still be served
        print(f"{url} cannot be written to stdout: {error.strerror}", file=sys.stderr)
    lines = [_about(engine), pace.example(engine)]
    if not settings.api_keys and not is_loopback(bound):
        lines.append("whoever reaches this address may ask: --api-key-file lets in only who has a key")
    print("\n".join(filter(None, lines)), file=sys.stderr, flush=True)


def _about(engine: Engine) -> str:
    """Lines that describe what runs."""
    times = engine.n_ctx / engine.n_train
    embeddings = "/v1/embeddings, " if engine.config.embedding else ""
    return (
        f"context {engine.n_ctx} tokens, {times:.3g} times the trained {engine.n_train}; "
        f"{engine.config.n_parallel} at once\n"
        f"attention {engine.plan}, rope {engine.rope}\n"
        f"paths: /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages, {embeddings}"
        "/completion, /health"
    )


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket. Raises CommandError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        both = address[0] == "::" and socket.has_dualstack_ipv6()
        listening = socket.create_server(
            address[:2], family=family, backlog=2048, reuse_port=False, dualstack_ipv6=both
        )
    except OSError as error:
        # create_server's message contains the address already
        named = not isinstance(error, socket.gaierror) and error.errno
        reason = os.strerror(named) if named else error.strerror or str(error)
        raise CommandError(
            f"cannot listen at {host}:{port}: {reason}; take another --port or --host"
        ) from None
    with listening:
        yield listening


@contextmanager
def _signals(server: Any, state: Any, drain_s: float) -> Iterator[None]:
    """The first SIGINT or SIGTERM drains, the second stops; neither ends in a traceback."""

    @contextmanager
    def capture() -> Iterator[None]:
        yield

    def after(seconds: float, function: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, function)
        timer.daemon = True
        timer.start()

    def end(seconds: float) -> None:
        after(seconds, state.stop)

    def force() -> None:
        server.force_exit = True

    def on_signal(number: int, _frame: object) -> None:
        if server.should_exit:
            print("stopping", file=sys.stderr, flush=True)
            end(0.0)
            after(_LAST_WORDS_S / 2, force)
            return
        server.should_exit = True
        end(drain_s)
        after(min(drain_s, _BODIES_S), state.lanes.refuse)
        if state.status == "ok":
            state.status = "draining"
        print("finishing what is running; once more stops", file=sys.stderr, flush=True)

    server.capture_signals = capture  # uvicorn's own handler raises the signal again when it has ended
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
