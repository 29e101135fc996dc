"""Opens a model: loads it, chooses its plan and RoPE policy, and makes the context that runs them."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from pyllama_long import _native, interrupts, keywords, layers, log, lora, memory, params
from pyllama_long._native import _internals, llama_cpp
from pyllama_long.context_options import bytes_per_value
from pyllama_long.errors import ModelError
from pyllama_long.hints import read_hints
from pyllama_long.model import Model
from pyllama_long.plan import AttentionPlan, choose_plan
from pyllama_long.rope import RopePolicy, Takes, choose_rope
from pyllama_long.rope_scaling import read_scaling


@dataclass(frozen=True)
class Wanted:
    """What a context is to run. attention: a plan, its text, or `upstream` for llama.cpp's own. n_ctx: in tokens, 0 for
    the trained length. kv: ggml_types of K and V. lora: adapters, each a GGUF file and a scale."""

    attention: str | AttentionPlan = "auto"
    rope: str | RopePolicy = "auto"
    n_ctx: int = 0
    kv: tuple[int, int] = (1, 1)
    precision: str = "auto"
    lora: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True)
class Settled:
    """What a context will run, with a reason each. upstream: llama.cpp's own attention."""

    plan: AttentionPlan
    plan_reason: str
    rope: RopePolicy
    rope_reason: str
    upstream: bool
    precision: str

    def config(self) -> _native.CConfig:
        return _native.c_config(self.plan, self.rope, not self.upstream, self.precision)


@dataclass(frozen=True)
class Opened(Settled):
    """A model and its context. path: as it was given. n_train: the trained length, in tokens. lora: the adapters,
    which cannot be changed."""

    path: str
    model: Model
    context: _internals.LlamaContext
    metadata: dict[str, str]
    n_train: int
    params: llama_cpp.llama_context_params
    lora: tuple[tuple[str, float], ...]

    @property
    def ctx(self) -> Any:
        return self.context.ctx

    def n_ctx(self) -> int:
        """The context window in tokens, as rounded by llama.cpp."""
        return int(self.context.n_ctx())

    def refused(self) -> str:
        """The layers that do not run the plan, and why; empty when all do."""
        return "all, as asked for" if self.upstream else layers.describe(_native.layers(self.ctx))

    def native(self) -> str:
        """The layers whose positions the RoPE policy leaves alone, and why; empty when there are none."""
        return "" if str(self.rope) == "native" else layers.describe(_native.native_layers(self.ctx))

    def index_memory(self) -> int:
        """Bytes that the indexes of keys may take; 0 if the plan chooses no keys by content."""
        return _native.index_memory(self.ctx)

    def windows(self) -> list[str]:
        """What layers with a window of their own read: "5 of 6 layers read the last 1024 tokens"."""
        counts, n_layers = Counter(_native.windows(self.ctx).values()), len(_native.layers(self.ctx))
        return [f"{n} of {n_layers} layers read {window}" for window, n in counts.items()]

    def close(self) -> None:
        """Frees both."""
        with closing(self.model), closing(self.context):
            pass


def open_model(
    path: str | os.PathLike[str],
    o: SimpleNamespace,
    wanted: Wanted,
    context: Callable[[Model, int, AttentionPlan], llama_cpp.llama_context_params] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Opened:
    """Loads a model and makes a context for it.

    path: a file, or a GGUFFile that was already read. o: from `keywords.options`. context: makes the parameters of
    the context from the model, the window in tokens and the plan, in place of `params.context_params`. on_progress:
    called while the model is loaded, with (percent, 100).

    Raises ModelError, PlanError, RopeError, ValueError. Warns about layers that cannot run what was chosen.
    """
    log.install(o.verbose)
    params.start_backend(o.numa)
    made = params.model_params(o)
    if on_progress is not None:
        report = on_progress

        def loaded(share: float) -> bool:
            report(int(100 * share), 100)
            return True

        made.progress_callback = _native.progress_callback(loaded)
    asked = params.context_params(o, wanted.n_ctx, *wanted.kv)
    with ExitStack() as stack:
        model = Model(path, made, o.verbose, asked, params.overrides(made, o))
        stack.enter_context(closing(model))
        n_train = _trained_length(model)
        n_ctx = wanted.n_ctx or n_train
        settled = settle(model, n_train, n_ctx, wanted, o)
        for_context = (
            params.context_params(o, n_ctx, *wanted.kv)
            if context is None
            else context(model, n_ctx, settled.plan)
        )
        made_context = _open_context(model, for_context, settled.config())
        stack.enter_context(closing(made_context))
        adapters = tuple((os.fspath(path), float(scale)) for path, scale in wanted.lora)
        lora.attach(model, made_context.ctx, adapters)
        opened = Opened(
            **vars(settled),
            path=os.fspath(path),
            model=model,
            context=made_context,
            metadata=model.metadata(),
            n_train=n_train,
            params=for_context,
            lora=adapters,
        )
        _check_windows(opened)
        _warn_refused(opened)
        stack.pop_all()
    return opened


def open_vocabulary(path: str | os.PathLike[str]) -> Model:
    """A model with only its vocabulary loaded, for tokenizing. Raises ModelError."""
    log.install(verbose=False)
    made = params.model_params(keywords.options({"vocab_only": True}))
    return Model(path, made)


# ---- what it will run --------------------------------------------------------------------------------------


def _trained_length(model: Model) -> int:
    """The length in tokens that a model knows with the RoPE scaling of its file; 512 if the file does not say. Raises
    ModelError."""
    metadata = model.metadata()
    arch = metadata.get("general.architecture", "")
    n_train = model.n_ctx_train() or int(metadata.get(f"{arch}.context_length", "0")) or 512
    try:
        return read_scaling(metadata, arch, n_train, read_hints(model.file, arch).rope_factors).n_train
    except ValueError as error:
        raise ModelError(f"cannot load {model.path_model}: {error}") from None


def settle(model: Model, n_train: int, n_ctx: int, wanted: Wanted, o: SimpleNamespace) -> Settled:
    """The plan and the RoPE policy for a model, its trained length and a context window, in tokens. Raises PlanError,
    RopeError and ValueError."""
    attention, rope, metadata = wanted.attention, wanted.rope, model.metadata()
    arch = metadata.get("general.architecture", "")
    hints = read_hints(model.file, arch)
    takes = Takes(model.has_rope(), model.takes.no_map, model.takes.no_scaling)
    upstream = attention == "upstream"
    if isinstance(attention, AttentionPlan):
        plan, plan_reason = attention, "asked for"
    elif upstream:
        plan, plan_reason = AttentionPlan.parse("exact"), "llama.cpp's own, as asked for"
    else:
        plan, plan_reason = choose_plan(attention, n_train, hints.dilated)
    native = RopePolicy(n_train=n_train)
    if scaled_by_caller(o, float(metadata.get(f"{arch}.rope.freq_base", "0"))):
        if rope != "auto":
            raise ValueError("give rope=..., or llama_cpp's rope_* and yarn_* arguments, not both")
        policy, reason = native, "llama_cpp's own arguments scale"
    elif upstream and rope == "auto":
        policy, reason = native, "llama.cpp's own attention has no other positions"
    elif isinstance(rope, RopePolicy):
        policy, reason = rope, "asked for"
    else:
        scaling = read_scaling(metadata, arch, n_train, hints.rope_factors).name
        extension = metadata.get(f"{arch}.rope.extension", "")
        policy, reason = choose_rope(rope, n_train, n_ctx, scaling, extension, plan.reach, takes)
    if upstream and str(policy) != "native":
        raise ValueError(f"attention='upstream' cannot run the RoPE policy {policy}: give rope='native'")
    if upstream and wanted.precision != "auto":
        raise ValueError(
            f"attention='upstream' has its own precision, not {wanted.precision}: give precision='auto'"
        )
    return Settled(plan, plan_reason, policy, reason, upstream, wanted.precision)


def scaled_by_caller(o: SimpleNamespace, model_base: float) -> bool:
    """Whether llama_cpp's own RoPE arguments request another rotation than the model's. model_base: 0 when unknown.
    LangChain always passes rope_freq_base=10000 and rope_freq_scale=1, so both count as "the model's own".
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


def _check_windows(opened: Opened) -> None:
    """Raises ModelError for a file whose window layers see no key: llama.cpp takes its number as 32 bits with a
    sign."""
    if opened.windows() and llama_cpp.llama_model_n_swa(opened.model.model) < 1:
        key = f"{opened.metadata.get('general.architecture', '')}.attention.sliding_window"
        raise ModelError(
            f"cannot load {opened.path}: {key} is {opened.metadata.get(key, 'missing')}, but some layers have a "
            "sliding window: the file is damaged, download it again"
        )


def _warn_refused(opened: Opened) -> None:
    """Warns about layers that do not run the plan, if that changes what they compute. (A RoPE policy that they
    could not follow would have been refused.)"""
    found = opened.refused()
    if found and not opened.upstream and str(opened.plan) != "exact":
        warnings.warn(f"layers that do not run the plan: {found}", stacklevel=4)


# ---- the context -------------------------------------------------------------------------------------------


def _open_context(
    model: Model, wanted: llama_cpp.llama_context_params, config: _native.CConfig
) -> _internals.LlamaContext:
    """A context that runs a plan and a RoPE policy. Raises ModelError with llama.cpp's reason."""
    _native.check(config)
    size = model.kv_bytes(wanted.n_ctx, bytes_per_value(wanted.type_k, wanted.type_v))
    installed = memory.installed()
    takes = f"the KV cache of {wanted.n_ctx} tokens takes {size / 2**30:.1f} GiB"
    advice = "lower n_ctx, or take kv_type='q8_0'"
    if 0 < installed < size and model.params.n_gpu_layers == 0 and not model.params.vocab_only:
        raise ModelError(f"{takes}, and this machine has {installed / 2**30:.1f} GiB: {advice}")
    log.forget()
    _native.configure_next(config)
    try:
        with interrupts.deferred():
            return _internals.LlamaContext(model=model, params=wanted, verbose=model.verbose)
    except ValueError:
        reason = log.complaint()
        hint = f"; {takes}: {advice}" if "alloc" in reason else ""
        raise ModelError(f"cannot make a context for {model.path_model}: {reason}{hint}") from None
    finally:
        _native.configure_next(None)
