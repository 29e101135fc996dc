"""Measures how well the end of a text is predicted from what comes before it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from math import exp
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllama_long.arrays import FloatArray, IntArray, as_ids
from pyllama_long.evals import EvalError
from pyllama_long.logprobs import rows_at_once

if TYPE_CHECKING:
    from pyllama_long.llama import LongLlama

__all__ = ["Perplexity", "measure"]


@dataclass
class Perplexity:
    """Windows of a text that end at the same random places whatever their length; the last tokens of each count.

    lengths: all that will be measured; the longest one that fits into the text limits the places.
    """

    text: str
    lengths: tuple[int, ...]
    windows: int = 10
    last: int = 256
    seed: int = 0
    _tokens: list[int] = field(default_factory=list, repr=False)

    def tokens(self, llm: LongLlama) -> list[int]:
        """The tokens of the whole text; all calls are assumed to be for the model of the first."""
        if not self._tokens:
            self._tokens = llm.tokenize(self.text.encode(), add_bos=False, special=False)
        return self._tokens

    def window(self, llm: LongLlama, length: int, i: int) -> IntArray:
        """Token ids [length], the first one BOS where the model begins texts with it. Raises EvalError."""
        tokens = self.tokens(llm)
        if length > len(tokens):
            raise EvalError(f"the text has {len(tokens):,} tokens only: give a longer one")
        if length < self.last + 2:
            raise EvalError(f"{length} tokens are too few to predict the last {self.last} of them")
        longest = max(n for n in self.lengths if n <= len(tokens))
        end = random.Random(f"{self.seed}/{i}").randint(longest, len(tokens))
        ids = as_ids(tokens[end - length : end])
        if llm._model.add_bos_token() and llm.token_bos() != -1:
            ids[0] = llm.token_bos()
        return ids


def measure(
    task: Perplexity, llm: LongLlama, length: int, watch: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """One entry: depth and accuracy None, samples (windows), perplexity. watch: as of retrieval.measure."""
    logprob = 0.0
    for i in range(task.windows):
        ids = task.window(llm, length, i)
        watch(i, task.windows)
        logprob += score_end(llm, ids, task.last)
    perplexity = exp(-logprob / (task.windows * task.last))
    return [{"depth": None, "samples": task.windows, "accuracy": None, "perplexity": perplexity}]


def score_end(llm: LongLlama, ids: IntArray, last: int) -> float:
    """Sum of the natural log-probabilities of the last tokens of ids [n], which are the plan's tail."""
    first = len(ids) - last - 1  # starts with the token that predicts the first of them
    llm.reset()
    llm.set_tail(None)
    llm.eval(ids[:first].tolist())
    llm.mark_tail()
    total = 0.0

    def visit(at: int, rows: FloatArray) -> None:
        nonlocal total
        total += float(_logprobs(rows, ids[at + 1 : at + 1 + len(rows)]).sum())

    llm.sequence.extend(
        ids[first:-1], progress=llm.progress, visit=visit, chunk=rows_at_once(llm.n_batch, llm.n_vocab())
    )
    llm.set_tail(None)
    return total


def _logprobs(rows: FloatArray, ids: IntArray) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[n]: the log-probability of ids [n] under logits [n, n_vocab]."""
    logits = rows.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    found: np.ndarray[Any, np.dtype[np.float64]] = logits[np.arange(len(ids)), ids] - np.log(
        np.exp(logits).sum(axis=1)
    )
    return found
