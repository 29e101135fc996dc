"""The part `lsh` of a plan: keys whose angular hashes are near those of the queries (HyperAttention, arXiv 2310.05869).

    lsh(4096)          4,096 of the keys between the sinks and the window
    lsh(3%)            3% of them
    lsh(3%, 1%)        the same as lsh(3%)+sample(1%): what is left, by a sample
    lsh(3%, 1%, seed=7)

A hash has the signs of the products with 16 random vectors. The keys are sorted by it, as a Gray code; each query, or
in a prefill each of the queries of 64 neighbouring positions, has a place in that order, and asks for the keys around
it. All that choose together read what any of them asks for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pyllama_long import notation
from pyllama_long.notation import ALL
from pyllama_long.plan_error import PlanError
from pyllama_long.sample import Sample, read_sample

__all__ = ["Lsh", "read_lsh"]


@dataclass(frozen=True)
class Lsh:
    """keys or share: the most that are read (ALL and 1: no limit)."""

    keys: int = ALL
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.keys <= ALL:
            raise PlanError(f"lsh: {self.keys} keys are not from 1 to {ALL}")
        if not 0 < self.share <= 1:
            raise PlanError("lsh: a share is from 0% to 100%")
        if self.keys != ALL and self.share != 1:
            raise PlanError("lsh: either a number of keys or a share")

    def most(self, n: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many of n keys are read at most."""
        share = np.ceil(self.share * n * (1 - 1e-6)).astype(np.int64)
        found: npt.NDArray[np.int64] = np.minimum(n, np.minimum(self.keys, share))
        return found

    def _size(self) -> str:
        return str(self.keys) if self.keys != ALL else (notation.percents(self.share) or ["100%"])[0]

    def __str__(self) -> str:
        return f"lsh({self._size()})"

    def explain(self) -> str:
        return f"{self._size()} of the keys before them, those whose hashes are nearest to the query's"


def read_lsh(call: notation.Call) -> dict[str, object]:
    """The parts that it stands for. Raises PlanError."""
    unknown = [*call.args[2:], *(key for key in call.named if key != "seed")]
    if unknown:
        raise PlanError(
            f"lsh: unknown {unknown[0]!r}; write lsh(4096), lsh(3%), or with a sample of the rest lsh(3%, 1%)"
        )
    if not call.args:
        raise PlanError("lsh needs a number of keys or a share: lsh(4096), lsh(3%)")
    if call.named and len(call.args) < 2:
        raise PlanError("lsh: seed= is that of a sample: write lsh(3%, 1%, seed=7)")
    mine = Lsh(**notation.limits(replace(call, args=call.args[:1]), "keys", PlanError))  # type: ignore[arg-type]
    parts: dict[str, object] = {"lsh": mine}
    if len(call.args) > 1:
        rest: Sample = read_sample(replace(call, name="sample", args=call.args[1:]))
        parts["sample"] = rest
    return parts
