"""Makes llama.cpp's sampler chain for a request, in the order of llama-server."""

from __future__ import annotations

import random
from typing import Any

from pyllama_long import _native
from pyllama_long._native import llama_cpp
from pyllama_long.engine.config import Sampling
from pyllama_long.model import Model

_PENALTIES = ("penalties", "dry")
COLDEST = 1e-6  # lower temperatures count as 0, since dividing by them overflows


def build(s: Sampling, model: Model) -> Any:
    """A llama_sampler, which the caller frees. Penalties and DRY only look at the answer, not at the prompt."""
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())

    def add(sampler: Any) -> None:
        llama_cpp.llama_sampler_chain_add(chain, sampler)

    n_vocab, seed = model.n_vocab(), random.getrandbits(32) if s.seed is None else s.seed & 0xFFFFFFFF
    cold = s.temperature < COLDEST
    if s.logit_bias:
        table = (llama_cpp.llama_logit_bias * len(s.logit_bias))()
        for slot, (token, value) in zip(table, s.logit_bias.items(), strict=True):
            slot.token, slot.bias = token, value
        add(llama_cpp.llama_sampler_init_logit_bias(n_vocab, len(table), table))
    for name in s.samplers:
        if (cold and name not in ("penalties", "dry")) or (
            s.mirostat and name not in ("penalties", "dry", "temperature")
        ):
            continue
        sampler = _one(name, s, model, seed)
        if sampler is not None:
            add(sampler)
    if cold:
        add(llama_cpp.llama_sampler_init_greedy())
    elif s.mirostat == 1:
        add(llama_cpp.llama_sampler_init_mirostat(n_vocab, seed, s.mirostat_tau, s.mirostat_eta, 100))
    elif s.mirostat == 2:
        add(llama_cpp.llama_sampler_init_mirostat_v2(seed, s.mirostat_tau, s.mirostat_eta))
    else:
        add(llama_cpp.llama_sampler_init_dist(seed))
    return chain


def _one(name: str, s: Sampling, model: Model, seed: int) -> Any:
    """Makes a sampler by name; None where it would change nothing."""
    keep = max(1, s.min_keep)
    match name:
        case "penalties":
            given = (s.repeat_penalty, s.frequency_penalty, s.presence_penalty)
            if given == (1.0, 0.0, 0.0) or s.repeat_last_n == 0:
                return None
            last = model.n_ctx_train() if s.repeat_last_n < 0 else s.repeat_last_n
            return llama_cpp.llama_sampler_init_penalties(model.n_vocab(), last, *given)
        case "dry":
            return (
                _dry(s, model) if s.dry_multiplier > 0 and s.dry_base >= 1 and s.dry_penalty_last_n else None
            )
        case "top_n_sigma":
            return llama_cpp.llama_sampler_init_top_n_sigma(s.top_n_sigma) if s.top_n_sigma > 0 else None
        case "top_k":
            return llama_cpp.llama_sampler_init_top_k(s.top_k)
        case "typ_p":
            return llama_cpp.llama_sampler_init_typical(s.typical_p, keep)
        case "top_p":
            return llama_cpp.llama_sampler_init_top_p(s.top_p, keep)
        case "min_p":
            return llama_cpp.llama_sampler_init_min_p(s.min_p, keep)
        case "xtc":
            if s.xtc_probability == 0 or s.xtc_threshold > 0.5:
                return None
            return llama_cpp.llama_sampler_init_xtc(s.xtc_probability, s.xtc_threshold, keep, seed)
        case _:
            if s.dynatemp_range > 0:
                return llama_cpp.llama_sampler_init_temp_ext(
                    s.temperature, s.dynatemp_range, s.dynatemp_exponent
                )
            return llama_cpp.llama_sampler_init_temp(s.temperature)


def _dry(s: Sampling, model: Model) -> Any:
    breakers = _native.text_array([text.encode() for text in s.dry_sequence_breakers])
    last = model.n_ctx_train() if s.dry_penalty_last_n < 0 else s.dry_penalty_last_n
    args = (s.dry_multiplier, s.dry_base, s.dry_allowed_length, last)
    return llama_cpp.llama_sampler_init_dry(model.vocab, *args, breakers, len(breakers))
