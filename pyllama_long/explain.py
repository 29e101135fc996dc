"""What an opened model runs, and why, in a few plain lines."""

from __future__ import annotations

from pyllama_long import _native
from pyllama_long.context_options import kv_type_name
from pyllama_long.opened import Opened


def explain(opened: Opened, checkpoints: str, factor: float | None = None) -> str:
    """Lengths, plan and RoPE policy with reasons, cache, kernels, and the layers that llama.cpp computes.
    checkpoints: what is kept. factor: of a dynamic policy, if there is only one text."""
    params = opened.params
    kinds = dict.fromkeys(map(kv_type_name, (params.type_k, params.type_v)))
    lines = [
        f"model: {opened.path}, trained on {opened.n_train} tokens",
        f"context window: {opened.n_ctx()} tokens, {'/'.join(kinds)} cache",
        f"attention: {opened.plan} ({opened.plan_reason})",
        *(f"  {line}" for line in opened.plan.explain().splitlines()),
        *([f"  index of keys: up to {index / 2**20:,.0f} MiB"] if (index := opened.index_memory()) else []),
        f"RoPE: {opened.rope} ({opened.rope_reason})",
        *(f"  {line}" for line in opened.rope.explain().splitlines()),
        *([f"  factor now: {factor:g}"] if opened.rope.dynamic and factor is not None else []),
        *([f"  not in layers {native}"] if (native := opened.native()) else []),
        f"checkpoints: {checkpoints}",
        *(f"LoRA: {path}, scale {scale:g}" for path, scale in opened.lora),
        *(f"{layers} whatever the plan and the policy" for layers in opened.windows()),
        f"CPU kernels: {kernels(opened)}",
        f"products with quantized weights: {weights()}",
        f"layers with llama.cpp's own attention: {opened.refused() or 'none'}",
    ]
    return "\n".join(lines)


def weights() -> str:
    """The code for products with quantized weights on the CPU."""
    found = _native.product()
    return "llama.cpp's own" if found == "upstream" else f"{found}, the same bits in any batch"


def kernels(opened: Opened) -> str:
    """The instruction set that attention runs on, and the precision of its products."""
    if opened.upstream:
        return "llama.cpp's own"
    isa = _native.isa(opened.precision)
    return f"{isa}, {'float32' if isa == _native.isa('f32') else 'bf16'}"
