"""How sure a measured figure is."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

__all__ = ["Z", "mean_of_groups", "wilson"]

Z = 1.959964  # of a two-sided interval of 95%


def wilson(mean: float, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share that n questions gave; too wide if they can be right in part."""
    middle = (mean + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * sqrt(max(0.0, mean * (1 - mean)) / n + Z * Z / (4 * n * n))
    return max(0.0, min(mean, middle - half)), min(1.0, max(mean, middle + half))


def mean_of_groups(groups: Sequence[Sequence[float]]) -> tuple[float, float | None]:
    """The mean of all values, and half of its 95% interval. Values of one group, such as the questions about one
    document, may depend on each other; groups do not. None with fewer than two groups."""
    values = [value for group in groups for value in group]
    mean = sum(values) / len(values)
    k = len(groups)
    if k < 2:
        return mean, None
    spread = sum((sum(group) - len(group) * mean) ** 2 for group in groups)
    return mean, Z * sqrt(spread * k / (k - 1)) / len(values)
