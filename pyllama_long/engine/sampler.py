"""Chooses the tokens of one request: llama.cpp's sampler chain, and the grammar that constrains it."""

from __future__ import annotations

from typing import Any

from pyllama_long._native import Candidates, llama_cpp
from pyllama_long.arrays import FloatArray
from pyllama_long.engine import chain
from pyllama_long.engine.config import Sampling
from pyllama_long.errors import GrammarError
from pyllama_long.grammar import Constraint, Lark, from_gbnf
from pyllama_long.model import Model


class Sampler:
    """Made and checked on any thread, used by the engine's; `close` frees it. Raises ValueError.

    constraint: the grammar's; its mask is computed while the batch before the token is evaluated. The token that the
    chain chose is checked against it; only if it is refused does the chain choose among the allowed tokens.
    """

    def __init__(self, sampling: Sampling, model: Model) -> None:
        n_vocab = model.n_vocab()
        for token in sampling.logit_bias:
            if not 0 <= token < n_vocab:
                raise ValueError(f"logit_bias: token {token} is outside the vocabulary of {n_vocab}")
        self._chain: Any = None
        self.constraint = _constraint(sampling.grammar, model)
        penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        changed = penalties != (1.0, 0.0, 0.0) or sampling.logit_bias or sampling.dry_multiplier
        self._once = sampling.mirostat > 0  # each choice changes the next one
        if sampling.temperature >= chain.COLDEST or changed or self.constraint:
            self._chain = chain.build(sampling, model)

    def sample(self, ctx: Any, row: int, logits: FloatArray, candidates: Candidates) -> int:
        """The token for batch row `row`, whose logits [n_vocab] are given. candidates: for its own use until
        it returns. Raises GrammarError."""
        if self._chain is None:
            return int(logits.argmax())
        if self.constraint is None:
            return int(llama_cpp.llama_sampler_sample(self._chain, ctx, row))
        token = self._constrained(self.constraint, logits, candidates)
        llama_cpp.llama_sampler_accept(self._chain, token)
        return token

    def _constrained(self, constraint: Constraint, logits: FloatArray, candidates: Candidates) -> int:
        only = constraint.only()
        if only is not None:
            constraint.take(only)
            return only
        token = -1
        if not self._once:
            candidates.fill(logits)
            llama_cpp.llama_sampler_apply(self._chain, candidates.pointer)
            token = candidates.chosen()
        if token < 0 or not constraint.allows(token):
            allowed = constraint.allowed()
            if len(allowed) == 0:
                raise GrammarError
            candidates.some(allowed, logits)
            llama_cpp.llama_sampler_apply(self._chain, candidates.pointer)
            token = candidates.chosen()
        constraint.take(token)
        return token

    @property
    def ended(self) -> bool:
        """Whether the grammar lets nothing follow."""
        return self.constraint is not None and self.constraint.ended

    def close(self) -> None:
        if self._chain is not None:
            llama_cpp.llama_sampler_free(self._chain)
        self._chain = self.constraint = None


def _constraint(grammar: str | Lark | None, model: Model) -> Constraint | None:
    if grammar is None:
        return None
    return Constraint(model, from_gbnf(model, grammar) if isinstance(grammar, str) else grammar)
