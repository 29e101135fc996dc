"""Sampling tokens one after another: the loop behind `LongLlama.generate`."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from operator import index
from typing import Any, TypeAlias

import numpy as np

from pyllama_long._native import LlamaGrammar, llama_cpp
from pyllama_long.arrays import FloatArray, IntArray, as_ids
from pyllama_long.errors import GrammarError
from pyllama_long.evaluator import Evaluator
from pyllama_long.grammar import Constraint, from_gbnf
from pyllama_long.keywords import window
from pyllama_long.model import Model

_WHOLE = {"top_k", "mirostat_mode"}
_NUMBERS = {"top_p", "min_p", "typical_p", "temp", "tfs_z", "mirostat_eta", "mirostat_tau"}
_NUMBERS |= {"repeat_penalty", "frequency_penalty", "presence_penalty"}

Processor: TypeAlias = Callable[[IntArray, FloatArray], FloatArray]


def as_processors(given: Sequence[Processor] | Processor | None) -> list[Processor]:
    """One logits processor, several, or none, as a list."""
    if given is None:
        return []
    return list(given) if isinstance(given, Sequence) else [given]


class Sampler:
    """llama_cpp's sampler chain, with errors of Python logits processors raised instead of swallowed."""

    def __init__(
        self,
        llama: Evaluator,
        logits_processor: Sequence[Processor] | Processor | None = None,
        **options: Any,
    ) -> None:
        self._context, self._sequence = llama.opened.context, llama.sequence
        self._error: BaseException | None = None
        options = checked(options)
        llama.last_n_tokens_size = window(llama.last_n_tokens_size, llama.n_ctx())
        grammar = options.pop("grammar", None)
        self._constraint = None if grammar is None else _constraint(llama.opened.model, grammar)
        processes = as_processors(logits_processor)

        def run(ids: IntArray, scores: FloatArray) -> FloatArray:
            original = scores
            try:
                with llama.turns.outside():
                    for process in processes:
                        scores = np.asarray(process(ids, scores), np.float32)
                if scores.shape != original.shape:
                    raise ValueError(f"a logits processor gave shape {scores.shape}, not {original.shape}")
                if not np.isfinite(scores.max()):  # also if one is NaN
                    raise ValueError("a logits processor must leave a token, and none with NaN or infinity")
                return scores if self._constraint is None else _held(scores, self._constraint.allowed())
            except BaseException as error:  # ctypes would print it and go on
                self._error = error
                return original

        processors = llama_cpp.LogitsProcessorList([run]) if processes or self._constraint else None
        self._chain = llama._init_sampler(logits_processor=processors, **options)

    def sample(self, row: int) -> int:
        """The token for the row-th output of the last evaluation (-1: the last one)."""
        self._sequence.check_row(row)
        token = int(self._chain.sample(self._context, row))
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if self._constraint is not None:
            self._constraint.take(token)
        return token

    def close(self) -> None:
        self._chain.close()


def checked(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a sampler chain as the numbers that llama.cpp takes. Raises TypeError and ValueError."""
    found = dict(options)
    for name in _WHOLE & set(found):
        try:
            found[name] = max(-(2**31), min(index(found[name]), 2**31 - 1))
        except TypeError:
            raise TypeError(f"{name} is {found[name]!r}: give a whole number") from None
    for name in _NUMBERS & set(found):
        try:
            found[name] = float(found[name])
        except (TypeError, ValueError, OverflowError):
            raise TypeError(f"{name} is {found[name]!r}: give a number") from None
        if not math.isfinite(found[name]):
            raise ValueError(f"{name} is {found[name]}: give a finite number")
    if found.get("repeat_penalty", 1.0) <= 0:
        raise ValueError(f"repeat_penalty is {found['repeat_penalty']:g}: give more than 0; 1 is none")
    if found.get("mirostat_mode", 0) not in (0, 1, 2):
        raise ValueError(f"mirostat_mode is {found['mirostat_mode']}: give 0 (off), 1 or 2")
    return found


def _held(scores: FloatArray, allowed: IntArray) -> FloatArray:
    """The logits of the tokens that a grammar allows, -inf for others. Raises GrammarError if none is left."""
    held = np.full_like(scores, -np.inf)
    held[allowed] = scores[allowed]
    if not np.isfinite(held.max()):
        raise GrammarError
    return held


def _constraint(model: Model, grammar: Any) -> Constraint:
    if not isinstance(grammar, LlamaGrammar):
        raise TypeError(
            f"grammar is a {type(grammar).__name__}: give a LlamaGrammar, as LlamaGrammar.from_string makes"
        )
    return Constraint(model, from_gbnf(model, grammar._grammar))


def bias(logit_bias: dict[int, float], n_vocab: int) -> Processor:
    """A processor that adds logit_bias[token] to the logits [n_vocab]."""
    ids = as_ids([int(token) for token in logit_bias])
    values = np.array([float(value) for value in logit_bias.values()], np.float32)
    if not (values < np.inf).all():
        raise ValueError("logit_bias: give finite numbers, or -inf to forbid a token")
    for token in ids:
        if not 0 <= token < n_vocab:
            raise ValueError(f"logit_bias: token {token} is outside the vocabulary of {n_vocab}")

    def process(_ids: IntArray, scores: FloatArray) -> FloatArray:
        scores[ids] += values
        return scores

    return process


def generate(
    llama: Evaluator,
    ids: IntArray,
    *,
    turn: int,
    reset: bool = True,
    room: int = 0,
    stopping_criteria: Callable[[IntArray, FloatArray], bool] | None = None,
    **sampling: Any,
) -> Generator[int, Sequence[int] | None, None]:
    """Yields sampled tokens without end; tokens sent to the generator are evaluated after the sampled one.

    reset: start a new text, whose cached prefix is not evaluated again; else continue the old one. room: how many
    tokens will be requested, if known. turn: from `LongLlama.start`; the generator ends with RuntimeError when a
    later call has taken the context over.
    """
    return _loop(llama, ids, turn, reset, room, stopping_criteria, Sampler(llama, **sampling))


def _loop(
    llama: Evaluator,
    ids: IntArray,
    turn: int,
    reset: bool,
    room: int,
    stopping_criteria: Callable[[IntArray, FloatArray], bool] | None,
    sampler: Sampler,
) -> Generator[int, Sequence[int] | None, None]:
    seq = llama.sequence
    try:
        llama.check_turn(turn)
        if reset:
            seq.begin(ids, room)
        pending = seq.reuse(ids)
        if not len(pending) and not 0 < seq.live == seq.length:
            pending = seq.last()
        progress, n_logits = llama.progress, 1
        while True:
            if len(pending):
                seq.extend(pending, n_logits, progress, llama.store_rows)
            progress = None
            at = seq.length - n_logits + 1  # the place of the token that is sampled next
            while True:
                llama.sampled_row = at - seq.length - 1
                token = sampler.sample(llama.sampled_row)
                if stopping_criteria is not None:
                    with llama.turns.outside():
                        stop = stopping_criteria(seq.ids[:at], seq.row(llama.sampled_row))
                    if stop:
                        return
                sent = yield token
                llama.check_turn(turn)
                if sent is not None or at >= seq.length or token != seq.ids[at]:
                    break
                at += 1  # the draft was right, so the next row is already there
            known = as_ids([token, *sent]) if sent else np.array([token], np.int32)
            seq.length = at  # wrong tokens of the draft are dropped
            guess = _draft(llama, known)
            pending, n_logits = np.concatenate([known, guess]) if len(guess) else known, 1 + len(guess)
    finally:
        sampler.close()


def _draft(llama: Evaluator, known: IntArray) -> IntArray:
    """The tokens that the draft model expects after ids[:length] and known; none without a draft model."""
    seq = llama.sequence
    end = seq.length + len(known)
    room = min(seq.n_ctx - end, seq.n_batch - len(known))
    if llama.draft_model is None or room <= 0:
        return np.empty(0, np.int32)
    with llama.turns.outside():
        draft = llama.draft_model(np.concatenate([seq.ids[: seq.length], known]))
    return as_ids(draft)[:room]
