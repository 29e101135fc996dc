"""Cached keys of a sequence, read out of what llama_state_seq_get_data gives."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import gguf
import numpy as np
import numpy.typing as npt
from raw_model import Context

from pyllama_long._native import llama_cpp as C


def save(context: Context, seq: int = 0) -> bytes:
    size = C.llama_state_seq_get_size(context.ptr, seq)
    data = (ctypes.c_uint8 * size)()
    assert C.llama_state_seq_get_data(context.ptr, data, size, seq) == size
    return bytes(data)


def restore(context: Context, data: bytes, seq: int = 0) -> bool:
    """Whether the context took it."""
    raw = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
    return bool(C.llama_state_seq_set_data(context.ptr, raw, len(data), seq) == len(data))


@dataclass
class _Reader:
    data: bytes
    at: int = 0

    def take(self, kind: str, n: int = 1) -> npt.NDArray[np.generic]:
        out = np.frombuffer(self.data, kind, n, self.at)
        self.at += out.nbytes
        return out

    def number(self, kind: str = "<u4") -> int:
        return int(self.take(kind)[0])


def keys(context: Context, *, dynamic: bool = False, seq: int = 0) -> npt.NDArray[np.float32]:
    """[n_layer, n_cells, n_embd_k] of a sequence, ascending in cell."""
    r = _Reader(save(context, seq))
    r.take("<u4", 2)  # magic, sequence
    if dynamic:  # the sequence's factor goes before
        assert r.number() == 0x31464C50
        r.take("<u4", 2 * r.number())
    assert r.number() == 1  # stream
    n_cells = r.number()
    for _ in range(n_cells):
        r.take("<i4")
        r.take("<i4", r.number())
    r.number()  # whether V is transposed
    out = []
    for _ in range(r.number()):
        kind, size = gguf.GGMLQuantizationType(r.number("<i4")), r.number("<u8")
        rows = r.take("u1", n_cells * size).reshape(n_cells, size)
        if kind in (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.F32):
            out.append(
                rows.view("<f2" if kind == gguf.GGMLQuantizationType.F16 else "<f4").astype(np.float32)
            )
        else:
            out.append(gguf.quants.dequantize(rows, kind))
    return np.stack(out)
