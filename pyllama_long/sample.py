"""The part `sample` of a plan: some of the far keys, each of which stands for others.

    sample(1024)          1,024 of the keys between the sinks and the window
    sample(3%, seed=7)    3% of them

The keys that no other part gives to a query are cut into as many strata of equal size, give or take one key, and one
key of each is read, chosen at random. It counts as often as its stratum has keys, so that numerator and denominator of
the softmax are estimated without bias (KDEformer, arXiv 2302.02451; HyperAttention, arXiv 2310.05869). Beside `topk`,
these are the keys that it did not choose.

The random numbers are a hash of the seed, the layer, the kv head and the query block (64 positions of a prefill, or
one of the tail): the same text gets the same sample, however it is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyllama_long import notation
from pyllama_long.notation import ALL
from pyllama_long.plan_error import PlanError

__all__ = ["Sample", "read_sample"]


@dataclass(frozen=True)
class Sample:
    """keys, share: how many are read (ALL and 1: no limit); seed: of the random numbers."""

    keys: int = ALL
    share: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.keys <= ALL:
            raise PlanError(f"sample: {self.keys} keys are not from 1 to {ALL}")
        if not 0 < self.share <= 1:
            raise PlanError("sample: a share is from 0% to 100%")
        if not 0 <= self.seed <= ALL:
            raise PlanError(f"sample: seed={self.seed} is not from 0 to {ALL}")

    def of(self, n: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many of n keys are read."""
        share = np.ceil(self.share * n * (1 - 1e-6)).astype(np.int64)
        found: npt.NDArray[np.int64] = np.minimum(n, np.minimum(self.keys, share))
        return found

    def _size(self) -> str:
        limits = [str(self.keys)] if self.keys != ALL else []
        return ", ".join(limits + notation.percents(self.share)) or "100%"

    def __str__(self) -> str:
        return f"sample({self._size()}{f', seed={self.seed}' if self.seed else ''})"

    def explain(self) -> str:
        return f"{self._size().replace(', ', ' or ')} of the other keys at random, each standing for others"


def read_sample(call: notation.Call) -> Sample:
    """Raises PlanError."""
    unknown = [key for key in call.named if key != "seed"]
    if unknown or len(call.args) > 2:
        raise PlanError(
            f"sample: unknown {(unknown or call.args)[-1]!r}; write sample(1024) or sample(3%), with seed= if "
            "wanted"
        )
    if not call.args:
        raise PlanError("sample needs a number of keys or a share: sample(1024), sample(3%)")
    found: dict[str, float] = notation.limits(call, "keys", PlanError)
    if "seed" in call.named:
        found["seed"] = notation.integer(call.named["seed"], "sample: seed", PlanError, low=0)
    return Sample(**found)  # type: ignore[arg-type]
