"""One workload in ggml: our op and upstream's ggml_flash_attn_ext, on the same cache, in one process."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
from cases import Array, sinks
from op_graph import GGML_TYPES, I8, I32, SIGNATURES, CaseBatch, Ggml, encode, value_view

from attention_bench import lifelike
from attention_bench.workloads import Workload
from pyllama_long import _native

PREC_F32 = 10
# rows of random numbers: a prime number, so that their repetition is not in step with heads or cells
POOL = 4099
_N_PAGES = 3  # its word in struct plong_batch

ggml = Ggml(
    SIGNATURES
    | {
        "ggml_reshape_3d": (c_void_p, [c_void_p, c_void_p, c_int64, c_int64, c_int64]),
        "ggml_permute": (c_void_p, [c_void_p, c_void_p, c_int, c_int, c_int, c_int]),
        "ggml_flash_attn_ext": (c_void_p, [c_void_p] * 5 + [c_float] * 3),
        "ggml_flash_attn_ext_set_prec": (None, [c_void_p, c_int]),
        "ggml_backend_cpu_init": (c_void_p, []),
        "ggml_backend_cpu_set_n_threads": (None, [c_void_p, c_int]),
        "ggml_backend_alloc_ctx_tensors": (c_void_p, [c_void_p, c_void_p]),
        "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
        "ggml_backend_buffer_free": (None, [c_void_p]),
        "ggml_backend_free": (None, [c_void_p]),
    }
)


@dataclass(frozen=True)
class Side:
    """One of the sides that are compared."""

    name: str
    isa: str | None
    run: Callable[[], Any]
    output: Callable[[], Array]  # [n_tokens, n_head, d], of the last run
    prepare: Callable[[], None] = lambda: None  # called before each run, not timed
    kv_type: str | None = None  # if it reads a copy of another type


class Backend:
    """ggml's CPU backend, which keeps its work buffer between graphs."""

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self.handle = ggml.ggml_backend_cpu_init()
        ggml.ggml_backend_cpu_set_n_threads(self.handle, n_threads)

    def compute(self, graph: int) -> None:
        status = ggml.ggml_backend_graph_compute(self.handle, graph)
        if status != 0:
            raise RuntimeError(f"ggml_backend_graph_compute failed with {status}")

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_: object) -> None:
        ggml.ggml_backend_free(self.handle)


class Graphs:
    """Tensors of a workload, filled, with a graph per side and position. A context manager: it owns memory.

    q F32 [d_k, n_head, n_new, n_seq]; k, v [d, n_head_kv, n_kv, n_seq], a sequence in each stream. v may lie in k.
    """

    def __init__(self, backend: Backend, workload: Workload) -> None:
        self.backend, self.workload, self.case = backend, workload, workload.case
        self.batches = [CaseBatch(case) for case in workload.cases]
        first = self.batches[0]
        assert len({batch.n_kv for batch in self.batches}) == 1
        assert [one.stream for one in first.layouts] == list(range(len(first.layouts)))
        self.n_new, self.n_seq = len(first.layouts[0].q_pos), len(first.layouts)
        self.n_kv = first.n_kv
        self.ctx = ggml.ggml_init(_native.CInitParams(16 << 20, None, True))
        kind = GGML_TYPES[workload.kv_type]
        case = self.case
        self.q = self._tensor(0, case.d_k, case.n_head, self.n_new, self.n_seq)
        self.k = self._tensor(kind, case.d_k, case.n_head_kv, self.n_kv, self.n_seq)
        shape = (case.d_v, case.n_head_kv, self.n_kv, self.n_seq)
        if case.v_in_k:
            self.v = value_view(self.ctx, self.k, ggml.ggml_nbytes(self.k), shape)
        else:
            self.v = self._tensor(kind, *shape)
        self.words = [batch.batch() for batch in self.batches]
        planned = [batch.planned(backend.n_threads) for batch in self.batches]
        self.works = [work.words for work in planned]
        self.word_tensors = [self._tensor(I32, len(words)) for words in self.words]
        self.work_tensors = [self._tensor(I32, len(work)) for work in self.works]
        self.sinks = sinks(workload.cases[0])
        self.sink_tensor = None if self.sinks is None else self._tensor(0, case.n_head)
        self.index: int | None = None  # of the keys, shared by all positions
        if planned[0].choice_words and first.indexed():
            self.index = self._tensor(I8, *first.index_shape(self.n_seq))
        self.choice_words = [work.choice_words for work in planned]
        self.choices: list[int | None] = []
        self.mask: int | None = None
        self.ours = [self._ours(i) for i in range(len(self.batches))]
        self.upstream = self._upstream() if workload.exact else None
        self.buffer = ggml.ggml_backend_alloc_ctx_tensors(self.ctx, backend.handle)
        if not self.buffer:
            raise MemoryError(f"no memory for {workload}")
        self._fill()

    def __enter__(self) -> Graphs:
        return self

    def __exit__(self, *_: object) -> None:
        ggml.ggml_backend_buffer_free(self.buffer)
        ggml.ggml_free(self.ctx)

    def sides(self, names: list[str], isas: list[str]) -> list[Side]:
        found = []
        if "upstream" in names and self.upstream:
            out, graph = self.upstream
            found.append(
                Side("upstream", None, lambda: self.backend.compute(graph), lambda: self._output(out))
            )
        if "ours" in names:
            found += [self._our_side(isa) for isa in isas]
        return found

    def view(self, tensor: int, dtype: Any) -> Array:
        """A tensor's memory, flat."""
        memory = (ctypes.c_uint8 * ggml.ggml_nbytes(tensor)).from_address(ggml.ggml_get_data(tensor))
        return np.frombuffer(memory, dtype)

    def _tensor(self, kind: int, *ne: int) -> int:
        return int(ggml.ggml_new_tensor_4d(self.ctx, kind, *(*ne, 1, 1, 1)[:4]))

    def _graph(self, out: int) -> tuple[int, int]:
        graph = ggml.ggml_new_graph(self.ctx)
        ggml.ggml_build_forward_expand(graph, out)
        return out, graph

    def _ours(self, i: int) -> tuple[int, int]:
        params = self.batches[i].params()
        case = self.case
        q = ggml.ggml_reshape_3d(self.ctx, self.q, case.d_k, case.n_head, self.n_new * self.n_seq)
        reason = _native.cpu_refusal(q, self.k, self.v, params)
        assert reason is None, reason
        inputs = _native.CInputs(self.word_tensors[i], self.work_tensors[i], None, self.sink_tensor)
        if self.index is not None:
            words = self.choice_words[i]
            inputs.index = self.index
            inputs.choices = _native.lib.ggml_long_choose(self.ctx, q, self.k, self.v, inputs, params, words)
        self.choices.append(inputs.choices)
        return self._graph(_native.lib.ggml_long_attn(self.ctx, q, self.k, self.v, inputs, params))

    def _upstream(self) -> tuple[int, int]:
        """Calls upstream's attention as llama.cpp does: with heads and tokens swapped in views, and a mask of n_kv x
        n_new."""
        q, k, v = (ggml.ggml_permute(self.ctx, t, 0, 2, 1, 3) for t in (self.q, self.k, self.v))
        self.mask = self._tensor(GGML_TYPES["f16"], self.n_kv, -(-self.n_new // 64) * 64, 1, self.n_seq)
        out = ggml.ggml_flash_attn_ext(self.ctx, q, k, v, self.mask, self.case.scale, 0.0, 0.0)
        ggml.ggml_flash_attn_ext_set_prec(out, PREC_F32)
        return self._graph(out)

    def _our_side(self, isa: str) -> Side:
        def run() -> None:
            for _, graph in self.ours:
                self.backend.compute(graph)

        return Side("ours", isa, run, lambda: self._output(self.ours[-1][0]), lambda: _native.force_isa(isa))

    def _output(self, tensor: int) -> Array:
        shape = (self.n_seq * self.n_new, self.case.n_head, self.case.d_v)
        return self.view(tensor, np.float32).reshape(shape)

    def _fill_lifelike(self) -> None:
        """Keys and queries of one sequence; a token's queries are those of the last position."""
        case, one = self.case, self.batches[-1].layouts[0]
        keys, queries = lifelike.sequence(len(one.pos), self.n_new, case.n_head, case.n_head_kv, case.d_k)
        self.view(self.q, np.float32)[:] = queries.reshape(-1)
        rows = self.view(self.k, np.uint8).reshape(self.n_kv, -1)
        for at in range(0, len(one.pos), POOL):
            part = encode(keys[at : at + POOL].astype(np.float64), self.workload.kv_type)
            cells = one.cell[at : at + POOL]
            rows[cells] = np.frombuffer(part, np.uint8).reshape(len(cells), -1)

    def _fill(self) -> None:
        random = np.random.default_rng(0)
        q = self.view(self.q, np.float32)
        q[:] = self.case.peaked * random.standard_normal(len(q), np.float32)
        filled = [(self.k, self.case.d_k)] + [(self.v, self.case.d_v)] * (not self.case.v_in_k)
        if self.workload.lifelike:
            self._fill_lifelike()
            filled = filled[1:]
        for tensor, dims in filled:
            pool = encode(random.standard_normal((POOL, dims)), self.workload.kv_type)
            memory = self.view(tensor, np.uint8)
            for at in range(0, len(memory), len(pool)):
                part = memory[at : at + len(pool)]
                part[:] = np.frombuffer(pool, np.uint8)[: len(part)]
        tensors, contents = self.word_tensors + self.work_tensors, self.words + self.works
        for tensor, words in zip(tensors, contents, strict=True):
            self.view(tensor, np.int32)[:] = words
        if self.sink_tensor is not None:
            self.view(self.sink_tensor, np.float32)[:] = self.sinks
        if self.index is not None:  # it is written once, as in a context
            self.backend.compute(self.ours[0][1])
            for tensor in self.word_tensors:
                self.view(tensor, np.int32)[_N_PAGES] = 0
        if self.mask is not None:
            mask = self.view(self.mask, np.float16).reshape(self.n_seq, -1, self.n_kv)
            mask[:] = -np.inf
            for one in self.batches[0].layouts:
                for row, p in enumerate(one.q_pos):
                    mask[one.stream, row, one.cell[: np.searchsorted(one.pos, p, "right")]] = 0
