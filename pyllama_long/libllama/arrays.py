"""NumPy arrays and Python values as memory for C functions."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_char_p, c_float, c_int32, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllama_long.libllama.library import llama_cpp


def pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(POINTER(kind))


def char_buffer(n: int) -> Any:
    return ctypes.create_string_buffer(n)


def floats(values: Sequence[float], n: int) -> Any:
    """A C array of n floats, zeros after the values."""
    return (c_float * n)(*values)


def adapters(pointers: Sequence[Any], scales: Sequence[float]) -> tuple[Any, int, Any]:
    """The arguments of llama_set_adapters_lora after the context."""
    n = len(pointers)
    return (llama_cpp.llama_adapter_lora_p_ctypes * n)(*pointers), n, (c_float * n)(*scales)


def byte_pointer(data: npt.NDArray[np.uint8]) -> Any:
    return pointer(data, ctypes.c_uint8)


def text_array(texts: Sequence[bytes]) -> Any:
    """A char * [n]."""
    return (c_char_p * len(texts))(*texts)


def tokenize_address() -> int:
    """The arguments of llama_tokenize, for libraries that call it themselves."""
    return ctypes.cast(llama_cpp.llama_cpp._lib.llama_tokenize, c_void_p).value or 0


def token_pointer(ids: npt.NDArray[np.int32]) -> Any:
    return pointer(ids, c_int32)


def float_view(pointer: Any, n: int) -> npt.NDArray[np.float32]:
    """An array [n] over the memory that a float pointer gives; valid as long as that memory is."""
    memory = (c_float * n).from_address(ctypes.addressof(pointer.contents))
    return np.frombuffer(memoryview(memory), np.float32)


class Batch:
    """A llama_batch over NumPy arrays of n tokens, one sequence per token; what Llama.embed and decode
    need."""

    def __init__(self, n: int) -> None:
        self.token, self.pos, self.seq = (np.zeros(n, np.int32) for _ in range(3))
        self.logits = np.zeros(n, np.int8)
        self._one, self._steps = np.ones(n, np.int32), np.arange(n, dtype=np.int32)
        # seq_id[i] points at the one sequence of token i.
        base = self.seq.ctypes.data
        self._seq = (POINTER(c_int32) * n)(*(ctypes.cast(base + 4 * i, POINTER(c_int32)) for i in range(n)))
        self.batch = llama_cpp.llama_batch(
            n_tokens=0,
            token=pointer(self.token, c_int32),
            pos=pointer(self.pos, c_int32),
            n_seq_id=pointer(self._one, c_int32),
            seq_id=self._seq,
            logits=pointer(self.logits, ctypes.c_int8),
        )

    def n_tokens(self) -> int:
        return int(self.batch.n_tokens)

    def reset(self) -> None:
        self.batch.n_tokens = 0

    def put(self, tokens: npt.NDArray[np.int32], pos: int, n_logits: int) -> None:
        """Tokens of sequence 0 at pos, pos + 1, ...; the last n_logits of them give logits."""
        n = len(tokens)
        self.token[:n], self.pos[:n] = tokens, self._steps[:n] + pos
        self.seq[:n], self.logits[:n] = 0, self._steps[:n] >= n - n_logits
        self.batch.n_tokens = n

    def set_batch(self, batch: Sequence[int], n_past: int, logits_all: bool) -> None:
        self.put(np.asarray(batch, np.int32), n_past, len(batch) if logits_all else 1)

    def add_sequence(self, batch: npt.ArrayLike, seq_id: int, logits_all: bool) -> None:
        """Adds the tokens of another sequence, from position 0 on."""
        tokens = np.asarray(batch, np.int32)
        begin = self.n_tokens()
        end = begin + len(tokens)
        self.token[begin:end], self.pos[begin:end] = tokens, self._steps[: len(tokens)]
        self.seq[begin:end], self.logits[begin:end] = seq_id, logits_all
        self.logits[end - 1] = True
        self.batch.n_tokens = end


class Candidates:
    """A llama_token_data_array over a NumPy table of n rows (id, logit, p)."""

    def __init__(self, n: int) -> None:
        self.table = np.zeros(n, [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._ids = np.arange(n, dtype=np.int32)
        data = ctypes.cast(self.table.ctypes.data, llama_cpp.llama_token_data_p)
        self.array = llama_cpp.llama_token_data_array(data=data, size=n, selected=-1, sorted=False)
        self.pointer = ctypes.pointer(self.array)

    def fill(self, logits: npt.NDArray[np.float32]) -> None:
        """All tokens with their logits [n]."""
        self.table["id"], self.table["logit"], self.table["p"] = self._ids, logits, 0
        self.array.size, self.array.selected, self.array.sorted = len(self._ids), -1, False

    def some(self, ids: npt.NDArray[np.int32], logits: npt.NDArray[np.float32]) -> None:
        """Only the tokens `ids`, with their values from all logits [n]."""
        rows = self.table[: len(ids)]
        rows["id"], rows["logit"], rows["p"] = ids, logits[ids], 0
        self.array.size, self.array.selected, self.array.sorted = len(ids), -1, False

    def chosen(self) -> int:
        """The token of the row that a sampler selected, else of the first one."""
        return int(self.table[max(0, self.array.selected)]["id"])


def progress_callback(visit: Callable[[float], bool]) -> Any:
    """For llama_model_params: visit(share) while a model is loaded; where it gives False, loading ends."""

    @llama_cpp.llama_progress_callback  # type: ignore[untyped-decorator]
    def call(share: float, _data: object) -> bool:
        return visit(share)

    return call
