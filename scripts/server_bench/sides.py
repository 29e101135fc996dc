"""Either server as a process on loopback: both with exact attention, the model's own RoPE, and f16 K/V."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from pyllama_long.model_info import model_info
from server_bench.upstream import BenchError

OURS, UPSTREAM = "ours", "upstream"
LOADED_S = 300.0


@dataclass(frozen=True)
class Setup:
    """longest: tokens of one stream. cells: the size of our cache, which streams share; llama-server has `longest`
    cells per slot, which is its default and faster there than one cache. cache_dir: for saved contexts."""

    model: Path
    longest: int
    cells: int
    parallel: int
    threads: int
    cache_dir: Path
    llama_server: Path | None = None

    def command(self, side: str, port: int) -> list[str]:
        common = ["-m", str(self.model), "--host", "127.0.0.1", "--port", str(port)]
        if side == OURS:
            ours = ["--ctx", str(self.cells), "--attention", "exact", "--rope", "native"]
            ours += ["--cache-dir", str(self.cache_dir), "--threads", str(self.threads), "--cache-ram", "0"]
            return [
                *(sys.executable, "-m", "pyllama_long", "serve", "--parallel", str(self.parallel)),
                *common,
                *ours,
            ]
        theirs = [
            "-c",
            str(self.longest * self.parallel),
            "-np",
            str(self.parallel),
            "-fa",
            "on",
            "--cache-ram",
            "0",
        ]
        theirs += ["-t", str(self.threads), "--slot-save-path", str(self.cache_dir), "--no-ui", "--metrics"]
        # It gives no slot more than the trained length.
        length = f"{model_info(self.model).architecture}.context_length=int:{self.longest}"
        return [str(self.llama_server), *common, *theirs, "--override-kv", length]


@contextmanager
def serving(setup: Setup, side: str) -> Iterator[httpx.Client]:
    """A client of the side's server, once its model is loaded. Raises BenchError."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root}
    log = setup.cache_dir / f"{side}.log"
    with log.open("w") as out:
        process = subprocess.Popen(setup.command(side, port), stdout=out, stderr=out, env=environment)
    try:
        # llama-server closes a connection after a long answer without notice, so each request has its own.
        own = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=None, limits=own) as client:
            end = time.monotonic() + LOADED_S
            while not healthy(client):
                if process.poll() is not None or time.monotonic() > end:
                    raise BenchError(f"the {side} server did not start: {last_line(log)}")
                time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
