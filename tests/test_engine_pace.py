"""How prompts are paced, on a simulated machine where the cost of a step is known."""

from __future__ import annotations

import pytest

from pyllama_long.engine.pace import Pace


def step(
    pace: Pace, streams: int, depth: int, left: int, per_token: float, plain: float
) -> tuple[int, float]:
    """Simulates one step; returns its prompt tokens and its seconds. Deeper tokens cost more."""
    n = min(left, pace.room(depth, streams, 512)) if left else 0
    seconds = (plain if streams else 0.0) + n * per_token * (1 + depth / 10_000)
    pace.measured(streams, [(depth, n)] if n else [], seconds)
    return n, seconds


@pytest.mark.parametrize("per_token", [1e-5, 1e-3, 2e-2])
@pytest.mark.parametrize("plain", [1e-3, 3e-2])
def test_streams_keep_their_share_and_gaps_are_short(per_token: float, plain: float) -> None:
    pace = Pace(0.2, 0.4)
    for _ in range(20):
        step(pace, 8, 0, 0, per_token, plain)
    depth, total, texts, gaps = 0, 0.0, 0, []
    while depth < 20_000 and texts < 20_000:
        n, seconds = step(pace, 8, depth, 20_000 - depth, per_token, plain)
        depth, total, texts = depth + n, total + seconds, texts + 1
        gaps.append(seconds)
    assert texts * plain > 0.5 * total
    assert max(gaps[1:]) < 0.3 + (64 * per_token if per_token > 1e-2 else 0)


def test_without_streams_a_step_is_short_too() -> None:
    """A new request waits for the chunk, but chunks of fewer than 64 tokens would cost the prompt too much."""
    pace = Pace(0.2, 0.4)
    assert pace.room(0, 0, 512) == 64
    for seconds, n in ((10.0, 64), (0.02, 512), (1.0, 102)):
        pace = Pace(0.2, 0.4)
        pace.measured(0, [(0, 512)], seconds)
        assert pace.room(0, 0, 512) == n
    pace.measured(2, [(0, 512)], 1.0)
    assert (pace.room(0, 2, 512), pace.room(0, 0, 512)) == (0, 102)


def test_a_step_of_several_prompts_tells_little_of_each() -> None:
    """The time of the deep prompt does not count as the shallow one's."""
    pace = Pace(0.2, 0.4)
    pace.measured(0, [(0, 512)], 0.512)
    pace.measured(0, [(30_000, 512)], 5.12)
    for _ in range(20):
        pace.measured(0, [(0, 50), (30_000, 50)], 0.55)
    assert pace.seconds(0, 10) == pytest.approx(0.01, rel=0.05)
    assert pace.seconds(30_000, 10) == pytest.approx(0.1, rel=0.05)


def test_the_first_chunk_beside_streams_is_small() -> None:
    pace = Pace(0.2, 0.4)
    assert pace.room(0, 3, 512) == 32
    assert pace.room(0, 500, 512) == 12


def test_a_prompt_always_goes_on() -> None:
    pace = Pace(0.001, 0.4)
    pace.measured(1, [], 5.0)
    pace.measured(0, [(0, 512)], 500.0)
    assert pace.room(1000, 1, 512) == 1


def test_depth_is_learned() -> None:
    pace = Pace(0.2, 0.4)
    pace.measured(0, [(100, 512)], 512 * 1e-3)
    pace.measured(0, [(100_000, 512)], 512 * 1e-2)
    assert pace.seconds(100, 10) == pytest.approx(0.01)
    assert pace.seconds(100_000, 10) == pytest.approx(0.1)
    assert 0.01 < pace.seconds(10_000, 10) <= 0.1
