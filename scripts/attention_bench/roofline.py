"""What the machine could do, measured in the same run: matmul rates and the rate at which memory is read."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

READ_BYTES = 512 << 20  # in all, at least; far more than any cache


@dataclass(frozen=True)
class Roofline:
    threads: int
    f32_gflops: float
    bf16_gflops: float | None  # None: no torch
    read_gbps: float


def roofline(n_threads: int, seconds: float, torch: bool) -> Roofline:
    """Each the best of as many runs as fit into these seconds."""
    f32 = _f32_gflops(seconds)
    bf16 = _bf16_gflops(seconds, n_threads) if torch else None
    return Roofline(n_threads, f32, bf16, _read_gbps(seconds, n_threads))


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


def _read_gbps(seconds: float, n_threads: int) -> float:
    """Threads that each reduce a part of their own at once; NumPy lets go of the interpreter meanwhile."""
    n = max(READ_BYTES, n_threads * (64 << 20)) // n_threads // 4
    parts = [np.ones(n, np.float32) for _ in range(n_threads)]
    reductions: tuple[Callable[[Any], Any], ...] = (
        np.add.reduce,
        np.maximum.reduce,
        lambda part: np.bitwise_or.reduce(part.view(np.uint64)),
        lambda part: np.dot(part, part),
    )
    with ThreadPoolExecutor(n_threads) as pool:
        times = [
            _best(lambda f=reduce: list(pool.map(f, parts)), seconds / len(reductions))  # type: ignore[misc]
            for reduce in reductions
        ]
    return 4e-9 * n * n_threads / min(times)
