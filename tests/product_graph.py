"""Products of quantized weights through ggml: a graph of one MUL_MAT or MUL_MAT_ID on the CPU backend."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from typing import Any

import numpy as np
from cases import Array
from op_graph import SIGNATURES, Ggml

from pyllama_long import _native

# Types of weights whose products are ours: number in ggml's enum, columns of a block.
TYPES = {
    "f32": (0, 1),
    "q8_0": (8, 32),
    "q4_0": (2, 32),
    "q4_1": (3, 32),
    "q5_0": (6, 32),
    "q5_1": (7, 32),
    "iq4_nl": (20, 32),
    "mxfp4": (39, 32),
    "q4_K": (12, 256),
    "q5_K": (13, 256),
    "q6_K": (14, 256),
}
I32 = 26


class _Traits(ctypes.Structure):
    """struct ggml_type_traits, of ggml.h."""

    _fields_ = (
        ("type_name", c_char_p),
        ("blck_size", c_int64),
        ("blck_size_interleave", c_int64),
        ("type_size", c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, c_void_p, POINTER(c_float), c_int64)),
    )


ggml = Ggml(
    SIGNATURES
    | {
        "ggml_mul_mat": (c_void_p, [c_void_p] * 3),
        "ggml_mul_mat_id": (c_void_p, [c_void_p] * 4),
        "ggml_get_type_traits": (POINTER(_Traits), [c_int]),
        "ggml_row_size": (c_size_t, [c_int, c_int64]),
    }
)


def quantized(x: Array, name: str) -> Array:
    """Rows x [..., columns] float32 in a type's blocks: [..., bytes] uint8."""
    kind, columns = TYPES[name][0], x.shape[-1]
    if name == "f32":
        return np.ascontiguousarray(x, np.float32).view(np.uint8)
    rows = np.ascontiguousarray(x, np.float32).reshape(-1, columns)
    out = np.zeros((len(rows), ggml.ggml_row_size(kind, columns)), np.uint8)
    source = rows.ctypes.data_as(POINTER(c_float))
    ggml.ggml_quantize_chunk(kind, source, out.ctypes.data, 0, len(rows), columns, None)
    return out.reshape(*x.shape[:-1], -1)


def dequantized(raw: Array, name: str, columns: int) -> Array:
    """What blocks [..., bytes] stand for: [..., columns] float64."""
    if name == "f32":
        return raw.view(np.float32).astype(np.float64)
    rows = np.ascontiguousarray(raw).reshape(-1, raw.shape[-1])
    out = np.zeros((len(rows), columns), np.float32)
    traits = ggml.ggml_get_type_traits(TYPES[name][0]).contents
    for row, to in zip(rows, out, strict=True):
        traits.to_float(row.ctypes.data, to.ctypes.data_as(POINTER(c_float)), columns)
    return out.astype(np.float64).reshape(*raw.shape[:-1], columns)


def rounded(x: Array, name: str) -> Array:
    """Activations [..., columns] float32 as the products with a type round them: 8 bits, with a scale for each 32 of
    them."""
    if name == "f32":
        return x.astype(np.float64)
    groups = x.reshape(-1, 32)
    most = np.abs(groups).max(axis=1, keepdims=True)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        up = np.where(most > 0, np.float32(127) / most, np.float32(0))
        codes = np.where(np.isfinite(up), np.rint(groups * up), 0)
    scale = (most / np.float32(127)).astype(np.float64)
    found: Array = (codes.astype(np.float64) * scale).reshape(x.shape)
    return found


def _fill(tensor: int, content: Array) -> None:
    raw = np.ascontiguousarray(content)
    assert ggml.ggml_nbytes(tensor) == raw.nbytes
    ctypes.memmove(ggml.ggml_get_data(tensor), raw.ctypes.data, raw.nbytes)


def _run(name: str, weights: Array, columns: int, x: Array, ids: Array | None, n_threads: int) -> Array:
    size = weights.nbytes + 4 * x.nbytes + (64 << 20)
    ctx = ggml.ggml_init(_native.CInitParams(size, None, False))
    try:
        experts = weights.shape[0] if ids is not None else 1
        ne: list[Any] = [TYPES[name][0], columns, weights.shape[-2], experts, 1]
        w = ggml.ggml_new_tensor_4d(ctx, *ne)
        _fill(w, weights)
        sizes = [*reversed(x.shape), 1, 1][:4]
        y = ggml.ggml_new_tensor_4d(ctx, 0, *sizes)
        _fill(y, x)
        if ids is None:
            out = ggml.ggml_mul_mat(ctx, w, y)
        else:
            which = ggml.ggml_new_tensor_4d(ctx, I32, ids.shape[1], ids.shape[0], 1, 1)
            _fill(which, ids.astype(np.int32))
            out = ggml.ggml_mul_mat_id(ctx, w, y, which)
        graph = ggml.ggml_new_graph(ctx)
        ggml.ggml_build_forward_expand(graph, out)
        assert ggml.ggml_graph_compute_with_ctx(ctx, graph, n_threads) == 0
        n = ggml.ggml_nbytes(out) // 4
        memory = (c_float * n).from_address(ggml.ggml_get_data(out))
        found: Array = np.frombuffer(memory, np.float32).copy()
        return found
    finally:
        ggml.ggml_free(ctx)


def product(name: str, weights: Array, x: Array, n_threads: int = 2) -> Array:
    """Blocks of weights [n, bytes] times activations x [..., columns]: [..., n] float32."""
    out = _run(name, weights, x.shape[-1], x, None, n_threads)
    found: Array = out.reshape(*x.shape[:-1], len(weights))
    return found


def expert_product(name: str, weights: Array, x: Array, ids: Array, n_threads: int = 2) -> Array:
    """Blocks [experts, n, bytes] times x [tokens, 1 or used, columns], each by the expert that ids [tokens, used]
    names: [tokens, used, n]."""
    out = _run(name, weights, x.shape[-1], x, ids, n_threads)
    found: Array = out.reshape(*ids.shape, weights.shape[1])
    return found
