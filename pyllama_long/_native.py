"""The native library: loading it under llama_cpp, and the structs and functions of its two headers.

The only file with ctypes. Names follow ggml_ext.h and plong_llama.h, which say what everything means.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_bool, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_void_p
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllama_long import _library
from pyllama_long.context_options import PRECISIONS as PRECISIONS
from pyllama_long.phase import Phase
from pyllama_long.plan import AttentionPlan
from pyllama_long.rope import RopePolicy

_PATH = _library.require()
try:
    import llama_cpp as llama_cpp
    from llama_cpp import _internals as _internals
    from llama_cpp import _logger as _logger
    from llama_cpp import llama_chat_format as llama_chat_format
    from llama_cpp.llama_cache import LlamaDiskCache as LlamaDiskCache
    from llama_cpp.llama_grammar import LlamaGrammar as LlamaGrammar
    from llama_cpp.llama_tokenizer import LlamaTokenizer as LlamaTokenizer
except (AttributeError, OSError, RuntimeError) as error:
    raise ImportError(f"llama_cpp cannot use {_PATH}: {error}") from error

ABI_VERSION = 5

MAX_BRANCHES = 16
MAX_ROT = 512

_WEIGHTS = ("count", "stride", "none")
_ALIGNS = ("segment", "query")
_FREQS = ("native", "linear", "ntk", "yarn", "llama3", "longrope")
_MAPS = ("absolute", "dca", "self-extend", "rerope")


def _ints(names: str) -> list[tuple[str, Any]]:
    return [(name, c_int32) for name in names.split()]


class CPhase(ctypes.Structure):
    _fields_ = [
        *_ints("sinks window global dense_below weight align n_branches"),
        ("segment", c_int32 * MAX_BRANCHES),
        ("rate", c_int32 * MAX_BRANCHES),
    ]


class CPlan(ctypes.Structure):
    _fields_ = [("phase", CPhase * 2), ("dense_layers", c_int32)]


class CRope(ctypes.Structure):
    _fields_ = [
        ("freq", c_int32),
        *((name, c_float) for name in ("factor", "beta_fast", "beta_slow", "low_freq", "high_freq")),
        *_ints("map chunk local logn n_train dynamic n_factors"),
        ("factors", c_float * (MAX_ROT // 2)),
    ]


class CSlot(ctypes.Structure):
    _fields_ = _ints("stream run_beg run_end")


class CGroup(ctypes.Structure):
    _fields_ = _ints("slot phase tok n pos")


class CRun(ctypes.Structure):
    _fields_ = _ints("pos cell n")


class CBatch(ctypes.Structure):
    """The head of a batch; slots, groups and runs follow it in memory."""

    _fields_ = [*_ints("n_slots n_groups n_runs n_tokens precision"), ("plan", CPlan), ("rope", CRope)]


class CAttnParams(ctypes.Structure):
    _fields_ = [("scale", c_float), ("max_bias", c_float), *_ints("layer n_rot neox hadamard")]


class CConfig(ctypes.Structure):
    _fields_ = [*_ints("abi enabled precision"), ("plan", CPlan), ("rope", CRope)]


class CStats(ctypes.Structure):
    _fields_ = [(name, c_int64) for name in ("n_queries", "keys_visible", "keys_read", "n_tokens", "n_runs")]


class CInitParams(ctypes.Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "plong_plan_check": (c_char_p, [POINTER(CPlan)]),
    "plong_head_number": (c_int32, [c_int32, c_int32, c_int32]),
    "plong_phase_keys": (
        c_int64,
        [POINTER(CPhase), c_int32, c_int32, c_int64, POINTER(c_int32), POINTER(c_float)],
    ),
    "plong_phase_count": (c_int64, [POINTER(CPhase), c_int32, c_int32]),
    "plong_rope_check": (c_char_p, [POINTER(CRope)]),
    "plong_rope_freqs": (c_float, [POINTER(CRope), c_int32, c_double, POINTER(c_float), POINTER(c_double)]),
    "plong_rope_stored": (c_int32, [POINTER(CRope), c_int32]),
    "plong_rope_distance": (c_int32, [POINTER(CRope), c_int32, c_int32]),
    "plong_rope_logn": (c_float, [POINTER(CRope), c_int32]),
    "plong_rope_table": (None, [POINTER(c_double), c_int32, POINTER(c_float)]),
    "plong_rope_angles": (None, [POINTER(c_float), c_int32, POINTER(c_int64), c_int64, POINTER(c_float)]),
    "plong_batch_words": (c_size_t, [c_int32, c_int32, c_int32]),
    "plong_batch_slots": (POINTER(CSlot), [POINTER(CBatch)]),
    "plong_batch_groups": (POINTER(CGroup), [POINTER(CBatch)]),
    "plong_batch_runs": (POINTER(CRun), [POINTER(CBatch)]),
    "ggml_long_attn": (c_void_p, [c_void_p] * 6 + [POINTER(CAttnParams)]),
    "plong_attn_supports": (c_char_p, [c_void_p] * 3 + [POINTER(CAttnParams)]),
    "plong_cpu_isa_name": (c_char_p, [ctypes.c_int]),
    "plong_cpu_isa_usable": (c_bool, [ctypes.c_int]),
    "plong_cpu_isa_force": (c_bool, [c_char_p]),
    "plong_cpu_isa": (c_char_p, [c_int32]),
    "plong_cpu_isa_tiles": (c_int64, [ctypes.c_int]),
    "plong_llama_configure_next": (None, [POINTER(CConfig)]),
    "plong_llama_configure": (c_int32, [c_void_p, POINTER(CConfig), c_char_p, c_size_t]),
    "plong_llama_set_tail": (None, [c_void_p, c_int32, c_int32]),
    "plong_llama_set_rope_factor": (c_int32, [c_void_p, c_int32, c_float, c_char_p, c_size_t]),
    "plong_llama_rope_factor": (c_float, [c_void_p, c_int32]),
    "plong_llama_stats": (None, [c_void_p, POINTER(CStats)]),
    "plong_llama_stats_reset": (None, [c_void_p]),
    "plong_llama_layers": (c_size_t, [c_void_p, c_char_p, c_size_t]),
    "plong_llama_memory": (c_int64, [c_void_p]),
    "ggml_init": (c_void_p, [CInitParams]),
    "ggml_free": (None, [c_void_p]),
    "ggml_set_no_alloc": (None, [c_void_p, c_bool]),
    "ggml_get_no_alloc": (c_bool, [c_void_p]),
}


def _load() -> SimpleNamespace:
    # libllama's own handle also reaches the ggml libraries it was linked with, the very copies that are in
    # use; Windows looks no further than the file.
    libraries = [llama_cpp.llama_cpp._lib]
    libraries += [
        ctypes.CDLL(str(path)) for name in ("ggml-base", "ggml-cpu") if (path := _library.find(name))
    ]

    def function(name: str, result: Any, arguments: list[Any]) -> Callable[..., Any]:
        for library in libraries:
            if hasattr(library, name):
                found: Callable[..., Any] = getattr(library, name)
                found.restype, found.argtypes = result, arguments  # type: ignore[attr-defined]
                return found
        raise ImportError(
            f"{_PATH} has no {name}: it is not the library of this pyllama-long; "
            "reinstall the wheel, or run `make build`"
        )

    return SimpleNamespace(**{name: function(name, *types) for name, types in _SIGNATURES.items()})


lib = _load()


def _check_layout() -> None:
    words = lib.plong_batch_words
    head = words(0, 0, 0)
    native = [4 * head, *(4 * (words(*counts) - head) for counts in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))]
    mine = [ctypes.sizeof(kind) for kind in (CBatch, CSlot, CGroup, CRun)]
    if native != mine:
        raise ImportError(
            f"{_PATH} has structs of {native} bytes, this pyllama-long of {mine}: reinstall the wheel"
        )


_check_layout()


# ---- plans and policies ------------------------------------------------------------------------------------


def c_phase(phase: Phase) -> CPhase:
    c = CPhase(
        phase.sinks,
        phase.window,
        phase.global_,
        phase.dense_below,
        _WEIGHTS.index(phase.weight),
        _ALIGNS.index(phase.align),
        len(phase.branches),
    )
    for k, branch in enumerate(phase.branches):
        c.segment[k], c.rate[k] = branch.segment, branch.rate
    return c


def c_plan(plan: AttentionPlan) -> CPlan:
    return CPlan((CPhase * 2)(c_phase(plan.prefill), c_phase(plan.tail)), plan.dense_layers)


def c_rope(rope: RopePolicy) -> CRope:
    bands = (rope.factor, rope.beta_fast, rope.beta_slow, rope.low_freq, rope.high_freq)
    places = (_MAPS.index(rope.map), rope.chunk, rope.local, int(rope.logn), rope.n_train, int(rope.dynamic))
    return CRope(_FREQS.index(rope.freq), *bands, *places, len(rope.factors), tuple(rope.factors))


def c_config(plan: AttentionPlan, rope: RopePolicy, enabled: bool = True, precision: str = "auto") -> CConfig:
    """enabled: False for llama.cpp's own attention. precision: one of PRECISIONS."""
    return CConfig(ABI_VERSION, int(enabled), PRECISIONS.index(precision), c_plan(plan), c_rope(rope))


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode(errors="replace")


def check(config: CConfig) -> None:
    """Raises ValueError when the plan or the policy cannot be run."""
    for complaint in (lib.plong_plan_check(config.plan), lib.plong_rope_check(config.rope)):
        if complaint is not None:
            raise ValueError(complaint.decode(errors="replace"))


def head_number(head: int, n_head: int, n_head_kv: int) -> int:
    """The number of a query head in dilated attention, which sets its offsets."""
    return int(lib.plong_head_number(head, n_head, n_head_kv))


def phase_keys(phase: Phase, p: int, h: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Positions [n], ascending, and log_w [n] of the keys that query position p of head number h reads."""
    c = c_phase(phase)
    n = lib.plong_phase_keys(c, p, h, 0, None, None)
    pos, log_w = np.empty(n, np.int32), np.empty(n, np.float32)
    lib.plong_phase_keys(c, p, h, n, _pointer(pos, c_int32), _pointer(log_w, c_float))
    return pos, log_w


def phase_count(phase: Phase, p: int, h: int) -> int:
    return int(lib.plong_phase_count(c_phase(phase), p, h))


def rope_freqs(
    rope: RopePolicy, n_rot: int, base: float, model_factors: Sequence[float] | None = None
) -> tuple[npt.NDArray[np.float64], float]:
    """Angular frequencies [n_rot/2] in radians per position, and the magnitude of cos and sin."""
    f = np.empty(n_rot // 2, np.float64)
    own = None if model_factors is None else np.asarray(model_factors, np.float32)
    factors = None if own is None else _pointer(own, c_float)
    magnitude = lib.plong_rope_freqs(c_rope(rope), n_rot, base, factors, _pointer(f, c_double))
    return f, float(magnitude)


def rope_stored(rope: RopePolicy, t: int) -> int:
    return int(lib.plong_rope_stored(c_rope(rope), t))


def rope_distance(rope: RopePolicy, p: int, t: int) -> int:
    return int(lib.plong_rope_distance(c_rope(rope), p, t))


def rope_logn(rope: RopePolicy, p: int) -> float:
    return float(lib.plong_rope_logn(c_rope(rope), p))


def rope_angles(f: npt.NDArray[np.float64], pos: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """cos and sin [n, n_rot/2, 2] of f [n_rot/2] times pos [n], the way the kernels read their table."""
    n_rot = 2 * len(f)
    f, pos = np.ascontiguousarray(f, np.float64), np.ascontiguousarray(pos, np.int64)
    table = np.empty(4 * 256 * n_rot, np.float32)
    out = np.empty((len(pos), len(f), 2), np.float32)
    lib.plong_rope_table(_pointer(f, c_double), n_rot, _pointer(table, c_float))
    lib.plong_rope_angles(
        _pointer(table, c_float), n_rot, _pointer(pos, c_int64), len(pos), _pointer(out, c_float)
    )
    return out


def _pointer(array: npt.NDArray[Any], kind: Any) -> Any:
    return array.ctypes.data_as(POINTER(kind))


# ---- memory for llama_cpp's functions ----------------------------------------------------------------------


def char_buffer(n: int) -> Any:
    return ctypes.create_string_buffer(n)


def floats(values: Sequence[float], n: int) -> Any:
    """A C array of n floats, zeros after the values."""
    return (c_float * n)(*values)


def adapters(pointers: Sequence[Any], scales: Sequence[float]) -> tuple[Any, int, Any]:
    """What llama_set_adapters_lora takes after the context."""
    n = len(pointers)
    return (llama_cpp.llama_adapter_lora_p_ctypes * n)(*pointers), n, (c_float * n)(*scales)


def byte_pointer(data: npt.NDArray[np.uint8]) -> Any:
    return _pointer(data, ctypes.c_uint8)


def text_array(texts: Sequence[bytes]) -> Any:
    """A char * [n]."""
    return (c_char_p * len(texts))(*texts)


def tokenize_address() -> int:
    """Of llama_tokenize, for libraries that call it themselves."""
    return ctypes.cast(llama_cpp.llama_cpp._lib.llama_tokenize, c_void_p).value or 0


def token_pointer(ids: npt.NDArray[np.int32]) -> Any:
    return _pointer(ids, c_int32)


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
            token=_pointer(self.token, c_int32),
            pos=_pointer(self.pos, c_int32),
            n_seq_id=_pointer(self._one, c_int32),
            seq_id=self._seq,
            logits=_pointer(self.logits, ctypes.c_int8),
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
        """The tokens `ids` alone, with their logits of all [n]."""
        rows = self.table[: len(ids)]
        rows["id"], rows["logit"], rows["p"] = ids, logits[ids], 0
        self.array.size, self.array.selected, self.array.sorted = len(ids), -1, False

    def chosen(self) -> int:
        """The token of the row that a sampler selected, else of the first one."""
        return int(self.table[max(0, self.array.selected)]["id"])


def progress_callback(visit: Callable[[float], None]) -> Any:
    """For llama_model_params: visit(share) while a model is loaded."""

    @llama_cpp.llama_progress_callback  # type: ignore[untyped-decorator]
    def call(share: float, _data: object) -> bool:
        visit(share)
        return True

    return call


# ---- contexts ----------------------------------------------------------------------------------------------


class Interrupt:
    """Stops the `llama_decode` of a context from any thread, between two operations of its graph: it returns 2 then.
    Asked after each of them, it must not wait for the interpreter's lock. So what is asked is a C function that
    reads one bool, ggml_get_no_alloc, of a ggml context that holds nothing else."""

    def __init__(self, ctx: Any) -> None:
        self._flag = lib.ggml_init(CInitParams(1024, None, False))
        ask = ctypes.cast(lib.ggml_get_no_alloc, llama_cpp.llama_set_abort_callback.argtypes[1])
        llama_cpp.llama_set_abort_callback(ctx, ask, self._flag)

    def set(self, on: bool) -> None:
        lib.ggml_set_no_alloc(self._flag, on)

    def close(self) -> None:
        """After the context was freed."""
        if self._flag:
            lib.ggml_free(self._flag)
        self._flag = None


@dataclass(frozen=True)
class Stats:
    """Rows (token, head, layer) that the op computed, keys that exact attention would have read for them,
    keys read, tokens decoded with the op, and runs of neighbouring cells that held the keys, summed over batches
    and the sequences in them."""

    n_queries: int
    keys_visible: int
    keys_read: int
    n_tokens: int
    n_runs: int


def configure_next(config: CConfig | None) -> None:
    """What the next llama_context of this thread starts with; None: upstream's attention."""
    lib.plong_llama_configure_next(config)


def configure(ctx: int, config: CConfig) -> None:
    """Changes a live context; the RoPE policy only while its cache is empty. Raises ValueError with the
    reason."""
    reason = ctypes.create_string_buffer(512)
    if lib.plong_llama_configure(ctx, config, reason, len(reason)) != 0:
        raise ValueError(reason.value.decode(errors="replace"))


def set_tail(ctx: int, seq: int, pos: int | None) -> None:
    """Tokens of seq at positions >= pos are the tail; None forgets it."""
    lib.plong_llama_set_tail(ctx, seq, -1 if pos is None else pos)


def set_rope_factor(ctx: int, seq: int, factor: float) -> None:
    """Gives a sequence another factor of a dynamic policy; its cached keys are turned. Raises RuntimeError."""
    error = ctypes.create_string_buffer(256)
    if lib.plong_llama_set_rope_factor(ctx, seq, factor, error, len(error)):
        raise RuntimeError(error.value.decode(errors="replace"))


def rope_factor(ctx: int, seq: int) -> float:
    """The factor of a sequence; 1 where the policy is not dynamic."""
    return float(lib.plong_llama_rope_factor(ctx, seq))


def stats(ctx: int) -> Stats:
    c = CStats()
    lib.plong_llama_stats(ctx, c)
    return Stats(c.n_queries, c.keys_visible, c.keys_read, c.n_tokens, c.n_runs)


def stats_reset(ctx: int) -> None:
    lib.plong_llama_stats_reset(ctx)


def layers(ctx: int) -> list[tuple[int, str]]:
    """(layer, reason) as of the last graph; the reason is empty when the op takes the layer."""
    n = lib.plong_llama_layers(ctx, None, 0)
    text = ctypes.create_string_buffer(n + 1)
    lib.plong_llama_layers(ctx, text, n + 1)
    pairs = (line.split("\t", 1) for line in text.value.decode(errors="replace").splitlines())
    return [(int(layer), reason) for layer, reason in pairs]


# ---- instruction sets --------------------------------------------------------------------------------------


def isas() -> dict[str, bool]:
    """The instruction sets compiled in, best first, and whether this processor can run each."""
    found: dict[str, bool] = {}
    while (name := _text(lib.plong_cpu_isa_name(len(found)))) is not None:
        found[name] = bool(lib.plong_cpu_isa_usable(len(found)))
    return found


def isa(precision: str = "auto") -> str:
    """The instruction set in use at a precision: one that multiplies bf16 leaves "f32" to another."""
    return _text(lib.plong_cpu_isa(PRECISIONS.index(precision))) or ""


def force_isa(name: str | None) -> None:
    """Forces an instruction set; None: the best usable one. Raises ValueError when it is unknown or not
    usable here."""
    if not lib.plong_cpu_isa_force((name or "").encode()):
        usable = ", ".join(n for n, ok in isas().items() if ok)
        raise ValueError(f"instruction set {name!r} cannot be used here; usable: {usable}")


def isa_tiles(name: str) -> int:
    """Query tiles that an instruction set has computed in this process."""
    return int(lib.plong_cpu_isa_tiles(list(isas()).index(name)))
