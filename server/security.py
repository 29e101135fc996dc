"""API keys, and the names that the server answers to."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from starlette.types import Scope

PUBLIC = (
    "/health",
    "/v1/health",
    "/",
    "/web/app.js",
    "/web/style.css",
)  # the page contains nothing secret, and asks the user for the key
_MAX_KEY_FILE = 1 << 20


def read_keys(path: Path) -> list[str]:
    """Reads API keys from a file, one per line; empty lines and lines that begin with # are ignored. Raises OSError
    and ValueError."""
    with path.open("rb") as file:
        data = file.read(_MAX_KEY_FILE + 1)
    if len(data) > _MAX_KEY_FILE:
        raise ValueError(f"{path} is too large for a file of API keys")
    lines = (line.strip() for line in data.decode("utf-8").splitlines())
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"{path} has no API key in it")
    return keys


class Keys:
    """The API keys of the server; if there are none, it is open to all."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [key.encode() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def salt(self, scope: Scope) -> str | None:
        """A name for a request's key; None if it has no valid key. Requests only share cached prefixes under the same
        name. Every key is compared, so timing reveals nothing."""
        if not self._keys:
            return "public"
        given, found = _given(scope), b""
        for key in self._keys:
            if hmac.compare_digest(key, given):
                found = key
        return hashlib.sha256(found).hexdigest()[:16] if found else None


def host_is_allowed(scope: Scope, allowed: Sequence[str] | None) -> bool:
    """Whether a request was sent to an IP address or an allowed name. A web page can make its own name resolve to
    this machine (DNS rebinding), but then its requests are sent to that name."""
    if allowed is None or "*" in allowed:
        return True
    headers = dict(scope["headers"])
    host = headers.get(b"host", b"").decode("latin-1").lower()
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name in allowed
    return True


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is only reachable from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _given(scope: Scope) -> bytes:
    headers = dict(scope["headers"])
    bearer: bytes = headers.get(b"authorization", b"")
    kind, _, key = bearer.partition(b" ")
    if kind.lower() == b"bearer":
        return key.strip()
    found: bytes = headers.get(b"x-api-key", b"")
    return found.strip()
