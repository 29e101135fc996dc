"""How far the predictions under a plan are from those of `exact` on the same text."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from pyllama_long.arrays import FloatArray
from pyllama_long.evals import EvalError, scores
from pyllama_long.evals.measure import Cell, Found, Row
from pyllama_long.evals.perplexity import Windows, read_window
from pyllama_long.evals.statistics import mean_of_groups

if TYPE_CHECKING:
    from pyllama_long.llama import LongLlama

__all__ = ["EXACT", "Agreement", "Logits", "divergences"]

EXACT = "exact"


class Logits:
    """Logits [windows, last, n_vocab] in an unnamed file. Raises EvalError when the disk is full."""

    def __init__(self, last: int, n_vocab: int) -> None:
        self._last, self._n_vocab = last, n_vocab
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  it lives as long as this
        self.complete: set[int] = set()  # windows whose rows are all there

    def _at(self, window: int, first: int) -> int:
        return 4 * (window * self._last + first) * self._n_vocab

    def put(self, window: int, first: int, rows: FloatArray) -> None:
        """Keeps rows [n, n_vocab] of a window from its row `first` on."""
        left = memoryview(np.asarray(rows, np.float32).tobytes())
        try:
            self._file.seek(self._at(window, first))
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise EvalError(
                f"the logits of exact cannot be kept in {tempfile.gettempdir()} ({error.strerror}): "
                "lower --windows or --last, or set TMPDIR"
            ) from None
        if first + len(rows) == self._last:
            self.complete.add(window)

    def get(self, window: int, first: int, n: int) -> FloatArray:
        self._file.seek(self._at(window, first))
        data = self._file.read(4 * n * self._n_vocab)
        return np.frombuffer(data, np.float32).reshape(n, self._n_vocab)

    def close(self) -> None:
        self._file.close()


class Agreement(Windows):
    """The task; a unit is a window. Where there is a choice, `exact` is measured before the other plans.

    open_exact: opens the model of a cell under another plan.
    """

    open_exact: Callable[[Cell], LongLlama] | None = None
    _kept: tuple[str, int, Logits] | None = None  # of which policy and length

    def unit(self, llm: LongLlama, cell: Cell, i: int) -> Found:
        """Means over the window's last tokens: kl, the divergence of the plan's predictions from exact's, in nats;
        same, the share for which both expect the same token; nats and exact_nats of the text's own tokens."""
        logits = self._logits(llm, cell)
        if cell.plan == EXACT:
            self._keep(llm, cell, i, logits)
        elif i not in logits.complete:  # a stopped run goes on: exact was measured before
            assert self.open_exact is not None
            with closing(self.open_exact(cell)) as exact:
                for window in range(self.count(exact, cell.length)):
                    self._keep(exact, cell, window, logits)
        rest = read_window(llm, self.window(llm, cell.length, i), self.last)
        sums = np.zeros(4)

        def visit(at: int, rows: FloatArray) -> None:
            after = rest[at + 1 : at + 1 + len(rows)]
            theirs = logits.get(i, at, len(rows))
            sums[0] += divergences(theirs, rows).sum()
            sums[1] += (theirs.argmax(axis=1) == rows.argmax(axis=1)).sum()
            sums[2] -= scores.of_tokens(rows, after).sum()
            sums[3] -= scores.of_tokens(theirs, after).sum()

        scores.read_tail(llm, rest[:-1], visit)
        return dict(zip(("kl", "same", "nats", "exact_nats"), (sums / self.last).tolist(), strict=True))

    def figures(self, unit: Found) -> dict[str, list[float]]:
        return {"nats": [unit["nats"]]}

    def rows(self, found: Sequence[Found]) -> list[Row]:
        """One row: samples are windows; *_error: half of the 95% interval over windows."""
        row: Row = {"depth": None, "samples": len(found), "accuracy": None}
        for key in ("kl", "same", "nats"):
            row[key], row[f"{key}_error"] = mean_of_groups([[unit[key]] for unit in found])
        more = [[unit["nats"] - unit["exact_nats"]] for unit in found]
        row["nats_more"], row["nats_more_error"] = mean_of_groups(more)
        return [row]

    def close(self) -> None:
        """Drops the logits of exact."""
        if self._kept is not None:
            self._kept[2].close()
            self._kept = None

    def _logits(self, llm: LongLlama, cell: Cell) -> Logits:
        if self._kept is None or self._kept[:2] != (cell.rope, cell.length):
            self.close()
            self._kept = cell.rope, cell.length, Logits(self.last, llm.n_vocab())
        return self._kept[2]

    def _keep(self, exact: LongLlama, cell: Cell, i: int, logits: Logits) -> None:
        rest = read_window(exact, self.window(exact, cell.length, i), self.last)
        scores.read_tail(exact, rest[:-1], lambda at, rows: logits.put(i, at, rows))


def divergences(theirs: FloatArray, ours: FloatArray) -> scores.Array:
    """[n]: KL(theirs || ours) in nats, of logits [n, n_vocab]."""
    p, q = scores.log_softmax(theirs), scores.log_softmax(ours)
    share = np.exp(p)
    more = np.zeros_like(p)
    np.subtract(p, q, out=more, where=share > 0)  # where the model cannot say a token, both are -inf
    found: scores.Array = (share * more).sum(axis=1)
    return found
