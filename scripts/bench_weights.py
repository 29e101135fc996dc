"""Products of quantized weights with activations: ours next to llama.cpp's, on the same weights, in one process.

    python scripts/bench_weights.py [--types q8_0,q4_K] [--rows 1,512] [--shapes 4096x14336] [--threads N]

Sides: ours, as the codes of --codes; `upstream` on weights as a file stores them; `repacked`, upstream's on weights
that it has rearranged in memory, for the types for which it does. Prints a table, then one JSON line: {"threads",
"read_gbps", "rows": [{"type", "columns", "weights", "rows", "side", "seconds", "gops", "gbps", "ratio"}]}. gops: 10^9
multiplications and additions a second; gbps: of weights read; ratio: of the better one of upstream's times to this one.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy as np
from attention_bench.roofline import Memory
from cases import Array
from op_graph import SIGNATURES, Ggml
from product_graph import TYPES as ALL
from product_graph import quantized

from pyllama_long import _native

TYPES = {name: kind for name, kind in ALL.items() if name != "f32"}
ROWS = "1,8,32,128,512"
SHAPES = "2048x8192,4096x14336,2048x768"  # of a 1B and an 8B model, and of an expert of a 30B-A3B one
POOL = 64  # random weight rows, repeated

ggml = Ggml(
    SIGNATURES
    | {
        "ggml_mul_mat": (c_void_p, [c_void_p] * 3),
        "ggml_row_size": (c_size_t, [c_int, ctypes.c_int64]),
        "ggml_backend_cpu_init": (c_void_p, []),
        "ggml_backend_cpu_set_n_threads": (None, [c_void_p, c_int]),
        "ggml_backend_cpu_buffer_type": (c_void_p, []),
        "ggml_backend_cpu_reg": (c_void_p, []),
        "ggml_backend_reg_dev_get": (c_void_p, [c_void_p, c_size_t]),
        "ggml_backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
        "ggml_backend_buft_name": (c_char_p, [c_void_p]),
        "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, [c_void_p, c_void_p]),
        "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
        "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
        "ggml_backend_buffer_free": (None, [c_void_p]),
        "ggml_backend_free": (None, [c_void_p]),
    }
)


def repacked_type() -> int | None:
    """The buffer type in which upstream rearranges weights."""
    registry = ggml.ggml_backend_cpu_reg()
    found = ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    extra = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(found)(ggml.ggml_backend_reg_dev_get(registry, 0))
    for i in range(8):
        if not extra[i]:
            break
        if ggml.ggml_backend_buft_name(extra[i]) == b"CPU_REPACK":
            return int(extra[i])
    return None


class Product:
    """Weights in a kind of buffer, times activations of some numbers of rows. A context manager."""

    def __init__(
        self, backend: int, buffer_type: int, name: str, shape: tuple[int, int], rows: list[int]
    ) -> None:
        columns, n = shape
        self.backend = backend
        self.contexts = [ggml.ggml_init(_native.CInitParams(1 << 20, None, True)) for _ in range(2)]
        held, here = self.contexts
        weights = ggml.ggml_new_tensor_4d(held, TYPES[name][0], columns, n, 1, 1)
        activations = {r: ggml.ggml_new_tensor_4d(here, 0, columns, r, 1, 1) for r in rows}
        self.outputs = {r: ggml.ggml_mul_mat(here, weights, x) for r, x in activations.items()}
        self.graphs = {}
        for r, out in self.outputs.items():
            self.graphs[r] = ggml.ggml_new_graph(here)
            ggml.ggml_build_forward_expand(self.graphs[r], out)
        types = (buffer_type, ggml.ggml_backend_cpu_buffer_type())
        self.buffers = [
            ggml.ggml_backend_alloc_ctx_tensors_from_buft(c, t)
            for c, t in zip(self.contexts, types, strict=True)
        ]
        random = np.random.default_rng(0)
        pool = quantized(random.standard_normal((POOL, columns), np.float32) / np.sqrt(columns), name)
        data = np.ascontiguousarray(np.resize(pool, (n, pool.shape[1])))
        ggml.ggml_backend_tensor_set(weights, data.ctypes.data, 0, data.nbytes)
        self.bytes = data.nbytes
        for r, x in activations.items():
            values = random.standard_normal((r, columns), np.float32)
            ggml.ggml_backend_tensor_set(x, values.ctypes.data, 0, values.nbytes)

    def __enter__(self) -> Product:
        return self

    def __exit__(self, *_: object) -> None:
        for buffer in self.buffers:
            ggml.ggml_backend_buffer_free(buffer)
        for context in self.contexts:
            ggml.ggml_free(context)

    def run(self, rows: int) -> None:
        if ggml.ggml_backend_graph_compute(self.backend, self.graphs[rows]) != 0:
            raise RuntimeError("ggml_backend_graph_compute failed")

    def output(self, rows: int) -> Array:
        n = ggml.ggml_nbytes(self.outputs[rows]) // 4
        memory = (ctypes.c_float * n).from_address(ggml.ggml_get_data(self.outputs[rows]))
        found: Array = np.frombuffer(memory, np.float32).copy()
        return found


def seconds(sides: dict[str, Callable[[], None]], budget: float) -> dict[str, float]:
    """The least time of each side, which run alternately."""
    best = dict.fromkeys(sides, float("inf"))
    end, runs = time.perf_counter() + budget, 0
    while runs < 3 or (runs < 30 and time.perf_counter() < end):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
        runs += 1
    return best


def repacks(buffer_type: int | None, name: str, shape: tuple[int, int]) -> bool:
    known = {"q4_0", "q4_K", "iq4_nl", "mxfp4"}  # on x86-64 with AVX2
    return buffer_type is not None and name in known and shape[1] % 8 == 0


def measure(
    backend: int, name: str, shape: tuple[int, int], rows: list[int], codes: list[str]
) -> list[dict[str, Any]]:
    found = []
    _native.force_product("upstream")  # weights are rearranged as they are set
    rearranged = repacked_type()
    kinds = {"upstream": ggml.ggml_backend_cpu_buffer_type()}
    if repacks(rearranged, name, shape):
        kinds["repacked"] = rearranged
    held = {side: Product(backend, kind, name, shape, rows) for side, kind in kinds.items()}

    def runner(code: str, product: Product, r: int) -> Callable[[], None]:
        def run() -> None:
            _native.force_product(code)
            product.run(r)

        return run

    for r in rows:
        sides = {side: runner("upstream", product, r) for side, product in held.items()}
        sides |= {code: runner(code, held["upstream"], r) for code in codes}
        outputs = {}
        for side, run in sides.items():
            run()
            outputs[side] = held.get(side, held["upstream"]).output(r)
        for side, out in outputs.items():
            error = float(np.abs(out - outputs["upstream"]).max() / outputs["upstream"].std())
            if not error < 0.1:
                raise SystemExit(
                    f"{name}, {r} rows: {side} and upstream differ by {error:.2g} of the deviation"
                )
        times = seconds(sides, 1.0)
        best = min(times[side] for side in held)
        work = 2e-9 * shape[0] * shape[1] * r
        for side, took in times.items():
            found.append(
                {
                    "type": name,
                    "columns": shape[0],
                    "weights": shape[1],
                    "rows": r,
                    "side": side,
                    "seconds": took,
                    "gops": round(work / took, 1),
                    "gbps": round(1e-9 * held["upstream"].bytes / took, 2),
                    "ratio": round(best / took, 3),
                }
            )
            row = found[-1]
            print(
                f"{name:7}{shape[0]:>7} x {shape[1]:<7}{r:>5} {side:12}{1e3 * took:10.3f} ms{row['gops']:9.0f} GOP/s"
                f"{row['gbps']:8.1f} GB/s{row['ratio']:7.2f}",
                flush=True,
            )
    for product in held.values():
        product.__exit__()
    return found


def main() -> None:
    usable = [name for name, ok in _native.products().items() if ok]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--types", default=",".join(TYPES), help="of weights; all by default")
    parser.add_argument("--rows", default=ROWS, help=f"of activations [{ROWS}]")
    parser.add_argument("--shapes", default=SHAPES, help=f"columns x weight rows [{SHAPES}]")
    parser.add_argument(
        "--codes", default=",".join(usable[:1]), help=f"ours: of {', '.join(usable) or 'none here'}"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    types, codes = options.types.split(","), [code for code in options.codes.split(",") if code]
    if unknown := [name for name in types if name not in TYPES]:
        parser.error(f"unknown type {', '.join(unknown)}; known: {', '.join(TYPES)}")
    if unknown := [code for code in codes if code not in usable]:
        parser.error(f"{', '.join(unknown)} cannot run here; usable: {', '.join(usable) or 'none'}")
    shapes = []
    for shape in options.shapes.split(","):
        columns, _, n = shape.partition("x")
        if not (columns.isdigit() and n.isdigit() and int(columns) % 256 == 0 and int(columns) and int(n)):
            parser.error(f"shape {shape!r}: columns x weight rows, columns a multiple of 256")
        shapes.append((int(columns), int(n)))
    with Memory(options.threads) as memory:
        read = max(memory.gbps() for _ in range(5))
    print(f"{options.threads} threads; memory is read at {read:.1f} GB/s")
    backend = ggml.ggml_backend_cpu_init()
    ggml.ggml_backend_cpu_set_n_threads(backend, options.threads)
    found = []
    for shape in shapes:
        for name in types:
            found += measure(backend, name, shape, [int(r) for r in options.rows.split(",")], codes)
    ggml.ggml_backend_free(backend)
    print(json.dumps({"threads": options.threads, "read_gbps": round(read, 1), "rows": found}))


if __name__ == "__main__":
    main()
