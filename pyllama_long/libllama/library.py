"""The library loaded under llama_cpp: its functions with their types, and a check that it is ours."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, c_bool, c_char_p, c_double, c_float, c_int32, c_int64, c_size_t, c_void_p
from types import SimpleNamespace
from typing import Any

from pyllama_long import _library
from pyllama_long.libllama.structs import (
    CAttnParams,
    CBatch,
    CConfig,
    CError,
    CGroup,
    CInitParams,
    CInputs,
    CLimits,
    CPage,
    CPhase,
    CPlan,
    CRope,
    CRun,
    CShape,
    CSlot,
    CStats,
)

PATH = _library.require()
try:
    import llama_cpp as llama_cpp
    from llama_cpp import _internals as _internals
    from llama_cpp import _logger as _logger
    from llama_cpp import llama_chat_format as llama_chat_format
    from llama_cpp.llama_cache import LlamaDiskCache as LlamaDiskCache
    from llama_cpp.llama_grammar import LlamaGrammar as LlamaGrammar
    from llama_cpp.llama_tokenizer import LlamaTokenizer as LlamaTokenizer
except (AttributeError, OSError, RuntimeError) as error:
    raise ImportError(f"llama_cpp cannot use {PATH}: {error}") from error

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "plong_plan_check": (c_char_p, [POINTER(CPlan)]),
    "plong_plan_index": (c_int32, [POINTER(CPlan)]),
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
    "plong_batch_words": (c_size_t, [c_int32] * 5),
    "plong_batch_slots": (POINTER(CSlot), [POINTER(CBatch)]),
    "plong_batch_groups": (POINTER(CGroup), [POINTER(CBatch)]),
    "plong_batch_runs": (POINTER(CRun), [POINTER(CBatch)]),
    "plong_work_new": (c_void_p, [POINTER(CBatch), POINTER(CShape), POINTER(CLimits)]),
    "plong_work_free": (None, [c_void_p]),
    "plong_work_words": (c_size_t, [c_void_p]),
    "plong_work_choice_words": (c_size_t, [c_void_p]),
    "plong_work_print": (c_size_t, [c_void_p, c_char_p, c_size_t]),
    "plong_cpu_limits": (CLimits, [POINTER(CShape), ctypes.c_int]),
    "ggml_long_attn": (c_void_p, [c_void_p] * 4 + [POINTER(CInputs), POINTER(CAttnParams)]),
    "ggml_long_choose": (c_void_p, [c_void_p] * 4 + [POINTER(CInputs), POINTER(CAttnParams), c_int64]),
    "plong_index_bytes": (c_size_t, [c_int32, c_int32, c_int32, c_int64, c_int64]),
    "plong_backend_supports": (c_char_p, [c_void_p] * 4 + [POINTER(CAttnParams)]),
    "plong_cpu_isa_name": (c_char_p, [ctypes.c_int]),
    "plong_cpu_isa_usable": (c_bool, [ctypes.c_int]),
    "plong_cpu_isa_force": (c_bool, [c_char_p]),
    "plong_cpu_isa": (c_char_p, [c_int32]),
    "plong_cpu_isa_tiles": (c_int64, [ctypes.c_int]),
    "plong_product_name": (c_char_p, [ctypes.c_int]),
    "plong_product_usable": (c_bool, [ctypes.c_int]),
    "plong_product_force": (c_bool, [c_char_p]),
    "plong_product": (c_char_p, []),
    "plong_product_tiles": (c_int64, [ctypes.c_int]),
    "plong_product_takes_type": (c_bool, [ctypes.c_int]),
    "plong_llama_configure_next": (None, [POINTER(CConfig)]),
    "plong_llama_configure": (c_int32, [c_void_p, POINTER(CConfig), c_char_p, c_size_t]),
    "plong_llama_set_tail": (None, [c_void_p, c_int32, c_int32]),
    "plong_llama_set_rope_factor": (c_int32, [c_void_p, c_int32, c_float, c_char_p, c_size_t]),
    "plong_llama_rope_factor": (c_float, [c_void_p, c_int32]),
    "plong_llama_stats": (None, [c_void_p, POINTER(CStats)]),
    "plong_llama_stats_reset": (None, [c_void_p]),
    "plong_llama_record": (None, [c_void_p, c_bool]),
    "plong_llama_reads": (c_size_t, [c_void_p, c_int32, POINTER(c_double), c_size_t]),
    "plong_llama_errors": (c_size_t, [c_void_p, POINTER(CError), c_size_t]),
    "plong_llama_layers": (c_size_t, [c_void_p, c_char_p, c_size_t]),
    "plong_llama_native_layers": (c_size_t, [c_void_p, c_char_p, c_size_t]),
    "plong_llama_index_memory": (c_int64, [c_void_p]),
    "plong_llama_memory": (c_int64, [c_void_p]),
    "ggml_init": (c_void_p, [CInitParams]),
    "ggml_free": (None, [c_void_p]),
    "ggml_set_no_alloc": (None, [c_void_p, c_bool]),
    "ggml_get_no_alloc": (c_bool, [c_void_p]),
}


def _libraries() -> list[ctypes.CDLL]:
    # libllama's own handle also finds the ggml libraries that it was linked with, the same copies that are in use. On
    # Windows, a handle only finds its own file.
    libraries = [llama_cpp.llama_cpp._lib]
    libraries += [
        ctypes.CDLL(str(path)) for name in ("ggml-base", "ggml-cpu") if (path := _library.find(name))
    ]
    return libraries


def _load() -> SimpleNamespace:
    libraries = _libraries()

    def function(name: str, result: Any, arguments: list[Any]) -> Callable[..., Any]:
        for library in libraries:
            if hasattr(library, name):
                found: Callable[..., Any] = getattr(library, name)
                found.restype, found.argtypes = result, arguments  # type: ignore[attr-defined]
                return found
        raise ImportError(
            f"{PATH} has no {name}: it is not the library of this pyllama-long; "
            "reinstall the wheel, or run `make build`"
        )

    return SimpleNamespace(**{name: function(name, *types) for name, types in _SIGNATURES.items()})


lib = _load()


def address(name: str) -> int:
    """Where a constant of the library lies."""
    for library in _libraries():
        try:
            return ctypes.addressof(ctypes.c_char.in_dll(library, name))
        except ValueError:
            continue
    raise ImportError(f"{PATH} has no {name}: reinstall the wheel, or run `make build`")


def _check_layout() -> None:
    words = lib.plong_batch_words
    kinds = (CSlot, CGroup, CRun, CPage, c_int32)
    head = words(*[0] * len(kinds))
    one_of_each = [[int(i == k) for i in range(len(kinds))] for k in range(len(kinds))]
    native = [4 * head, *(4 * (words(*counts) - head) for counts in one_of_each)]
    mine = [ctypes.sizeof(kind) for kind in (CBatch, *kinds)]
    if native != mine:
        raise ImportError(
            f"{PATH} has structs of {native} bytes, this pyllama-long of {mine}: reinstall the wheel"
        )


_check_layout()
