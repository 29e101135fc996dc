"""The error of an attention plan, measured while it runs: at the queries of `check=` or `delta=`, which also read every
key (plan.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyllama_long import _native

__all__ = ["HeadError", "Meter", "error", "read"]


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


def error(ctx: int) -> float:
    """Meter.error of a llama_context, without its heads."""
    return _whole(_native.errors(ctx))


def read(ctx: int) -> Meter:
    """The meter of a llama_context. As error(), only to be called by the thread that decodes."""
    found = _native.errors(ctx)
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.sqrt(found.error / found.norm)
    heads = [
        HeadError(int(one.layer), int(one.head), int(one.rows), float(of_head), float(one.most))
        for one, of_head in zip(found, errors, strict=True)
    ]
    return Meter(tuple(heads), _whole(found), int(found.rows.sum()))


def _whole(found: np.recarray[Any, Any]) -> float:
    norm = found.norm.sum()
    return float(np.sqrt(found.error.sum() / norm)) if norm else 0.0
