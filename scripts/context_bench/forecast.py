"""Estimates the remaining time of a prefill: the cost of a token grows linearly with its depth."""

from __future__ import annotations

import numpy as np


class Line:
    """Seconds per token at a depth, from the measurements so far; 0 if there are none."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self._coefficients = (0.0, 0.0)

    def add(self, depth: float, seconds: float) -> None:
        self.points.append((depth, seconds))
        x, y = np.array(self.points).T
        slope = max(0.0, float(np.polyfit(x, y, 1)[0])) if x.max() > x.min() else 0.0
        self._coefficients = (slope, max(0.0, float(y.mean() - slope * x.mean())))

    def at(self, depth: float) -> float:
        slope, base = self._coefficients
        return slope * depth + base

    def sum(self, start: int, stop: int) -> float:
        """Seconds for the tokens start .. stop."""
        return (stop - start) * self.at((start + stop) / 2)
