"""One request's choice of tokens: llama.cpp's sampler chain, and its grammar."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from pyllama_long import log
from pyllama_long._native import Candidates, llama_cpp
from pyllama_long.engine.config import Sampling
from pyllama_long.errors import DecodeError
from pyllama_long.sequence import FloatArray

_LAST_N = 64  # tokens that penalties look back at, as in llama_cpp
_COLDEST = 1e-6  # below it logits divided by the temperature are no numbers: the likeliest is taken


class Sampler:
    """Made and checked on any thread, used by the engine's; `close` frees it. Raises ValueError.

    A grammar is tried on the token that the chain chose; only when it refuses, on all tokens.
    """

    def __init__(self, sampling: Sampling, vocab: Any, n_vocab: int) -> None:
        for token in sampling.logit_bias:
            if not 0 <= token < n_vocab:
                raise ValueError(f"logit_bias: token {token} is outside the vocabulary of {n_vocab}")
        self._chain: Any = None
        self._grammar = _grammar(sampling.grammar, vocab) if sampling.grammar is not None else None
        penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        plain = sampling.temperature < _COLDEST and penalties == (1.0, 0.0, 0.0) and not sampling.logit_bias
        if not plain or self._grammar:
            self._chain = _chain(sampling, penalties, n_vocab)

    def sample(self, ctx: Any, row: int, logits: FloatArray, candidates: Candidates) -> int:
        """The token for batch row `row`, whose logits [n_vocab] are given. candidates: for its own use until
        it returns. Raises DecodeError."""
        if self._chain is None:
            return int(logits.argmax())
        if self._grammar is None:
            return int(llama_cpp.llama_sampler_sample(self._chain, ctx, row))
        candidates.fill(logits)
        llama_cpp.llama_sampler_apply(self._chain, candidates.pointer)
        token, _ = candidates.chosen()
        candidates.one(token)
        llama_cpp.llama_sampler_apply(self._grammar, candidates.pointer)
        if candidates.chosen()[1] == -np.inf:
            candidates.fill(logits)
            llama_cpp.llama_sampler_apply(self._grammar, candidates.pointer)
            if not np.isfinite(candidates.table["logit"].max()):
                # Accepting a token that the grammar refuses would end the process.
                raise DecodeError("the grammar allows no token here")
            llama_cpp.llama_sampler_apply(self._chain, candidates.pointer)
            token, _ = candidates.chosen()
        llama_cpp.llama_sampler_accept(self._grammar, token)
        llama_cpp.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        for sampler in (self._chain, self._grammar):
            if sampler is not None:
                llama_cpp.llama_sampler_free(sampler)
        self._chain = self._grammar = None


def _grammar(text: str, vocab: Any) -> Any:
    log.forget()
    grammar = llama_cpp.llama_sampler_init_grammar(vocab, text.encode(), b"root")
    if not grammar:
        raise ValueError(
            "the grammar cannot be read: check its GBNF rules, the first of which is `root`; "
            + log.complaint()
        )
    return grammar


def _chain(s: Sampling, penalties: tuple[float, float, float], n_vocab: int) -> Any:
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())

    def add(sampler: Any) -> None:
        llama_cpp.llama_sampler_chain_add(chain, sampler)

    if s.logit_bias:
        table = (llama_cpp.llama_logit_bias * len(s.logit_bias))()
        for slot, (token, value) in zip(table, s.logit_bias.items(), strict=True):
            slot.token, slot.bias = token, value
        add(llama_cpp.llama_sampler_init_logit_bias(n_vocab, len(table), table))
    if penalties != (1.0, 0.0, 0.0):
        add(llama_cpp.llama_sampler_init_penalties(n_vocab, _LAST_N, *penalties))
    if s.temperature < _COLDEST:
        add(llama_cpp.llama_sampler_init_greedy())
        return chain
    seed = random.getrandbits(32) if s.seed is None else s.seed & 0xFFFFFFFF
    add(llama_cpp.llama_sampler_init_top_k(s.top_k))
    add(llama_cpp.llama_sampler_init_typical(s.typical_p, 1))
    add(llama_cpp.llama_sampler_init_top_p(s.top_p, 1))
    add(llama_cpp.llama_sampler_init_min_p(s.min_p, 1))
    add(llama_cpp.llama_sampler_init_temp(s.temperature))
    add(llama_cpp.llama_sampler_init_dist(seed))
    return chain
