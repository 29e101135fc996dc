"""The part `verified` of a plan: a sample of the other keys that is as large as a bound on its error asks for.

    verified                    relative errors of at most 5%, for 95% of the queries
    verified(0.1, 0.01)         of at most 10%, for 99%
    verified(eps=0.1, least=8192, seed=7)

The keys that a query does not read otherwise are sampled as by `sample`: one of each stratum, which stands for all of
them. How many strata it takes for the relative errors of numerator and denominator of the softmax to stay under eps
with probability 1 - delta follows from the variance that a query finds among its keys (vAttention, arXiv 2510.05688);
blocks that stand out are read exactly, and where that is not cheaper, all keys are, as always where there are fewer
than `least` to choose from. Only single queries do so: those of the tail.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyllama_long import notation
from pyllama_long.notation import ALL
from pyllama_long.plan_error import PlanError

__all__ = ["Verified", "read_verified"]

_LEAST = 1e-6  # of eps and delta, which are float32 in the op
_LEAST_KEYS = 32_768  # of fewer, no sample saves time
_NAMES = ("eps", "delta", "least", "seed")


@dataclass(frozen=True)
class Verified:
    """eps: the largest relative error; delta: the share of queries for which it may be larger; least: with fewer keys
    to choose from, all are read; seed: of the random numbers."""

    eps: float = 0.05
    delta: float = 0.05
    least: int = _LEAST_KEYS
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("eps", self.eps), ("delta", self.delta)):
            if not _LEAST <= value <= 1 - _LEAST:
                raise PlanError(
                    f"verified: {name}={notation.show(value)} is not from {_LEAST:f} to {1 - _LEAST:f}"
                )
        for name, n in (("least", self.least), ("seed", self.seed)):
            if not 0 <= n <= ALL:
                raise PlanError(f"verified: {name}={n} is not from 0 to {ALL}")

    def __str__(self) -> str:
        values = [notation.show(self.eps), notation.show(self.delta)]
        values += [f"least={self.least}"] if self.least != _LEAST_KEYS else []
        values += [f"seed={self.seed}"] if self.seed else []
        return f"verified({', '.join(values)})"

    def explain(self) -> str:
        return (
            f"as many of the other keys at random as keep the relative error within {notation.show(self.eps)} with a "
            f"probability of {notation.show(round(1 - self.delta, 6))}, or all, as of fewer than {self.least}"
        )


def read_verified(call: notation.Call) -> Verified:
    """Raises PlanError."""
    unknown = [key for key in call.named if key not in _NAMES] or list(call.args[2:])
    if unknown:
        raise PlanError(
            f"verified: unknown {unknown[0]!r}; write verified(0.05, 0.05), with least= and seed= if wanted"
        )
    values = dict(zip(_NAMES, call.args, strict=False))
    if twice := values.keys() & call.named.keys():
        raise PlanError(f"verified: {min(twice)} is given twice")
    values |= call.named
    found: dict[str, float] = {
        name: notation.number(values[name], f"verified: {name}", PlanError)
        for name in ("eps", "delta")
        if name in values
    }
    for name in ("least", "seed"):
        if name in values:
            found[name] = notation.integer(values[name], f"verified: {name}", PlanError, low=0)
    return Verified(**found)  # type: ignore[arg-type]
