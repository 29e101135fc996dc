"""`serve`: an HTTP server with the routes of OpenAI, Anthropic and llama.cpp."""

from __future__ import annotations

import math
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyllama_long.cli import common
from pyllama_long.cli.common import CommandError, ModelOptions

if TYPE_CHECKING:
    from pyllama_long.engine import Engine
    from pyllama_long.server.settings import Settings

EXAMPLES = """\b
[b]Examples[/b]
  pyllama-long serve -m model.gguf --ctx 131072
  pyllama-long serve -m model.gguf --parallel 8 --api-key-file keys.txt --host 0.0.0.0
  pyllama-long serve --hf ggml-org/gemma-3-1b-it-GGUF --cache-dir ~/.cache/pyllama-long --cache-disk 20
\b
  Ctrl-C finishes what is running, twice stops. The page for people is at /.
"""

_NET, _SAFE, _LOAD = "Network", "Keys and limits", "Load"
_LEVELS = ("debug", "info", "warning", "error")
_OVERFLOWS = ("error", "shift", "summarize", "retrieve")
_GIB = 1 << 30
_BODIES_S = 1.0  # for the rest of bodies; their requests are refused
_LAST_WORDS_S = 5  # for writing the errors of what did not end within --drain
_UP_TO_1E6 = {"min": 0.0, "max": 1e6}  # neither inf nor nan


def _overflow(value: str) -> str:
    if value not in _OVERFLOWS:
        raise typer.BadParameter(f"{value!r}; known: {', '.join(_OVERFLOWS)}")
    return value


def _log_level(value: str) -> str:
    if value not in _LEVELS:
        raise typer.BadParameter(f"{value!r}; known: {', '.join(_LEVELS)}")
    return value


def _address(value: str) -> str:
    return value[1:-1] if value.startswith("[") and value.endswith("]") else value


def _origins(values: list[str] | None) -> list[str]:
    """As browsers write them; others would never be those of a page."""
    found = [value.rstrip("/").lower() for value in values or ()]
    for value in found:
        if value not in ("*", "null") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/?#@]+", value):
            raise typer.BadParameter(f"{value!r} is no origin: write https://name or http://name:port, or *")
    return found


def _names(values: list[str] | None) -> list[str]:
    for value in values or ():
        if value != "*" and not re.fullmatch(r"[^\s/:?#@]+", value):
            raise typer.BadParameter(f"{value!r} is no name of a host: leave out scheme, port and path")
    return list(values or ())


def _option(*names: str, panel: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, help=help, **more)


def command(
    model: common.Model = None,
    hub: common.Hub = None,
    attention: common.Attention = "auto",
    rope: common.Rope = "auto",
    ctx: common.Ctx = 0,
    kv_type: common.KvType = "f16",
    precision: common.Precision = "auto",
    threads: common.Threads = 0,
    lora: common.Loras = None,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Give embeddings too.", rich_help_panel="Model")
    ] = False,
    host: Annotated[
        str, _option(panel=_NET, help="Address to listen at.", callback=_address, metavar="ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[int, _option(panel=_NET, help="0: a free one.", min=0, max=65535, metavar="N")] = 8080,
    alias: Annotated[str, _option(panel=_NET, help="The model's name for clients.", metavar="NAME")] = "",
    cors_origin: Annotated[
        list[str] | None,
        _option(
            panel=_NET,
            help="A web page's origin that may ask, as https://name; *: any; repeatable.",
            callback=_origins,
            metavar="ORIGIN",
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        _option(
            panel=_NET,
            help="A name that requests may come to; without keys on this machine only localhost is. *: any.",
            callback=_names,
            metavar="NAME",
        ),
    ] = None,
    ssl_certfile: Annotated[
        Path | None, _option(panel=_NET, help="Certificate, for https.", metavar="FILE")
    ] = None,
    ssl_keyfile: Annotated[Path | None, _option(panel=_NET, help="Its key.", metavar="FILE")] = None,
    api_key: Annotated[
        list[str] | None, _option(panel=_SAFE, help="A key that opens; repeatable.", metavar="KEY")
    ] = None,
    api_key_file: Annotated[
        Path | None, _option(panel=_SAFE, help="Keys, one a line.", metavar="FILE")
    ] = None,
    max_body: Annotated[int, _option(panel=_SAFE, help="Largest request, MiB.", min=1, metavar="N")] = 64,
    max_connections: Annotated[
        int,
        _option(
            panel=_SAFE,
            help="Most connections, half of them for one address; 0: as many as open files allow.",
            min=0,
            metavar="N",
        ),
    ] = 0,
    keep_turns: Annotated[
        int,
        _option(panel=_SAFE, help="Text of old turns that is kept for retrieve, MiB.", min=1, metavar="N"),
    ] = 256,
    timeout: Annotated[
        float, _option(panel=_SAFE, help="Longest answer, seconds; 0: any.", metavar="S", **_UP_TO_1E6)
    ] = 0.0,
    overflow: Annotated[
        str,
        _option(
            panel=_SAFE,
            help="What does not fit: error, shift, summarize or retrieve.",
            callback=_overflow,
            metavar="MODE",
        ),
    ] = "error",
    parallel: Annotated[
        int, _option(panel=_LOAD, help="Requests that run at once.", min=1, max=128, metavar="N")
    ] = 8,
    queue: Annotated[int, _option(panel=_LOAD, help="Requests that may wait.", min=0, metavar="N")] = 256,
    step_ms: Annotated[
        float, _option(panel=_LOAD, help="Longest step while answers stream.", metavar="MS", min=1.0, max=1e6)
    ] = 200.0,
    cache_ram: Annotated[
        float, _option(panel=_LOAD, help="Idle texts kept in memory, GiB.", metavar="N", **_UP_TO_1E6)
    ] = 1.0,
    cache_disk: Annotated[
        float, _option(panel=_LOAD, help="Idle texts kept on disk, GiB.", metavar="N", **_UP_TO_1E6)
    ] = 0.0,
    cache_dir: Annotated[
        Path | None,
        _option(panel=_LOAD, help="Where, and where sessions are kept.", metavar="FOLDER"),
    ] = None,
    keep_responses: Annotated[
        int,
        _option(panel=_LOAD, help="Responses kept in memory, MiB; 0: none.", metavar="N", min=0, max=65536),
    ] = 64,
    drain: Annotated[
        float, _option(panel=_LOAD, help="Longest wait for answers at the end, s.", metavar="S", **_UP_TO_1E6)
    ] = 30.0,
    page: Annotated[bool, _option("--page/--no-page", panel=_NET, help="The page at /.")] = True,
    log_level: Annotated[
        str,
        _option(panel=_NET, help="debug, info, warning or error.", callback=_log_level, metavar="LEVEL"),
    ] = "info",
) -> int:
    """Serve a model over HTTP, to many at once."""
    try:
        from pyllama_long.lora import check as check_adapter
        from pyllama_long.server import logs, security
        from pyllama_long.server.protocol import limited
        from pyllama_long.server.settings import Settings
    except ImportError as error:
        raise CommandError(f"the server needs the package {error.name}: pip install pyllama-long") from None
    if (ssl_certfile is None) != (ssl_keyfile is None):
        raise typer.BadParameter("give --ssl-certfile and --ssl-keyfile together")
    if cache_disk and cache_dir is None:
        raise typer.BadParameter("--cache-disk needs --cache-dir")
    keys = list(api_key or ())
    if any(not key.strip() for key in keys):
        raise typer.BadParameter("an --api-key is empty")
    if api_key_file is not None:
        try:
            keys += security.read_keys(api_key_file)
        except ValueError as error:
            raise CommandError(str(error)) from None
    options = ModelOptions(model, hub, attention, rope, ctx, kv_type, precision, threads)
    path = options.path()
    options.info()  # a file that is none is refused before anything listens
    adapters = common.adapters(lora or ())
    for file, _ in adapters:
        check_adapter(file)
    folder = cache_dir.expanduser() if cache_dir is not None else None
    config = {
        "model_path": str(path),
        "n_ctx": options.n_ctx(0) or options.default_ctx(),
        "n_parallel": parallel,
        "max_queue": queue,
        "attention": attention,
        "rope": rope,
        "kv_type": kv_type,
        "precision": precision,
        "n_threads": threads,
        "embedding": embeddings,
        "lora": adapters,
        "step_ms": step_ms,
        "cache_ram": int(cache_ram * _GIB),
        "cache_disk": int(cache_disk * _GIB),
        "cache_dir": None if folder is None else str(folder),
    }
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise CommandError(f"--cache-dir {folder}: cannot be written ({error.strerror})") from None
    settings = Settings(
        model_name=alias or path.stem,
        api_keys=tuple(keys),
        cors_origins=tuple(cors_origin or ()),
        allowed_hosts=_allowed_hosts(host, keys, allowed_host or []),
        max_body=max_body << 20,
        overflow=overflow,  # type: ignore[arg-type]
        drain_s=drain,
        request_timeout_s=timeout,
        store_bytes=keep_turns << 20,
        store=None if folder is None else folder / "turns.sqlite",
        page=page,
        keep_responses=keep_responses << 20,
    )
    try:
        limited(max_connections)
    except ValueError as error:
        raise CommandError(f"--max-connections: {error}") from None
    logs.install(log_level)
    tls = None if ssl_certfile is None else (str(ssl_certfile), str(ssl_keyfile))
    return serve(config, settings, host, port, tls, max_connections)


def _allowed_hosts(host: str, keys: list[str], more: list[str]) -> tuple[str, ...] | None:
    from pyllama_long.server.security import is_loopback

    if not more and (keys or not is_loopback(host)):
        return None
    return ("localhost", host.lower(), *(name.lower() for name in more))


def serve(
    config: dict[str, Any],
    settings: Settings,
    host: str,
    port: int,
    tls: tuple[str, str] | None = None,
    max_connections: int = 0,
) -> int:
    """Runs until a signal ends it; the exit code. config: fields of EngineConfig."""
    import uvicorn

    from pyllama_long.engine import Engine, EngineConfig
    from pyllama_long.server import pace
    from pyllama_long.server.app import create_app
    from pyllama_long.server.protocol import limited
    from pyllama_long.server.security import is_loopback

    engine_config = EngineConfig(**config)
    with listen(host, port) as listening:
        app = create_app(settings, lambda progress: Engine(engine_config, on_progress=progress))
        uvicorn_config = uvicorn.Config(
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
            uvicorn_config.load()
        except OSError as error:
            raise CommandError(f"the certificate cannot be used: {error}") from None
        server = uvicorn.Server(uvicorn_config)
        state = app.state.state
        bound, used = listening.getsockname()[:2]
        shown = f"[{bound}]" if ":" in bound else bound
        url = f"{'https' if tls else 'http'}://{shown}:{used}"

        def on_loaded() -> None:
            if state.error is not None:
                server.should_exit = True
            elif state.status == "ok":
                engine = state.loaded.engine
                print(f"{settings.model_name} is ready at {url}", flush=True)
                lines = [_about(engine), pace.example(engine)]
                if not settings.api_keys and not is_loopback(bound):
                    lines.append(
                        "whoever reaches this address may ask: --api-key-file lets in only who has a key"
                    )
                print("\n".join(filter(None, lines)), file=sys.stderr, flush=True)

        state.on_loaded = on_loaded
        with _signals(server, state, settings.drain_s):
            server.run(sockets=[listening])
    if state.error is not None:
        with common.refused():
            raise state.error
    if state.is_loading or state.lanes.is_busy:  # threads inside the library, which only the process can end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def _about(engine: Engine) -> str:
    """What runs, in lines."""
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
        named = not isinstance(error, socket.gaierror) and error.errno  # create_server says the address, too
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

    server.capture_signals = capture  # uvicorn's own raises the signal again when it has ended
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
