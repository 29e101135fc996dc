"""From the keyword arguments of llama_cpp.Llama to llama.cpp's parameter structs, and a context made from
them."""

from __future__ import annotations

import functools
import inspect
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from types import SimpleNamespace
from typing import Any

from pyllama_long import _native, log
from pyllama_long._native import _internals, llama_chat_format, llama_cpp
from pyllama_long.errors import ModelError
from pyllama_long.model import Model, read_hints
from pyllama_long.plan import AttentionPlan, choose_plan
from pyllama_long.rope import RopePolicy, Takes, choose_rope
from pyllama_long.rope_scaling import read_scaling
from pyllama_long.template import Ask, ChatTemplate

KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}  # ggml_type
_THEIRS = {"q4_1": 3, "q5_0": 6, "q5_1": 7, "iq4_nl": 20}  # which llama.cpp's own attention reads
MOST_THREADS = 512  # GGML_MAX_N_THREADS
_SAME = (
    "pooling_type attention_type rope_freq_base rope_freq_scale yarn_ext_factor yarn_attn_factor "
    "yarn_beta_fast yarn_beta_slow yarn_orig_ctx offload_kqv no_perf"
).split()  # arguments of Llama that llama_context_params has under the same name
_UPSTREAM = inspect.signature(llama_cpp.Llama.__init__)  # read now: the name may come to mean LongLlama
_FORMER = {"f16_kv": True, "n_parts": -1}  # options that Llama once had, and what LangChain still gives
_INT = 2**31 - 1
_THREADS = f"at most {MOST_THREADS}, or None to let it be chosen"
# Options that are whole numbers: least, most, and what to give.
_RANGES: dict[str, tuple[int, int, str]] = {
    "n_gpu_layers": (-1, _INT, "a number of layers, or -1 for all"),
    "split_mode": (0, 3, "one of llama_cpp.LLAMA_SPLIT_MODE_*"),
    "main_gpu": (-1, _INT, "the number of a GPU"),
    "n_batch": (1, _INT, "1 or more tokens"),
    "n_ubatch": (1, _INT, "1 or more tokens"),
    "n_threads": (0, MOST_THREADS, _THREADS),
    "n_threads_batch": (0, MOST_THREADS, _THREADS),
    "rope_scaling_type": (-1, 3, "one of llama_cpp.LLAMA_ROPE_SCALING_TYPE_*"),
    "pooling_type": (-1, 4, "one of llama_cpp.LLAMA_POOLING_TYPE_*"),
    "attention_type": (-1, 1, "one of llama_cpp.LLAMA_ATTENTION_TYPE_*"),
    "yarn_orig_ctx": (0, _INT, "a number of tokens, or 0 for the model's own"),
    "numa": (0, 4, "True, False, or one of llama_cpp.GGML_NUMA_STRATEGY_*"),
}
_MAY_BE_NONE = {"n_threads", "n_threads_batch", "rope_scaling_type"}
_FINITE = {"rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast"}
_FINITE |= {"yarn_beta_slow", "lora_scale"}
KV_BYTES = {0: 4.0, 1: 2.0, 2: 18 / 32, 8: 34 / 32, 30: 2.0}  # per value


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


def kv_type(given: str | int) -> int:
    """ggml_type of a KV cache type's name, or of its number, as llama_cpp's type_k and type_v give it."""
    if isinstance(given, int):
        numbers = KV_TYPES | _THEIRS
        if given not in numbers.values():
            known = ", ".join(f"{number} ({name})" for name, number in numbers.items())
            raise ValueError(f"unknown type_k or type_v {given}; known: {known}")
        return given
    if given not in KV_TYPES:
        raise ValueError(f"unknown kv_type {given!r}; known: {', '.join(KV_TYPES)}")
    return KV_TYPES[given]


def kv_types(both: str, k: int | None, v: int | None) -> tuple[int, int]:
    """Of K and of V. both: kv_type; k and v: llama_cpp's type_k and type_v."""
    if both != "f16" and (k, v) != (None, None):
        raise ValueError(f"kv_type={both!r} is for K and V: leave out type_k and type_v, or kv_type")
    return kv_type(both if k is None else k), kv_type(both if v is None else v)


def precision(name: str) -> str:
    """The name itself, when there is such a precision."""
    if name not in _native.PRECISIONS:
        raise ValueError(f"unknown precision {name!r}; known: {', '.join(_native.PRECISIONS)}")
    return name


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


def model_params(o: SimpleNamespace) -> tuple[llama_cpp.llama_model_params, list[Any]]:
    """llama_model_params, and the arrays that must live as long as it does."""
    params, arrays = llama_cpp.llama_model_default_params(), []
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
        split = _native.floats(o.tensor_split, llama_cpp.LLAMA_MAX_DEVICES)
        params.tensor_split = split
        arrays.append(split)
    if o.kv_overrides:
        overrides = (
            llama_cpp.llama_model_kv_override * (len(o.kv_overrides) + 1)
        )()  # the last one stays empty
        for slot, (key, value) in zip(overrides, o.kv_overrides.items(), strict=False):
            _override(slot, key, value)
        params.kv_overrides = overrides
        arrays.append(overrides)
    return params, arrays


def overrides(o: SimpleNamespace) -> bytes:
    """The array of llama_model_kv_override that kv_overrides asks for, or nothing."""
    params, _arrays = model_params(o)
    n = len(o.kv_overrides or ()) + 1
    return b"".join(bytes(params.kv_overrides[i]) for i in range(n)) if o.kv_overrides else b""


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


def scaled_by_caller(o: SimpleNamespace, model_base: float) -> bool:
    """Whether llama_cpp's own RoPE arguments ask for another rotation than the model's.

    model_base: 0 when unknown. LangChain always passes rope_freq_base=10000 and rope_freq_scale=1: both are
    taken as "the model's own".
    """
    if o.rope_freq_scale == 1.0:
        o.rope_freq_scale = 0.0
    if o.rope_freq_base == 10000.0:
        if model_base not in (0.0, 10000.0):
            warnings.warn(
                f"rope_freq_base=10000 is ignored: the model was trained with {model_base:g}; "
                "scale with rope='...'",
                stacklevel=5,
            )
        o.rope_freq_base = 0.0
    unspecified = (None, llama_cpp.LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED)
    return bool(
        o.rope_freq_base
        or o.rope_freq_scale
        or o.rope_scaling_type not in unspecified
        or (o.yarn_ext_factor, o.yarn_attn_factor, o.yarn_orig_ctx) != (-1.0, 1.0, 0)
    )


@dataclass(frozen=True)
class Settled:
    """What a context will run, with a reason each. upstream: llama.cpp's own attention."""

    plan: AttentionPlan
    plan_reason: str
    rope: RopePolicy
    rope_reason: str
    upstream: bool


def trained_length(model: Model, metadata: Mapping[str, str]) -> int:
    """Tokens that a model knows with the RoPE scaling of its file; 512 where the file does not say. Raises
    ModelError."""
    arch = metadata.get("general.architecture", "")
    n_train = model.n_ctx_train() or int(metadata.get(f"{arch}.context_length", "0")) or 512
    try:
        return read_scaling(metadata, arch, n_train, read_hints(model.path_model, arch).rope_factors).n_train
    except ValueError as error:
        raise ModelError(f"cannot load {model.path_model}: {error}") from None


def settle(
    model: Model,
    metadata: Mapping[str, str],
    attention: str | AttentionPlan,
    rope: str | RopePolicy,
    lengths: tuple[int, int],
    o: SimpleNamespace,
) -> Settled:
    """The plan and the RoPE policy for a model. lengths: trained length and context window, in tokens.
    Raises PlanError, RopeError and ValueError."""
    n_train, n_ctx = lengths
    arch = metadata.get("general.architecture")

    def meta(name: str, default: str = "") -> str:
        return metadata.get(f"{arch}.{name}", default)

    hints = read_hints(model.path_model, arch or "")
    takes = Takes(model.has_rope(), model.takes.no_map, model.takes.no_scaling)
    upstream = attention == "upstream"
    if isinstance(attention, AttentionPlan):
        plan, plan_reason = attention, "asked for"
    elif upstream:
        plan, plan_reason = AttentionPlan.parse("exact"), "llama.cpp's own, as asked for"
    else:
        plan, plan_reason = choose_plan(attention, n_train, hints.dilated)
    native = RopePolicy(n_train=n_train)
    if scaled_by_caller(o, float(meta("rope.freq_base", "0"))):
        if rope != "auto":
            raise ValueError("give rope=..., or llama_cpp's rope_* and yarn_* arguments, not both")
        policy, reason = native, "llama_cpp's own arguments scale"
    elif upstream and rope == "auto":
        policy, reason = native, "llama.cpp's own attention has no other positions"
    elif isinstance(rope, RopePolicy):
        policy, reason = rope, "asked for"
    else:
        scaling = read_scaling(metadata, arch or "", n_train, hints.rope_factors).name
        policy, reason = choose_rope(rope, n_train, n_ctx, scaling, meta("rope.extension"), plan.reach, takes)
    if upstream and str(policy) != "native":
        raise ValueError(f"attention='upstream' cannot run the RoPE policy {policy}: give rope='native'")
    return Settled(plan, plan_reason, policy, reason, upstream)


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


def open_context(
    model: Model, params: llama_cpp.llama_context_params, config: _native.CConfig
) -> _internals.LlamaContext:
    """A context that runs a plan and a RoPE policy. Raises ModelError with llama.cpp's reason."""
    _native.check(config)
    per_value = (KV_BYTES.get(params.type_k, 2) + KV_BYTES.get(params.type_v, 2)) / 2
    size, memory = model.kv_bytes(params.n_ctx, per_value), _memory()
    takes = f"the KV cache of {params.n_ctx} tokens takes {size / 2**30:.1f} GiB"
    advice = "lower n_ctx, or take kv_type='q8_0'"
    if 0 < memory < size and model.params.n_gpu_layers == 0 and not model.params.vocab_only:
        raise ModelError(f"{takes}, and this machine has {memory / 2**30:.1f} GiB: {advice}")
    log.forget()
    _native.configure_next(config)
    try:
        return _internals.LlamaContext(model=model, params=params, verbose=model.verbose)
    except ValueError:
        reason = log.complaint()
        hint = f"; {takes}: {advice}" if "alloc" in reason else ""
        raise ModelError(f"cannot make a context for {model.path_model}: {reason}{hint}") from None
    finally:
        _native.configure_next(None)


def _memory() -> int:
    """Bytes of main memory, 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def chat_formats(model: Model, metadata: Mapping[str, str], eos: int, bos: int) -> dict[str, Any]:
    """Chat handlers for the templates that the GGUF carries, by name."""
    prefix = "tokenizer.chat_template"
    templates = {
        key[len("tokenizer.") :]: text for key, text in metadata.items() if key.startswith(f"{prefix}.")
    }
    if prefix in metadata:
        templates["chat_template.default"] = metadata[prefix]
    text = {token: model.token_get_text(token) if token != -1 else "" for token in (eos, bos)}
    handlers = {}
    for name, source in templates.items():
        try:
            template = ChatTemplate(source, text[bos], text[eos], ())
        except ValueError as error:
            warnings.warn(f"{name} of {model.path_model}: {error}", stacklevel=3)
            continue
        formatter = _formatter(template, text[eos])
        handlers[name] = llama_chat_format.chat_formatter_to_chat_completion_handler(formatter)
    return handlers


def _formatter(template: ChatTemplate, eos: str) -> Any:
    """A model's own template as llama_cpp calls it."""

    def render(*, messages: Sequence[Any], tools: Any = None, **_: Any) -> Any:
        found = template.render([_as_text(message) for message in messages], Ask(tools or ()))
        return llama_chat_format.ChatFormatterResponse(
            prompt=found.text, stop=[eos] if eos else [], added_special=True
        )

    return render


def _as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with one text for its parts. Raises ValueError for parts that are none."""
    content = message.get("content")
    if isinstance(content, list):
        kinds = [part.get("type") for part in content if part.get("type") != "text"]
        if kinds:
            raise ValueError(f"this model reads text; it cannot take a part of type {kinds[0]!r}")
        content = "".join(part.get("text") or "" for part in content)
    return {**message, "content": content}


@functools.cache
def start_backend(numa: bool | int) -> None:
    llama_cpp.llama_backend_init()
    strategy = llama_cpp.GGML_NUMA_STRATEGY_DISTRIBUTE if numa is True else int(numa)
    if strategy:
        llama_cpp.llama_numa_init(strategy)
