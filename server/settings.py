"""The settings of `pyllama-long serve`, besides the engine's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .schemas.common import OverflowMode


@dataclass(frozen=True)
class Settings:
    """model_name: what clients see. allowed_hosts: names that a request may be sent to, besides IP addresses; None:
    any. max_body: bytes. ping_s: seconds between pings that keep a quiet stream open.
    drain_s: how long a shutdown waits for requests. store: a file for old turns (overflow `retrieve`);
    None: in memory. store_bytes: of their text. keep_responses: bytes of responses that clients may refer to, in
    memory."""

    model_name: str = "model"
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] | None = None
    max_body: int = 64 << 20
    overflow: OverflowMode = "error"
    ping_s: float = 10.0
    drain_s: float = 30.0
    request_timeout_s: float = 0.0
    temperature: float = 0.8
    store: Path | None = None
    store_bytes: int = 256 << 20
    page: bool = True
    keep_responses: int = 64 << 20
