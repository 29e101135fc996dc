"""How sure a measured figure is: intervals of 95%."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

__all__ = ["mean_of_groups", "share_of_groups", "wilson"]

_Z = 1.959964  # of the normal distribution
# Of Student's t distribution, by degrees of freedom from 1.
_T: tuple[float, ...] = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_T += (2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)


def wilson(mean: float, n: float) -> tuple[float, float]:
    """Wilson's interval of a share that n independent questions gave; too wide if they can be right in part."""
    middle = (mean + _Z * _Z / (2 * n)) / (1 + _Z * _Z / n)
    half = _Z / (1 + _Z * _Z / n) * sqrt(max(0.0, mean * (1 - mean)) / n + _Z * _Z / (4 * n * n))
    return max(0.0, min(mean, middle - half)), min(1.0, max(mean, middle + half))


def share_of_groups(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The interval of a share that questions in groups gave, as those about one document, which may be right together:
    Wilson's, for as many independent questions as tell the same (Korn and Graubard, Survey Methodology 24, 1998), but
    no fewer than there are groups."""
    n, k = sum(map(len, groups)), len(groups)
    mean = sum(map(sum, groups)) / n
    if k < 2:
        return wilson(mean, k)
    spread = _spread(groups, mean) * k / (k - 1)
    # How much more the mean varies than that of independent questions. If all are right, or none is, nothing shows
    # that they depend on each other.
    effect = spread * (n - 1) / (n * n * mean * (1 - mean)) if 0 < mean < 1 else 1.0
    equal = n / max(1.0, effect) * (_quantile(n - 1) / _quantile(k - 1)) ** 2
    return wilson(mean, max(k, equal))


def mean_of_groups(groups: Sequence[Sequence[float]]) -> tuple[float, float | None]:
    """The mean of all values, and half of its interval. Values of one group, such as the questions about one document,
    may depend on each other; groups do not. None with fewer than two groups."""
    values = [value for group in groups for value in group]
    mean = sum(values) / len(values)
    k = len(groups)
    if k < 2:
        return mean, None
    return mean, _quantile(k - 1) * sqrt(_spread(groups, mean) * k / (k - 1)) / len(values)


def _spread(groups: Sequence[Sequence[float]], mean: float) -> float:
    return sum((sum(group) - len(group) * mean) ** 2 for group in groups)


def _quantile(freedom: int) -> float:
    return _T[freedom - 1] if freedom <= len(_T) else _Z + 2.4 / freedom
