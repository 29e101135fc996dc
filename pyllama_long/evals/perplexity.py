"""Measures how well the end of a text is predicted from what comes before it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp
from typing import TYPE_CHECKING

from pyllama_long.arrays import FloatArray, IntArray, as_ids
from pyllama_long.evals import EvalError, scores
from pyllama_long.evals.measure import Cell, Found, Row
from pyllama_long.evals.statistics import mean_of_groups

if TYPE_CHECKING:
    from pyllama_long.llama import LongLlama

__all__ = ["Perplexity", "Windows", "read_window", "score_end"]


@dataclass
class Windows:
    """Windows of a text that end at the same random places whatever their length; the last tokens of each count.

    lengths: all that will be measured; the longest one that fits into the text limits the places.
    """

    text: str
    lengths: tuple[int, ...]
    windows: int = 10
    last: int = 256
    seed: int = 0
    _tokens: list[int] = field(default_factory=list, repr=False)

    def count(self, llm: LongLlama, length: int) -> int:
        self.window(llm, length, 0)
        return self.windows

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


class Perplexity(Windows):
    """The task; a unit is a window."""

    def unit(self, llm: LongLlama, cell: Cell, i: int) -> Found:
        """logprob: of the window's last tokens, in all."""
        return {"logprob": score_end(llm, self.window(llm, cell.length, i), self.last)}

    def figures(self, unit: Found) -> dict[str, list[float]]:
        return {"nats": [-unit["logprob"] / self.last]}

    def rows(self, found: Sequence[Found]) -> list[Row]:
        """One row, with depth and accuracy None; samples are windows."""
        nats, error = mean_of_groups([[-unit["logprob"] / self.last] for unit in found])
        row = {"depth": None, "samples": len(found), "accuracy": None, "perplexity": exp(nats)}
        return [{**row, "nats": nats, "nats_error": error}]


def read_window(llm: LongLlama, ids: IntArray, last: int) -> IntArray:
    """Reads ids [n] up to the token that predicts the first of the last ones. Returns the rest [last + 1], which is
    the plan's tail."""
    first = len(ids) - last - 1
    llm.reset()
    llm.set_tail(None)
    llm.eval(ids[:first].tolist())
    return ids[first:]


def score_end(llm: LongLlama, ids: IntArray, last: int) -> float:
    """Sum of the natural log-probabilities of the last tokens of ids [n], which are the plan's tail."""
    rest = read_window(llm, ids, last)
    total = 0.0

    def visit(at: int, rows: FloatArray) -> None:
        nonlocal total
        total += float(scores.of_tokens(rows, rest[at + 1 : at + 1 + len(rows)]).sum())

    scores.read_tail(llm, rest[:-1], visit)
    return total
