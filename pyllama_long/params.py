"""llama.cpp's parameter structs of models and contexts, from the arguments of llama_cpp.Llama."""

from __future__ import annotations

import functools
import os
from types import SimpleNamespace
from typing import Any

from pyllama_long import _native
from pyllama_long._native import llama_cpp

_SAME = (
    "pooling_type attention_type rope_freq_base rope_freq_scale yarn_ext_factor yarn_attn_factor "
    "yarn_beta_fast yarn_beta_slow yarn_orig_ctx offload_kqv no_perf"
).split()  # arguments of Llama that llama_context_params has under the same name


def cpus() -> tuple[int, int]:
    """Cores and hardware threads that this process may use."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in usable:
        try:
            with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as f:
                cores.add(f.read().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores)), max(1, len(usable))


def model_params(o: SimpleNamespace) -> llama_cpp.llama_model_params:
    """llama_model_params, which keeps the arrays that it points to. Raises ValueError."""
    params: llama_cpp.llama_model_params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 2**31 - 1 if o.n_gpu_layers == -1 else o.n_gpu_layers
    params.split_mode, params.main_gpu, params.vocab_only = o.split_mode, o.main_gpu, o.vocab_only
    use_mmap = o.use_mmap and o.lora_path is None
    params.load_mode = {
        (False, False): llama_cpp.LLAMA_LOAD_MODE_NONE,
        (True, False): llama_cpp.LLAMA_LOAD_MODE_MMAP,
        (False, True): llama_cpp.LLAMA_LOAD_MODE_MLOCK,
        (True, True): llama_cpp.LLAMA_LOAD_MODE_MMAP_MLOCK,
    }[bool(use_mmap), bool(o.use_mlock)]
    if o.tensor_split is not None:
        if len(o.tensor_split) > llama_cpp.LLAMA_MAX_DEVICES:
            raise ValueError(
                f"tensor_split has {len(o.tensor_split)} parts, at most {llama_cpp.LLAMA_MAX_DEVICES} work"
            )
        params.tensor_split = _native.floats(o.tensor_split, llama_cpp.LLAMA_MAX_DEVICES)
    if o.kv_overrides:
        overrides = (
            llama_cpp.llama_model_kv_override * (len(o.kv_overrides) + 1)
        )()  # the last one stays empty
        for slot, (key, value) in zip(overrides, o.kv_overrides.items(), strict=False):
            _override(slot, key, value)
        params.kv_overrides = overrides
    return params


def overrides(made: llama_cpp.llama_model_params, o: SimpleNamespace) -> bytes:
    """The array of llama_model_kv_override for kv_overrides, or nothing."""
    n = len(o.kv_overrides or ()) + 1
    return b"".join(bytes(made.kv_overrides[i]) for i in range(n)) if o.kv_overrides else b""


def _override(slot: Any, key: str, value: bool | int | float | str) -> None:
    kinds = {
        bool: ("BOOL", "val_bool"),
        int: ("INT", "val_i64"),
        float: ("FLOAT", "val_f64"),
        str: ("STR", "val_str"),
    }
    if type(value) not in kinds:
        raise ValueError(f"kv_overrides: {key} is a {type(value).__name__}; give a bool, int, float or str")
    name, member = kinds[type(value)]
    raw = value.encode() if isinstance(value, str) else value
    if isinstance(raw, bytes) and len(raw) > 127:
        raise ValueError(f"kv_overrides: the value of {key} is longer than 127 bytes")
    slot.key = key.encode()
    slot.tag = getattr(llama_cpp, f"LLAMA_KV_OVERRIDE_TYPE_{name}")
    setattr(slot.value, member, raw)


def context_params(
    o: SimpleNamespace, n_ctx: int, type_k: int, type_v: int
) -> llama_cpp.llama_context_params:
    params: llama_cpp.llama_context_params = llama_cpp.llama_context_default_params()
    cores, threads = cpus()
    n_batch = min(n_ctx, o.n_batch)
    params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, n_batch, min(n_batch, o.n_ubatch)
    params.n_threads, params.n_threads_batch = o.n_threads or cores, o.n_threads_batch or threads
    if o.rope_scaling_type is not None:
        params.rope_scaling_type = o.rope_scaling_type
    for name in _SAME:
        setattr(params, name, getattr(o, name))
    for name in ("op_offload", "swa_full"):
        if getattr(o, name) is not None:
            setattr(params, name, getattr(o, name))
    params.embeddings = o.embedding
    on, off = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED, llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.flash_attn_type = on if o.flash_attn else off
    params.type_k, params.type_v = type_k, type_v
    if o.embedding:
        params.n_seq_max = min(n_batch, llama_cpp.llama_max_parallel_sequences())
        params.kv_unified = True
    return params


@functools.cache
def start_backend(numa: bool | int) -> None:
    llama_cpp.llama_backend_init()
    strategy = llama_cpp.GGML_NUMA_STRATEGY_DISTRIBUTE if numa is True else int(numa)
    if strategy:
        llama_cpp.llama_numa_init(strategy)
