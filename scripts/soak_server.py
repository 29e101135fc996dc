"""Tests a server with clients that leave at every stage, with signals, and with requests that are not HTTP.

    python scripts/soak_server.py                          # hostile requests, then 64 clients for three minutes
    python scripts/soak_server.py --seconds 60 --clients 16 -m model.gguf

`pyllama-long serve` runs on loopback. First come the hostile requests, one by one: each gets a status or a closed
connection, and small requests of others are answered meanwhile. Then clients use mixed endpoints and leave during
headers, during bodies, while queued, while their prompt is read, and during streams. In the middle there is a SIGTERM
and at the end a kill -9, each under load and followed by a new server with the same --cache-dir. A prober requests
/health and a small /tokenize every half second. The run fails if a server ends by itself or with another code than
the signal's, answers 500, or lets the prober wait longer than --most-wait. Prints tables, then one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from rich import box
from rich.console import Console
from rich.table import Table

from pyllama_long import filler

HEAD = "Host: 127.0.0.1\r\nContent-Type: application/json\r\n"
BODY = b'{"content": "few words"}'
STAGES = ("headers", "body", "queued", "reading", "streaming", "stays", "stays")
_PAUSE_S = 0.5  # the prober's
_TIMEOUT_S = 60.0


class Server:
    """The process and where it listens; started again by `start`."""

    def __init__(self, model: str | None, folder: str) -> None:
        self._command = [
            *(
                sys.executable,
                "-m",
                "pyllama_long",
                "serve",
                *(["-m", model] if model else []),
                "--port",
                "0",
                "--threads",
                "1",
            ),
            *("--ctx", "16384", "--parallel", "16", "--queue", "128", "--drain", "3"),
            *("--cache-ram", "0.05", "--cache-disk", "0.2", "--cache-dir", folder, "--log-level", "error"),
        ]
        self.log = Path(folder, "log")
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if " is ready at http" not in line:
            raise SystemExit(f"the server did not start: {self.log.read_text()[-2000:]}")
        self.url = line.split()[-1]
        self.port = int(self.url.rpartition(":")[2])

    def rss_mib(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return round(pages * os.sysconf("SC_PAGESIZE") / 2**20, 1)

    def end(self, number: int) -> int | None:
        """The exit code after a signal; None: it had to be killed."""
        self.process.send_signal(number)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None


class Prober(threading.Thread):
    """Sends requests as another client until it is stopped; `rest` while there is no server."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self.server, self.waits, self.failures = server, [0.0], list[str]()
        self.rests = self.stopped = False

    def run(self) -> None:
        while not self.stopped:
            if not self.rests:
                self.ask()
            time.sleep(_PAUSE_S)

    def ask(self) -> float:
        """The longer wait of the two, in seconds."""
        url, waits = self.server.url, []
        for path, body in (("/health", None), ("/tokenize", {"content": "few words"})):
            began = time.monotonic()
            try:
                found = httpx.request(
                    "GET" if body is None else "POST", url + path, json=body, timeout=_TIMEOUT_S
                )
                if found.status_code != 200:
                    raise httpx.HTTPError(f"{path}: {found.status_code}")
            except httpx.HTTPError as error:
                if not self.rests and url == self.server.url:
                    self.failures.append(f"{path}: {error!r}")
                    continue
            waits.append(time.monotonic() - began)
        if not self.rests:
            self.waits += waits
        return max(waits, default=_TIMEOUT_S)


# Requests that are not, or hardly, HTTP.


def post(headers: str, body: bytes = b"") -> bytes:
    return f"POST /tokenize HTTP/1.1\r\n{HEAD}{headers}\r\n".encode() + body


N = f"Content-Length: {len(BODY)}\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"
HOSTILE: dict[str, bytes] = {
    "length and chunked": post(N + CHUNKED, b"0\r\n\r\n"),
    "two lengths": post(N + "Content-Length: 5\r\n", BODY),
    "one length twice": post(N + N, BODY),
    "negative length": post("Content-Length: -1\r\n"),
    "length +24": post(f"Content-Length: +{len(BODY)}\r\n", BODY),
    "length of 30 digits": post(f"Content-Length: {10**30}\r\n"),
    "length over the limit": post("Content-Length: 999999999999\r\n"),
    "folded header": post("X-A: one\r\n two\r\n" + N, BODY),
    "space before colon": post(f"Content-Length : {len(BODY)}\r\n", BODY),
    "NUL in a header": post("X-A: a\0b\r\n" + N, BODY),
    "chunk size -1": post(CHUNKED, b"-1\r\n" + BODY),
    "chunk size xyz": post(CHUNKED, b"xyz\r\n" + BODY),
    "chunk size of 40 digits": post(CHUNKED, b"f" * 40 + b"\r\n" + BODY),
    "chunk longer than said": post(CHUNKED, b"2\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "endless chunk extension": post(CHUNKED, b"1;" + b"a" * (1 << 20)),
    "gzip of nothing": post("Content-Encoding: gzip\r\n" + N, BODY),
    "transfer-encoding gzip": post("Transfer-Encoding: gzip\r\n", BODY),
    "header of 1 MB": post("X-A: " + "a" * (1 << 20) + "\r\n" + N, BODY),
    "10,000 headers": post("".join(f"X-{i}: a\r\n" for i in range(10_000)) + N, BODY),
    "path of 1 MB": b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "no HTTP": os.urandom(64).replace(b"\n", b"") + b"\r\n\r\n",
    "TLS": bytes.fromhex("1603010200010001fc0303") + b"a" * 200 + b"\r\n\r\n",
    "HTTP/9.9": b"GET /health HTTP/9.9\r\nHost: a\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "500 pipelined": b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 500,
    "upgrade": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
}


async def connect(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.wait_for(asyncio.open_connection("127.0.0.1", server.port, limit=1 << 24), 20)


async def outcome(server: Server, data: bytes, half_close: bool, patience_s: float) -> str:
    """The status, `closed`, or `open` after a while."""
    reader, writer = await connect(server)
    with suppress(ConnectionError):
        writer.write(data)
        await asyncio.wait_for(writer.drain(), 10)
        if half_close:
            writer.write_eof()
    try:
        line = await asyncio.wait_for(reader.readline(), patience_s)
        found = line.split()[1].decode() if line.startswith(b"HTTP/1.1 ") else "closed"
    except (ConnectionError, IndexError):
        found = "closed"
    except TimeoutError:
        found = "open"
    writer.close()
    return found


async def silent(server: Server, n: int = 600) -> str:
    """Many connections from one address that send nothing."""
    there = []
    with suppress(OSError, TimeoutError):
        for _ in range(n):
            there.append(await connect(server))
    await asyncio.sleep(1.0)
    for _, writer in there:
        writer.close()
    return f"{len(there)} connected"


async def slow(server: Server, n: int = 50) -> str:
    """Bodies sent at a byte per second."""
    there = [await connect(server) for _ in range(n)]
    for _, writer in there:
        writer.write(post(N))
    for i in range(4):
        for _, writer in there:
            with suppress(ConnectionError):
                writer.write(BODY[i : i + 1])
        await asyncio.sleep(1.0)
    for _, writer in there:
        writer.close()
    return f"{n} at once"


async def hostile(server: Server, prober: Prober) -> list[dict[str, Any]]:
    cases: dict[str, Callable[[], Awaitable[str]]] = {}
    for name, data in HOSTILE.items():
        cases[name] = partial(outcome, server, data, False, 5.0)
    cases |= {
        "half-closed, whole": lambda: outcome(server, post(N, BODY), True, 5.0),
        "half-closed in headers": lambda: outcome(server, post(N, BODY)[:40], True, 5.0),
        "half-closed in the body": lambda: outcome(server, post(N, BODY[:5]), True, 5.0),
        "600 silent connections": lambda: silent(server),
        "a byte a second": lambda: slow(server),
    }
    rows = []
    for name, case in cases.items():
        task = asyncio.ensure_future(case())
        await asyncio.sleep(0.05)
        beside = await asyncio.to_thread(prober.ask)
        rows.append({"what": name, "outcome": await task, "beside_s": round(beside, 3)})
    return rows


# Clients that come and go.


@dataclass
class Counts:
    left: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)  # the first bodies of 500


def request(chance: random.Random, long: bool) -> tuple[str, dict[str, Any]]:
    sentences = filler.sentences()
    n = chance.choice((60, 200)) if long else chance.choice((1, 3, 12))
    start = chance.randrange(400)
    text = " ".join(sentences[start : start + n])
    messages = [{"role": "user", "content": text}]
    most = chance.randrange(4, 40)
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("/completion", {"prompt": text, "n_predict": most, "stream": True}),
        ("/v1/completions", {"model": "m", "prompt": text, "max_tokens": most, "stream": True}),
        (
            "/v1/chat/completions",
            {"model": "m", "messages": messages, "max_tokens": most, "stream": True},
        ),
        ("/v1/chat/completions", {"model": "m", "messages": messages, "max_tokens": most}),
        ("/v1/messages", {"model": "m", "messages": messages, "max_tokens": most, "stream": True}),
        ("/v1/responses", {"model": "m", "input": text, "max_output_tokens": most + 16, "stream": True}),
        ("/tokenize", {"content": text}),
        ("/apply-template", {"messages": messages}),
    ]
    return chance.choice(kinds)


def leave(writer: asyncio.StreamWriter, reset: bool) -> None:
    found = writer.get_extra_info("socket")
    if reset and found is not None:
        with suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort() if reset else writer.close()


async def visit(server: Server, chance: random.Random, counts: Counts) -> None:
    stage = chance.choice(STAGES)
    path, body = request(chance, stage == "reading")
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\n{HEAD}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode()
    reader, writer = await connect(server)
    try:
        if stage == "headers":
            writer.write(head[: chance.randrange(1, len(head))])
        elif stage == "body":
            writer.write(head + data[: chance.randrange(len(data))])
        else:
            writer.write(head + data)
        await writer.drain()
        if stage in ("headers", "body", "queued"):
            await asyncio.sleep(chance.random() * 0.02)
        elif stage == "reading":
            await asyncio.sleep(chance.random() * 0.5)
        else:
            line = await asyncio.wait_for(reader.readline(), _TIMEOUT_S)
            status = line.split()[1].decode() if line else "closed"
            counts.statuses[status] += 1
            if stage == "streaming":
                for _ in range(chance.randrange(30)):
                    await asyncio.wait_for(reader.readline(), _TIMEOUT_S)
            else:
                rest = await asyncio.wait_for(reader.read(-1), _TIMEOUT_S)
                if status == "500" or b'"internal_error"' in rest:
                    counts.errors.append(rest[-300:].decode(errors="replace"))
        counts.left[stage] += 1
    finally:
        leave(writer, chance.random() < 0.5)


async def client(server: Server, seed: int, end: float, counts: Counts) -> None:
    chance = random.Random(seed)
    while time.monotonic() < end:
        try:
            await visit(server, chance, counts)
        except TimeoutError:
            counts.statuses["no answer"] += 1
        except OSError:  # the server has just been ended
            counts.statuses["reset"] += 1
            await asyncio.sleep(0.1)


async def soak(server: Server, prober: Prober, options: argparse.Namespace, counts: Counts) -> dict[str, Any]:
    """Uses half of the time up to SIGTERM, and half up to kill -9."""
    found: dict[str, Any] = {}
    for name, number in (("SIGTERM", signal.SIGTERM), ("SIGKILL", signal.SIGKILL)):
        began = time.monotonic()
        end = began + options.seconds / 2
        tasks = [
            asyncio.create_task(client(server, options.seed + i, end + 3, counts))
            for i in range(options.clients)
        ]
        await asyncio.sleep(min(5.0, options.seconds / 8))
        first = server.rss_mib()
        await asyncio.sleep(max(0.0, end - time.monotonic()))
        by_itself, last = server.process.poll(), server.rss_mib() if server.process.poll() is None else None
        prober.rests = True
        code = by_itself if by_itself is not None else await asyncio.to_thread(server.end, number)
        await asyncio.to_thread(server.start)
        prober.rests = False
        found[name] = {"code": code, "by_itself": by_itself is not None, "rss_mib": [first, last]}
        await asyncio.gather(*tasks)
    return found


def show(rows: list[dict[str, Any]], title: str) -> None:
    table = Table(*(key for key in rows[0]), box=box.SIMPLE, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-m", "--model", help="GGUF file (the embedded one)")
    parser.add_argument("--seconds", type=float, default=180.0, help="of the clients (%(default)s)")
    parser.add_argument("--clients", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--most-wait", type=float, default=2.0, help="of the prober, seconds (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    options = parser.parse_args(argv)
    counts, found = Counts(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(options.model, folder)
        prober = Prober(server)
        try:
            rows = asyncio.run(hostile(server, prober))
            show(rows, "hostile requests")
            prober.start()
            found = asyncio.run(soak(server, prober, options, counts))
            prober.stopped = True
            prober.join()
            found["after"] = {"code": server.end(signal.SIGTERM), "by_itself": False, "rss_mib": None}
        finally:
            server.process.kill()
            server.process.wait()
            log = server.log.read_text(errors="replace")
    show([{"end": name, **row} for name, row in found.items()], "ends")
    longest = round(max(prober.waits), 3)
    beside = max(row["beside_s"] for row in rows)
    wanted = {"SIGTERM": 0, "SIGKILL": -signal.SIGKILL, "after": 0}
    faults = [f"{name}: exit {row['code']}" for name, row in found.items() if row["code"] != wanted[name]]
    faults += [f"open for ever: {row['what']}" for row in rows if row["outcome"] in ("open", "500")]
    faults += prober.failures + counts.errors[:5]
    if counts.statuses["500"] or counts.statuses["no answer"]:
        faults.append(f"{counts.statuses['500']} times 500, {counts.statuses['no answer']} without an answer")
    if max(longest, beside) > options.most_wait:
        faults.append(f"somebody else waited {max(longest, beside):.1f} s")
    if "Traceback" in log:
        faults.append("a traceback: " + log[log.index("Traceback") :][:1500])
    for fault in faults:
        print(fault)
    result = {
        "hostile": rows,
        "ends": found,
        "visits": dict(counts.left),
        "statuses": dict(counts.statuses),
        "longest_wait_s": longest,
        "probes": len(prober.waits) - 1,
        "faults": len(faults),
    }
    print(json.dumps(result))
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
