"""Results of named nodes of a graph, as a context computes them."""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_size_t, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt
from op_graph import Ggml

from pyllama_long._native import llama_cpp as C

Rows = npt.NDArray[np.float32]

_ggml = Ggml(
    {
        "ggml_get_name": (c_char_p, [c_void_p]),
        "ggml_get_data": (c_void_p, [c_void_p]),
        "ggml_nbytes": (c_size_t, [c_void_p]),
        "ggml_cpu_init": (None, []),
    }
)


class Watched:
    """Pass `watch` to a raw_model context. rows[name]: float32 of each graph that computed the node."""

    def __init__(self, *names: str) -> None:
        self.rows: dict[str, list[Rows]] = {name: [] for name in names}
        self._callback = C.ggml_backend_sched_eval_callback(self._node)

    @property
    def watch(self) -> tuple[Any, Any]:
        return self._callback, None

    def of(self, name: str, width: int) -> Rows:
        """[tokens, width] of all graphs together."""
        return np.concatenate([part.reshape(-1, width) for part in self.rows[name]])

    def _node(self, tensor: int, ask: bool, _: object) -> bool:
        name = _ggml.ggml_get_name(tensor).decode()
        if ask or name not in self.rows:
            return name in self.rows
        raw = ctypes.string_at(_ggml.ggml_get_data(tensor), _ggml.ggml_nbytes(tensor))
        self.rows[name].append(np.frombuffer(raw, np.float32))
        return True
