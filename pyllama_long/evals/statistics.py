"""How sure a measured figure is: intervals of 95%."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

__all__ = ["mean_of_groups", "wilson"]

_Z = 1.959964  # of the normal distribution
# Of Student's t distribution, by degrees of freedom from 1.
_T: tuple[float, ...] = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_T += (2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)


def wilson(mean: float, n: int) -> tuple[float, float]:
    """Wilson's interval of a share that n questions gave; too wide if they can be right in part."""
    middle = (mean + _Z * _Z / (2 * n)) / (1 + _Z * _Z / n)
    half = _Z / (1 + _Z * _Z / n) * sqrt(max(0.0, mean * (1 - mean)) / n + _Z * _Z / (4 * n * n))
    return max(0.0, min(mean, middle - half)), min(1.0, max(mean, middle + half))


def mean_of_groups(groups: Sequence[Sequence[float]]) -> tuple[float, float | None]:
    """The mean of all values, and half of its interval. Values of one group, such as the questions about one document,
    may depend on each other; groups do not. None with fewer than two groups."""
    values = [value for group in groups for value in group]
    mean = sum(values) / len(values)
    k = len(groups)
    if k < 2:
        return mean, None
    spread = sum((sum(group) - len(group) * mean) ** 2 for group in groups)
    return mean, _quantile(k - 1) * sqrt(spread * k / (k - 1)) / len(values)


def _quantile(freedom: int) -> float:
    return _T[freedom - 1] if freedom <= len(_T) else _Z + 2.4 / freedom
