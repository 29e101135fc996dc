"""What the machine could do, measured in the same run: matmul rates and the rate at which memory is read.

On a shared machine, memory can be twice as fast at one time as at another. So the rate is measured again between the
runs of a decode.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

READ_BYTES = 512 << 20  # in total, at least; far more than any cache


@dataclass(frozen=True)
class Roofline:
    threads: int
    f32_gflops: float
    bf16_gflops: float | None  # None: no torch
    read_gbps: float


class Memory:
    """Reads a lot of memory with all threads, in the fastest of a few ways. A context manager."""

    def __init__(self, n_threads: int) -> None:
        n = max(READ_BYTES, n_threads * (64 << 20)) // n_threads // 4
        self._parts = [np.ones(n, np.float32) for _ in range(n_threads)]
        self._pool = ThreadPoolExecutor(n_threads)  # NumPy releases the interpreter's lock meanwhile
        ways: tuple[Callable[[Any], Any], ...] = (
            np.add.reduce,
            np.maximum.reduce,
            lambda part: np.bitwise_or.reduce(part.view(np.uint64)),
            lambda part: np.dot(part, part),
        )
        self._way = min(ways, key=lambda way: min(self._seconds(way) for _ in range(4)))

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def _seconds(self, way: Callable[[Any], Any]) -> float:
        """The time of one pass, in which each thread reduces its own part."""
        start = time.perf_counter()
        list(self._pool.map(way, self._parts))
        return time.perf_counter() - start

    def gbps(self) -> float:
        """The rate of one pass."""
        return 1e-9 * sum(part.nbytes for part in self._parts) / self._seconds(self._way)


def roofline(n_threads: int, seconds: float, torch: bool, memory: Memory) -> Roofline:
    """The best rates of as many runs as fit into these seconds."""
    f32 = _f32_gflops(seconds)
    bf16 = _bf16_gflops(seconds, n_threads) if torch else None
    end = time.perf_counter() + seconds
    rates = [memory.gbps()]
    while len(rates) < 3 or time.perf_counter() < end:
        rates.append(memory.gbps())
    return Roofline(n_threads, f32, bf16, max(rates))


def _best(function: Callable[[], Any], seconds: float) -> float:
    """The shortest time of at least three runs."""
    end = time.perf_counter() + seconds
    times: list[float] = []
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def _f32_gflops(seconds: float, n: int = 3072) -> float:
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((n, n), np.float32) for _ in "ab")
    out = np.empty_like(a)
    return 2e-9 * n**3 / _best(lambda: np.matmul(a, b, out=out), seconds)


def _bf16_gflops(seconds: float, n_threads: int, n: int = 4096) -> float:
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(n_threads)
    a, b = (torch.randn(n, n).to(torch.bfloat16) for _ in "ab")
    with torch.inference_mode():
        return 2e-9 * n**3 / _best(lambda: torch.matmul(a, b), seconds)
