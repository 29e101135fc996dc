"""The options of `serve` by what they are for: the network, keys and limits, load."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Any

import typer

from pyllama_long.cli.checks import one_of
from pyllama_long.cli.command_error import CommandError

_NET, _SAFE, _LOAD = "Network", "Keys and limits", "Load"
_LEVELS = ("debug", "info", "warning", "error")
_OVERFLOWS = ("error", "shift", "summarize", "retrieve")
_GIB = 1 << 30
_UP_TO_1E6 = {"min": 0.0, "max": 1e6}  # excludes inf and nan


def _address(value: str) -> str:
    return value[1:-1] if value.startswith("[") and value.endswith("]") else value


def _origins(values: list[str] | None) -> list[str]:
    """Checks that origins are written as browsers write them; others would never match a page."""
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


def _option(panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **more)


@dataclass(frozen=True)
class Network:
    """The address that it listens on, and its output."""

    host: Annotated[
        str, _option(_NET, help="Address to listen at.", callback=_address, metavar="ADDRESS")
    ] = "127.0.0.1"
    port: Annotated[int, _option(_NET, help="0: a free one.", min=0, max=65535, metavar="N")] = 8080
    alias: Annotated[str, _option(_NET, help="The model's name for clients.", metavar="NAME")] = ""
    cors_origin: Annotated[
        list[str] | None,
        _option(
            _NET,
            help="A web page's origin that may ask, as https://name; *: any; repeatable.",
            callback=_origins,
            metavar="ORIGIN",
        ),
    ] = None
    allowed_host: Annotated[
        list[str] | None,
        _option(
            _NET,
            help="A host name that requests may be sent to; repeatable; *: any. Without keys and on a loopback "
            "address, only localhost is.",
            callback=_names,
            metavar="NAME",
        ),
    ] = None
    ssl_certfile: Annotated[Path | None, _option(_NET, help="Certificate, for https.", metavar="FILE")] = None
    ssl_keyfile: Annotated[
        Path | None, _option(_NET, help="The certificate's private key.", metavar="FILE")
    ] = None
    page: Annotated[bool, _option(_NET, "--page/--no-page", help="The page at /.")] = True
    log_level: Annotated[
        str,
        _option(_NET, help="debug, info, warning or error.", callback=one_of(_LEVELS), metavar="LEVEL"),
    ] = "info"

    def tls(self) -> tuple[str, str] | None:
        """The files of a certificate and its key."""
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise typer.BadParameter("give --ssl-certfile and --ssl-keyfile together")
        return None if self.ssl_certfile is None else (str(self.ssl_certfile), str(self.ssl_keyfile))

    def names(self, keys: Sequence[str]) -> tuple[str, ...] | None:
        """Host names that requests may be sent to; None: any."""
        from pyllama_long.server.security import is_loopback

        more = self.allowed_host or []
        if not more and (keys or not is_loopback(self.host)):
            return None
        return ("localhost", self.host.lower(), *(name.lower() for name in more))


@dataclass(frozen=True)
class Limits:
    """Who may send requests, and how large they may be."""

    api_key: Annotated[
        list[str] | None, _option(_SAFE, help="A key that clients must send; repeatable.", metavar="KEY")
    ] = None
    api_key_file: Annotated[Path | None, _option(_SAFE, help="Keys, one a line.", metavar="FILE")] = None
    max_body: Annotated[int, _option(_SAFE, help="Largest request, MiB.", min=1, metavar="N")] = 64
    max_connections: Annotated[
        int,
        _option(
            _SAFE,
            help="Most connections, half of them for one address; 0: as many as open files allow.",
            min=0,
            metavar="N",
        ),
    ] = 0
    keep_turns: Annotated[
        int,
        _option(_SAFE, help="Text of old turns that is kept for retrieve, MiB.", min=1, metavar="N"),
    ] = 256
    timeout: Annotated[
        float, _option(_SAFE, help="Longest answer, seconds; 0: any.", metavar="S", **_UP_TO_1E6)
    ] = 0.0
    overflow: Annotated[
        str,
        _option(
            _SAFE,
            help="What does not fit: error, shift, summarize or retrieve.",
            callback=one_of(_OVERFLOWS),
            metavar="MODE",
        ),
    ] = "error"

    def keys(self) -> tuple[str, ...]:
        from pyllama_long.server.security import read_keys

        found = list(self.api_key or ())
        if any(not key.strip() for key in found):
            raise typer.BadParameter("an --api-key is empty")
        if self.api_key_file is not None:
            try:
                found += read_keys(self.api_key_file)
            except ValueError as error:
                raise CommandError(str(error)) from None
        return tuple(found)


@dataclass(frozen=True)
class Load:
    """How many requests run and wait, and what is kept of them."""

    parallel: Annotated[
        int, _option(_LOAD, help="Requests that run at once.", min=1, max=128, metavar="N")
    ] = 8
    queue: Annotated[int, _option(_LOAD, help="Requests that may wait.", min=0, metavar="N")] = 256
    step_ms: Annotated[
        float, _option(_LOAD, help="Longest step while answers stream.", metavar="MS", min=1.0, max=1e6)
    ] = 200.0
    cache_ram: Annotated[
        float,
        _option(
            _LOAD, help="Texts of finished requests that are kept in memory, GiB.", metavar="N", **_UP_TO_1E6
        ),
    ] = 1.0
    cache_disk: Annotated[
        float, _option(_LOAD, help="The same on disk, in --cache-dir, GiB.", metavar="N", **_UP_TO_1E6)
    ] = 0.0
    cache_dir: Annotated[
        Path | None,
        _option(_LOAD, help="The folder of --cache-disk, and of named sessions.", metavar="FOLDER"),
    ] = None
    keep_responses: Annotated[
        int,
        _option(_LOAD, help="Responses kept in memory, MiB; 0: none.", metavar="N", min=0, max=65536),
    ] = 64
    drain: Annotated[
        float, _option(_LOAD, help="Longest wait for answers at the end, s.", metavar="S", **_UP_TO_1E6)
    ] = 30.0

    def __post_init__(self) -> None:
        if self.cache_disk and self.cache_dir is None:
            raise typer.BadParameter("--cache-disk needs --cache-dir")

    def config(self) -> dict[str, Any]:
        """Fields of EngineConfig."""
        folder = self.folder()
        return {
            "n_parallel": self.parallel,
            "max_queue": self.queue,
            "step_ms": self.step_ms,
            "cache_ram": int(self.cache_ram * _GIB),
            "cache_disk": int(self.cache_disk * _GIB),
            "cache_dir": None if folder is None else str(folder),
        }

    def folder(self) -> Path | None:
        """The folder for sequences and sessions, or None."""
        return None if self.cache_dir is None else self.cache_dir.expanduser()

    def check_folder(self) -> None:
        """Makes the folder. Raises CommandError if it is not writable."""
        folder = self.folder()
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise CommandError(f"--cache-dir {folder}: cannot be written ({error.strerror})") from None
