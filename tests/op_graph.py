"""Runs one case of the op through ggml: a graph of one node on the CPU backend, with a cache in the case's type.

The reference gets what the cache really holds: each stored row is read back in float64 and un-rotated, so that the
cache's rounding does not count as an error of the kernel.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from ctypes import POINTER, c_double, c_float, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from typing import Any

import numpy as np
import reference
from cases import Array, Case, layout, sinks, tensors

from pyllama_long import _native
from pyllama_long._native import CInitParams
from pyllama_long.context_options import KV_TYPES
from pyllama_long.plan import AttentionPlan
from pyllama_long.rope import RopePolicy

GGML_TYPES = {name: kind.number for name, kind in KV_TYPES.items()}
I32 = 26
I8 = 24
# words of struct plong_work, plong_tile, plong_tile_range (work.h) and plong_choice (choose.h)
_HEAD, _TILE, _RANGE, _CHOICE = 14, 21, 7, 4
FLOOR = 2e-6  # rounding of float32 for values around 1, for when the naive computation happens to be exact
# A block of 32 values, by the definition of each type: nibbles have the first half in their low bits.
_SCALE, _MIN, _FIFTH, _NIBBLES = ("scale", "<f2"), ("min", "<f2"), ("fifth", "<u4"), ("q", "u1", 16)
BLOCKS = {
    "q8_0": np.dtype([_SCALE, ("q", "i1", 32)]),
    "q4_0": np.dtype([_SCALE, _NIBBLES]),
    "q4_1": np.dtype([_SCALE, _MIN, _NIBBLES]),
    "iq4_nl": np.dtype([_SCALE, _NIBBLES]),
    "q5_0": np.dtype([_SCALE, _FIFTH, _NIBBLES]),
    "q5_1": np.dtype([_SCALE, _MIN, _FIFTH, _NIBBLES]),
}
_IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float64)

SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_init": (c_void_p, [CInitParams]),
    "ggml_free": (None, [c_void_p]),
    "ggml_new_tensor_4d": (c_void_p, [c_void_p, c_int, c_int64, c_int64, c_int64, c_int64]),
    "ggml_view_4d": (c_void_p, [c_void_p] * 2 + [c_int64] * 4 + [c_size_t] * 4),
    "ggml_new_graph": (c_void_p, [c_void_p]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_graph_compute_with_ctx": (c_int, [c_void_p, c_void_p, c_int]),
    "ggml_get_data": (c_void_p, [c_void_p]),
    "ggml_quantize_chunk": (
        c_size_t,
        [c_int, POINTER(c_float), c_void_p, c_int64, c_int64, c_int64, c_void_p],
    ),
    "ggml_nbytes": (c_size_t, [c_void_p]),
    "ggml_cpu_init": (None, []),
}


class Ggml:
    """ggml's own C functions, from the libraries that pyllama_long uses."""

    def __init__(self, signatures: dict[str, tuple[Any, list[Any]]] = SIGNATURES) -> None:
        for name, (result, arguments) in signatures.items():
            function = self._find(name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self.ggml_cpu_init()

    @staticmethod
    def _find(name: str) -> Any:
        # libllama's handle reaches the ggml libraries that it was linked with
        return getattr(_native.llama_cpp.llama_cpp._lib, name)

    def __getattr__(self, name: str) -> Any:  # for mypy: the functions are set in __init__
        raise AttributeError(name)


ggml = Ggml()


def value_view(ctx: int, k: int, k_bytes: int, shape: tuple[int, int, int, int]) -> int:
    """V [d_v, n_head_kv, n_kv, n_stream] as the first dims of K's heads."""
    _, n_head_kv, n_kv, n_stream = shape
    stream = k_bytes // n_stream
    row = stream // n_kv
    return int(ggml.ggml_view_4d(ctx, k, *shape, row // n_head_kv, row, stream, 0))


def encode(x: Array, kv_type: str) -> bytes:
    """x [..., d] float64 in the cache's type."""
    if kv_type == "f32":
        return x.astype(np.float32).tobytes()
    if kv_type == "f16":
        return x.astype(np.float16).tobytes()
    if kv_type == "bf16":
        return (reference.round_to(x, "bf16").view(np.uint32) >> 16).astype(np.uint16).tobytes()
    rows = np.ascontiguousarray(np.nan_to_num(x, nan=99.0), np.float32).reshape(-1, x.shape[-1])
    out = ctypes.create_string_buffer(rows.size // 32 * BLOCKS[kv_type].itemsize)
    source = rows.ctypes.data_as(POINTER(c_float))
    ggml.ggml_quantize_chunk(GGML_TYPES[kv_type], source, out, 0, len(rows), rows.shape[1], None)
    return out.raw


def decode(raw: bytes, shape: tuple[int, ...], kv_type: str) -> Array:
    """float64 values of what encode() wrote, by the definition of each type."""
    if kv_type == "f32":
        return np.frombuffer(raw, np.float32).astype(np.float64).reshape(shape)
    if kv_type == "f16":
        return np.frombuffer(raw, np.float16).astype(np.float64).reshape(shape)
    if kv_type == "bf16":
        bits = np.frombuffer(raw, np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).astype(np.float64).reshape(shape)
    blocks = np.frombuffer(raw, BLOCKS[kv_type])
    scale = blocks["scale"].astype(np.float64)[:, None]
    if kv_type == "q8_0":
        values = blocks["q"].astype(np.float64)
    else:
        nibbles = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], axis=1)
        values = nibbles.astype(np.float64)
    if kv_type == "iq4_nl":
        values = np.take(_IQ4_NL, nibbles)
    elif kv_type.startswith("q5"):
        values += 16 * (blocks["fifth"][:, None] >> np.arange(32, dtype=np.uint32) & 1)
    if kv_type.endswith("_1"):
        values = values * scale + blocks["min"].astype(np.float64)[:, None]
    else:
        values = (values - {"q4_0": 8, "q5_0": 16}.get(kv_type, 0)) * scale
    return values.reshape(shape)


class CaseBatch:
    """What the op gets to know about a case, without the contents of any tensor, so that benches can use large
    ones."""

    def __init__(self, case: Case, precision: int = 0) -> None:
        self.case = case
        self.precision = precision  # enum plong_precision
        self.plan = AttentionPlan.parse(case.plan, n_train=case.n_train)
        self.rope = RopePolicy.parse(case.rope, n_train=case.n_train, n_ctx=4 * case.n_train)
        self.layouts, self.n_kv = layout(case)
        n_rot = case.n_rot or case.d_k
        self.freqs, self.magnitude = reference.rope_freqs(self.rope, n_rot, case.base)

    def _spans(self) -> list[tuple[int, int]]:
        edges = np.cumsum([0, *(len(one.q_pos) for one in self.layouts)]).tolist()
        return list(itertools.pairwise(edges))

    def batch(self) -> Array:
        """The op's I32 batch tensor."""
        slots: list[tuple[int, ...]] = []
        groups: list[tuple[int, ...]] = []
        runs: list[tuple[int, ...]] = []
        for i, (one, (a, _)) in enumerate(zip(self.layouts, self._spans(), strict=True)):
            slots.append((one.stream, len(runs), len(runs) + len(one.runs())))
            runs += one.runs()
            groups += [(i, phase, a + at, n, int(one.q_pos[at])) for phase, at, n in one.groups()]
        return _native.c_batch(self.plan, self.rope, slots, groups, runs, self.precision, self._pages())

    def indexed(self) -> bool:
        return self.plan.prefill.indexed or self.plan.tail.indexed

    def _pages(self) -> list[tuple[int, int]]:
        """(stream, page) of all pages, where keys are chosen by content."""
        if not self.indexed():
            return []
        streams = {one.stream for one in self.layouts}
        return [(stream, page) for stream in sorted(streams) for page in range(-(-self.n_kv // 64))]

    def shape(self) -> _native.CShape:
        case = self.case
        dense = int(case.layer < self.plan.dense_layers)
        return _native.CShape(case.d_k, case.d_v, case.n_head, case.n_head_kv, dense)

    def work(self, n_threads: int) -> Array:
        """The op's I32 work tensor, for the CPU."""
        return self.planned(n_threads).words

    def planned(self, n_threads: int) -> _native.Work:
        shape = self.shape()
        return _native.Work(self.batch(), shape, _native.cpu_limits(shape, n_threads))

    def _maps(self) -> bool:
        return self.rope.map != "absolute" and self.case.n_rot > 0

    def table(self) -> Array | None:
        """The rotation table, float32 flat, where the op wants one."""
        if not self._maps():
            return None
        values = np.empty(4 * 256 * self.case.n_rot, np.float32)
        freqs = self.freqs.ctypes.data_as(POINTER(c_double))
        _native.lib.plong_rope_table(freqs, self.case.n_rot, values.ctypes.data_as(POINTER(c_float)))
        return values

    def params(self) -> Any:
        case = self.case
        n_rot = case.n_rot if self._maps() else 0
        return _native.CAttnParams(
            case.scale,
            case.max_bias,
            case.soft_cap,
            case.layer,
            n_rot,
            case.rot_first,
            int(case.neox),
            case.hadamard,
        )

    def index_shape(self, n_stream: int) -> tuple[int, int, int, int]:
        pages, heads = -(-self.n_kv // 64), self.case.n_head_kv
        parts = _native.plan_index(self.plan)
        size = _native.lib.plong_index_bytes(parts, self.case.d_k, heads, self.n_kv, n_stream)
        return size // (pages * heads * n_stream), pages, heads, n_stream

    def chosen_keys(self, work: Array, choices: Array) -> Array:
        """[n_tokens, n_head, positions] float64: log weights of the choices of all tiles, -inf for other keys."""
        last = max(int(one.pos[-1]) for one in self.layouts)
        n_tokens = sum(len(one.q_pos) for one in self.layouts)
        found = np.full((n_tokens, self.case.n_head, last + 1), -np.inf)
        n_tiles = int(work[0])
        n_chosen, n_options = int(work[7]), int(work[8])
        begin = _CHOICE * n_tiles
        ranges = choices[begin : begin + _RANGE * n_chosen].reshape(-1, _RANGE)
        assert len(choices) == begin + _RANGE * n_chosen + 2 * n_options
        for i, tile in enumerate(work[_HEAD : _HEAD + n_tiles * _TILE].reshape(-1, _TILE)):
            tok, n_tok, head, n_h, room = (int(tile[i]) for i in (4, 6, 8, 9, 19))
            begin, n = (choices[_CHOICE * i : _CHOICE * i + 2]) if room else (0, 0)
            assert n <= room
            for start, end, step, *_, weight in ranges[begin : begin + n]:
                assert step == 1 and start < end
                part = found[tok : tok + n_tok, head : head + n_h, start:end]
                assert (part == -np.inf).all(), "a key is chosen twice"
                part[:] = np.log(2) * float(weight.view(np.float32))
        return found


class OpCase(CaseBatch):
    """A case with its cache filled: run() gives the op's output, expected() the float64 reference's."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.raw = tensors(case)
        self.weights: Array | None = None  # [n_tokens, n_head, positions]: chosen_keys() of the last run
        self.sinks = sinks(case)
        self.q = np.concatenate(
            [
                self._store(self.raw.q[a:b], one.q_pos)
                for one, (a, b) in zip(self.layouts, self._spans(), strict=True)
            ]
        ).astype(np.float32)
        k = np.array(self.raw.k)
        for one in self.layouts:
            stored = self._store(self.raw.k[one.stream, one.cell], one.pos)
            k[one.stream, one.cell] = reference.hadamard(stored, case.hadamard) if case.hadamard else stored
        self.k_bytes = encode(k, case.kv_type)
        self.v_bytes = b"" if case.v_in_k else encode(self.raw.v, case.type_v)
        self.k = decode(self.k_bytes, k.shape, case.kv_type)
        if case.v_in_k:
            self.v = self.k[..., : case.d_v]
        else:
            self.v = decode(self.v_bytes, self.raw.v.shape, case.type_v)

    @property
    def chosen(self) -> Array | None:
        """[n_tokens, n_head, positions]: which keys the last run chose."""
        return None if self.weights is None else self.weights > -np.inf

    def _stored_positions(self, pos: Array) -> Array:
        if self.rope.map == "absolute":
            return pos
        return np.array([_native.rope_stored(self.rope, int(p)) for p in pos])

    def _turn(self, x: Array, pos: Array, magnitude: float) -> Array:
        case = self.case
        return reference.rotate(x, pos[:, None], self.freqs, case.n_rot, case.neox, magnitude, case.rot_first)

    def _store(self, x: Array, pos: Array) -> Array:
        """x [n, heads, d] as the model's graph rotates it before the op."""
        return self._turn(x, self._stored_positions(pos), self.magnitude)

    def _unstore(self, x: Array, pos: Array) -> Array:
        return self._turn(x, -self._stored_positions(pos), 1 / self.magnitude)

    def expected(self, precision: str = "f64") -> Array:
        """[n_tokens, n_head, d_v]; where keys are chosen by content, with those that the last run chose."""
        case = self.case
        outs = []
        for one, (a, b) in zip(self.layouts, self._spans(), strict=True):
            k = self.k[one.stream, one.cell]
            k = self._unstore(reference.hadamard(k, case.hadamard) if case.hadamard else k, one.pos)
            outs.append(
                reference.attention(
                    self._unstore(self.q[a:b].astype(np.float64), one.q_pos),
                    k,
                    self.v[one.stream, one.cell],
                    one.q_pos,
                    one.pos,
                    one.phase,
                    self.plan,
                    self.rope,
                    case.scale,
                    self.freqs,
                    self.magnitude,
                    case.n_rot,
                    case.neox,
                    max_bias=case.max_bias,
                    soft_cap=case.soft_cap,
                    sinks=self.sinks,
                    layer=case.layer,
                    rot_first=case.rot_first,
                    chosen=None if self.weights is None else self.weights[a:b, :, one.pos],
                    precision=precision,  # type: ignore[arg-type]
                )
            )
        return np.concatenate(outs)

    def run(self, n_threads: int = 2) -> Array:
        """[n_tokens, n_head, d_v] float32, computed by the op in the instruction set in use."""

        def compute(ctx: int, out: int, _: int | None) -> None:
            graph = ggml.ggml_new_graph(ctx)
            ggml.ggml_build_forward_expand(graph, out)
            assert ggml.ggml_graph_compute_with_ctx(ctx, graph, n_threads) == 0

        return self.computed(self.planned(n_threads), compute)

    def computed(self, work: _native.Work, compute: Callable[[int, int, int | None], None]) -> Array:
        """The same by compute(ctx, the op's tensor, the tensor with the keys that it chooses or None), which executes
        the planned work."""
        planned = work.words
        case = self.case
        n_stream = self.k.shape[0]
        batch = self.batch()
        size = len(self.k_bytes) + len(self.v_bytes) + 3 * self.q.nbytes + (256 << 20)
        ctx = ggml.ggml_init(CInitParams(size + batch.nbytes + planned.nbytes, None, False))
        try:

            def tensor(kind: int, data: bytes, *ne: int) -> int:
                t = ggml.ggml_new_tensor_4d(ctx, kind, *(*ne, 1, 1, 1, 1)[:4])
                assert ggml.ggml_nbytes(t) == len(data)
                ctypes.memmove(ggml.ggml_get_data(t), data, len(data))
                return int(t)

            q = tensor(0, self.q.tobytes(), case.d_k, case.n_head, len(self.q))
            k = tensor(GGML_TYPES[case.kv_type], self.k_bytes, case.d_k, case.n_head_kv, self.n_kv, n_stream)
            shape = (case.d_v, case.n_head_kv, self.n_kv, n_stream)
            v = (
                value_view(ctx, k, len(self.k_bytes), shape)
                if case.v_in_k
                else tensor(GGML_TYPES[case.type_v], self.v_bytes, *shape)
            )
            values, params = self.table(), self.params()
            inputs = _native.CInputs(
                tensor(I32, batch.tobytes(), len(batch)),
                tensor(I32, planned.tobytes(), len(planned)),
                None if values is None else tensor(0, values.tobytes(), len(values)),
                None if self.sinks is None else tensor(0, self.sinks.tobytes(), len(self.sinks)),
            )
            choices = None
            if work.choice_words:
                if self.indexed():
                    inputs.index = tensor(I8, self._index(n_stream), *self.index_shape(n_stream))
                words = work.choice_words
                choices = _native.lib.ggml_long_choose(ctx, q, k, v, inputs, params, words)
                inputs.choices = choices
            reason = _native.cpu_refusal(q, k, v, params)
            assert reason is None, reason
            out = _native.lib.ggml_long_attn(ctx, q, k, v, inputs, params)
            compute(ctx, out, choices)
            if choices is not None:
                data = ctypes.string_at(ggml.ggml_get_data(choices), 4 * work.choice_words)
                self.weights = self.chosen_keys(work.words, np.frombuffer(data, np.int32))
            result = (len(self.q), case.n_head, case.d_v)
            raw = ctypes.string_at(ggml.ggml_get_data(out), int(np.prod(result)) * 4)
            return np.frombuffer(raw, np.float32).reshape(result)
        finally:
            ggml.ggml_free(ctx)

    def _index(self, n_stream: int) -> bytes:
        return bytes(np.full(self.index_shape(n_stream), 0xAB, np.uint8))


@cache
def known(case: Case, precision: str = "f32") -> tuple[Array, float]:
    """(reference [n_tokens, n_head, d_v], the largest error that a kernel in this precision may have)."""
    op = OpCase(case)
    expected = op.expected()
    naive = np.abs(op.expected(precision) - expected).max()
    return expected, 2 * float(naive) + FLOOR
