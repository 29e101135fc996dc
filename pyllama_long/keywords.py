"""The keyword arguments of llama_cpp.Llama, with our defaults."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from operator import index
from types import SimpleNamespace
from typing import Any

from pyllama_long._native import llama_cpp
from pyllama_long.context_options import MAX_THREADS

# read now, since the name may later refer to LongLlama
_UPSTREAM = inspect.signature(llama_cpp.Llama.__init__)
# former options of Llama, with the values that LangChain still passes
_FORMER = {"f16_kv": True, "n_parts": -1}
_INT = 2**31 - 1
_THREADS = f"at most {MAX_THREADS}, or None to let it be chosen"
# Options that are whole numbers: least, most, and what to give.
_RANGES: dict[str, tuple[int, int, str]] = {
    "n_gpu_layers": (-1, _INT, "a number of layers, or -1 for all"),
    "split_mode": (0, 3, "one of llama_cpp.LLAMA_SPLIT_MODE_*"),
    "main_gpu": (-1, _INT, "the number of a GPU"),
    "n_batch": (1, _INT, "1 or more tokens"),
    "n_ubatch": (1, _INT, "1 or more tokens"),
    "n_threads": (0, MAX_THREADS, _THREADS),
    "n_threads_batch": (0, MAX_THREADS, _THREADS),
    "rope_scaling_type": (-1, 3, "one of llama_cpp.LLAMA_ROPE_SCALING_TYPE_*"),
    "pooling_type": (-1, 4, "one of llama_cpp.LLAMA_POOLING_TYPE_*"),
    "attention_type": (-1, 1, "one of llama_cpp.LLAMA_ATTENTION_TYPE_*"),
    "yarn_orig_ctx": (0, _INT, "a number of tokens, or 0 for the model's own"),
    "numa": (0, 4, "True, False, or one of llama_cpp.GGML_NUMA_STRATEGY_*"),
}
_MAY_BE_NONE = {"n_threads", "n_threads_batch", "rope_scaling_type"}
_FINITE = {"rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast"}
_FINITE |= {"yarn_beta_slow", "lora_scale"}


def options(given: Mapping[str, Any]) -> SimpleNamespace:
    """The arguments of llama_cpp.Llama with our defaults; unknown ones are left out with a warning."""
    known = {p.name: p.default for p in _UPSTREAM.parameters.values() if p.kind is p.KEYWORD_ONLY}
    unknown = sorted(key for key in given if key not in known and given[key] != _FORMER.get(key, ...))
    if unknown:
        warnings.warn(f"LongLlama ignores unknown options: {', '.join(unknown)}", stacklevel=3)
    ours = {"flash_attn": True, "verbose": False}
    numbers = {name: number(name, given[name]) for name in _RANGES.keys() & given.keys()}
    finite = {name: finite_number(name, given[name]) for name in _FINITE & given.keys()}
    taken = {key: given[key] for key in given if key in known}
    return SimpleNamespace(**known | ours | taken | numbers | finite)


def number(name: str, value: Any) -> Any:
    """An option that is a whole number, within what llama.cpp takes; None stays."""
    least, most, what = _RANGES[name]
    if value is None and name in _MAY_BE_NONE:
        return None
    try:
        whole = index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}: give {what}") from None
    if not least <= whole <= most:
        raise ValueError(f"{name} is {value}: give {what}")
    return whole


def finite_number(name: str, value: Any) -> float:
    """An option that is a number, not NaN or infinite."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name} is {value!r}: give a number") from None
    if not math.isfinite(found):
        raise ValueError(f"{name} is {found}: give a finite number")
    return found


def window(size: Any, n_ctx: int) -> int:
    """How many tokens the penalties look back: -1 and more than n_ctx mean all."""
    size = index(size)
    if size < -1:
        raise ValueError(f"last_n_tokens_size is {size}: give 0 or more tokens, or -1 for all")
    return n_ctx if size == -1 else min(size, n_ctx)
