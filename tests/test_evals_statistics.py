"""Intervals of measured figures."""

from __future__ import annotations

import random
from statistics import NormalDist

import pytest

from pyllama_long.evals.statistics import mean_of_groups, share_of_groups, wilson


def test_wilsons_interval() -> None:
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0.0, 1) == pytest.approx((0.0, 0.7935), abs=1e-4)


def test_intervals_hold_as_often_as_they_say() -> None:
    """Groups of three values that depend on each other, drawn around 5."""
    chance, normal = random.Random(0), NormalDist()
    for k in (2, 4, 30):
        held = 0
        for _ in range(2000):
            groups = []
            for _ in range(k):
                shared = normal.inv_cdf(chance.uniform(1e-9, 1 - 1e-9))
                groups.append([5 + shared + 0.3 * chance.uniform(-1, 1) for _ in range(3)])
            mean, error = mean_of_groups(groups)
            assert error is not None
            held += abs(mean - 5) <= error
        assert held / 2000 == pytest.approx(0.95, abs=0.015)
    assert mean_of_groups([[1.0, 2.0]]) == (1.5, None)
    assert mean_of_groups([[1.0], [1.0]]) == (1.0, 0.0)


def test_intervals_of_shares_count_groups_not_questions() -> None:
    assert share_of_groups([[1], [0], [1], [1]]) == pytest.approx(wilson(0.75, 4))  # one question each
    assert share_of_groups([[1, 1, 0]]) == pytest.approx(wilson(2 / 3, 1))
    assert share_of_groups([[1] * 50, [0] * 50] * 2) == pytest.approx(wilson(0.5, 4))  # right together
    low, high = share_of_groups([[1, 0] * 25, [0, 1] * 25] * 10)  # right by chance
    assert (low, high) == pytest.approx(wilson(0.5, 1000), abs=0.005)
    assert share_of_groups([[1] * 10] * 10)[0] == pytest.approx(wilson(1.0, 100)[0], abs=0.02)


def test_intervals_of_shares_hold_as_often_as_they_say() -> None:
    """Twelve questions about each document, of which some are harder than others."""
    chance = random.Random(0)
    for k in (4, 10):
        held = naive = 0
        for _ in range(1000):
            hard = [chance.uniform(0.3, 0.9) for _ in range(k)]
            groups = [[float(chance.random() < p) for _ in range(12)] for p in hard]
            low, high = share_of_groups(groups)
            held += low <= 0.6 <= high
            mean = sum(map(sum, groups)) / (12 * k)
            low, high = wilson(mean, 12 * k)
            naive += low <= 0.6 <= high
        assert held / 1000 > 0.93 > 0.9 > naive / 1000
