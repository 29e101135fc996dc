"""uvicorn's HTTP/1.1, with limits for connections that send nothing, and answers for half-closed ones."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections import Counter
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_POLL_S = 0.5
_SPARE_FILES = 128  # for a socket that is not a connection
_CLOSED = 7  # TCP_CLOSE, of linux/tcp_states.h
EVENTS = "pyllama_long.events"  # key in a request's scope: its answer is a stream of events
_there: Counter[str] = Counter()


def most_connections() -> int:
    """As many connections as there may be open files, minus some for everything else."""
    return max(32, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_FILES)


def limited(most: int, header_s: float = 20.0) -> type[Protocol]:
    """Makes a Protocol class with these limits. Raises ValueError if there may not be that many open files."""
    allowed = most_connections()
    if most > allowed:
        raise ValueError(
            f"{most} connections need {most + _SPARE_FILES} open files, and {allowed + _SPARE_FILES} are "
            "allowed: see ulimit -n"
        )
    return type("Protocol", (Protocol,), {"most": most, "header_s": header_s})


class Protocol(H11Protocol):
    """One connection. most: the limit for all together, of which one address may have half; 0: as many as files
    allow. header_s: seconds until a request line and headers must be complete."""

    most = 0
    header_s = 20.0
    _eof = False
    _asked: asyncio.TimerHandle | None = None
    _address: str | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        most = self.most or most_connections()
        if _there.total() >= most or _there[address] >= most // 2:
            transport.abort()
            return
        self._address = address
        _there[address] += 1
        self._asked = self.loop.call_later(self.header_s, self._silent)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._address is not None:
            _there[self._address] -= 1
            if not _there[self._address]:
                del _there[self._address]
            self._address = None
        self._stop_asking()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_asking()
        elif self._asked is None and (before is None or before.response_complete):  # the next one's headers
            self._asked = self.loop.call_later(self.header_s, self._silent)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._eof and not self.transport.is_closing():
            self.transport.close()

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that closes its side after its request still gets its answer; one that is gone is recognized by
        its machine's reply to the next bytes."""
        if self.cycle is None or self.cycle.more_body or self.cycle.response_complete:
            return False
        self._eof = True
        unanswered = self.conn.our_state is h11.SEND_RESPONSE and not self.cycle.response_started
        if unanswered and self.scope["http_version"] == "1.1":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._comment()
        self.loop.call_later(_POLL_S / 10, self._poll)
        return True

    def _comment(self) -> None:
        """Sends bytes between two events: while a prompt is read, there are no others to which a machine could
        reply."""
        if self.scope.get(EVENTS) and self.conn.our_state is h11.SEND_BODY:
            self.transport.write(self.conn.send(h11.Data(data=b":\n\n")) or b"")

    def _poll(self) -> None:
        if self.transport.is_closing():
            return
        found: Any = self.transport.get_extra_info("socket")
        try:
            gone = found.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
            if hasattr(socket, "TCP_INFO"):
                gone = gone or found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSED
        except OSError:
            gone = True
        if gone:
            self.transport.abort()
        else:
            self._comment()
            self.loop.call_later(_POLL_S, self._poll)

    def _silent(self) -> None:
        self._asked = None
        if not self.transport.is_closing():
            self.transport.close()

    def _stop_asking(self) -> None:
        if self._asked is not None:
            self._asked.cancel()
            self._asked = None
