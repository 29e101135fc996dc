"""The error of an attention plan, measured while it runs: at the queries of `check=` or `delta=`, which also read every
key (plan.py)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyllama_long import _native

__all__ = ["HeadError", "Meter", "read"]


@dataclass(frozen=True)
class HeadError:
    """Of a query head, before any correction: error = ||exact - plan|| / ||exact|| over all `rows` checked queries
    together, and the largest of one query. NaN where the exact results are zeros."""

    layer: int
    head: int
    rows: int
    error: float
    largest: float


@dataclass(frozen=True)
class Meter:
    """What was measured since loading or the last reset; empty where nothing was left out of any checked query."""

    heads: tuple[HeadError, ...]
    error: float  # relative, of all layers and heads together; 0 if nothing was measured
    rows: int  # checked queries, summed over layers and heads

    def layers(self) -> dict[int, float]:
        """The largest error of the heads of each layer."""
        found: dict[int, float] = {}
        for head in self.heads:
            found[head.layer] = max(found.get(head.layer, 0.0), head.error)
        return found


def _fields(ctx: int) -> dict[str, npt.NDArray[np.float64]]:
    found = _native.errors(ctx)
    names = ("layer", "head", "rows", "error", "norm", "most")
    return {name: np.array([getattr(one, name) for one in found], np.float64) for name in names}


def read(ctx: int) -> Meter:
    """The meter of a llama_context; only to be called by the thread that decodes."""
    x = _fields(ctx)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt(x["error"] / x["norm"])
        whole = float(np.sqrt(x["error"].sum() / x["norm"].sum())) if x["norm"].any() else 0.0
    columns = zip(x["layer"], x["head"], x["rows"], error, x["most"], strict=True)
    heads = (HeadError(int(il), int(h), int(n), float(e), float(m)) for il, h, n, e, m in columns)
    return Meter(tuple(heads), whole, int(x["rows"].sum()))
