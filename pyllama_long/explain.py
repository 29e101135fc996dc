"""What a LongLlama runs, and why, in a few plain lines."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from pyllama_long import _native, loading
from pyllama_long.plan import AttentionPlan
from pyllama_long.rope import RopePolicy


class Context(Protocol):
    """What is explained: a LongLlama, or the context of an engine."""

    model_path: str
    n_train: int
    plan: AttentionPlan
    plan_reason: str
    rope: RopePolicy
    rope_reason: str
    upstream: bool
    precision: str
    context_params: Any

    @property
    def lora(self) -> Sequence[tuple[str, float]]: ...
    @property
    def ctx(self) -> Any: ...
    def n_ctx(self) -> int: ...


def explain(llama: Context, factor: float | None = None) -> str:
    """Lengths, plan and RoPE policy with reasons, cache, kernels, and the layers that llama.cpp computes.
    factor: that of a dynamic policy, where there is one text only."""
    names = {value: key for key, value in loading.KV_TYPES.items()}
    params = llama.context_params
    kinds = dict.fromkeys(names.get(kind, f"type {kind}") for kind in (params.type_k, params.type_v))
    lines = [
        f"model: {llama.model_path}, trained on {llama.n_train} tokens",
        f"context window: {llama.n_ctx()} tokens, {'/'.join(kinds)} cache",
        f"attention: {llama.plan} ({llama.plan_reason})",
        *(f"  {line}" for line in llama.plan.explain().splitlines()),
        f"RoPE: {llama.rope} ({llama.rope_reason})",
        *(f"  {line}" for line in llama.rope.explain().splitlines()),
        *([f"  factor now: {factor:g}"] if llama.rope.dynamic and factor is not None else []),
        *(f"LoRA: {path}, scale {scale:g}" for path, scale in llama.lora),
        f"CPU kernels: {kernels(llama)}",
        f"layers with llama.cpp's own attention: {refused(llama) or 'none'}",
    ]
    return "\n".join(lines)


def kernels(llama: Context) -> str:
    """The instruction set that attention runs on, and what its products are made of."""
    if llama.upstream:
        return "llama.cpp's own"
    isa = _native.isa(llama.precision)
    return f"{isa}, {'float32' if isa == _native.isa('f32') else 'bf16'}"


def refused(llama: Context) -> str:
    """How many layers do not run the plan, and why; empty when all do."""
    if llama.upstream:
        return "all, as asked for"
    counts = Counter(reason for _, reason in _native.layers(llama.ctx) if reason)
    return "; ".join(f"{n} ({reason})" for reason, n in counts.items())


def warn_refused(llama: Context) -> None:
    """Warns about layers without the plan and the RoPE policy, where that changes what they compute."""
    found = refused(llama)
    if found and not llama.upstream and (str(llama.plan), str(llama.rope)) != ("exact", "native"):
        warnings.warn(f"layers that run neither the plan nor the RoPE policy: {found}", stacklevel=4)
