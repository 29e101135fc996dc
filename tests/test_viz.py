"""Drawings, shares and path lengths of plans."""

from __future__ import annotations

import sys
from collections import deque
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import keys
from test_plan import plans

from pyllama_long import pattern
from pyllama_long.plan import AttentionPlan, PlanError
from pyllama_long.viz import density, distances, longest_path, pattern_png, pattern_text, shares


def test_text_shows_sinks_and_window() -> None:
    drawing = pattern_text(AttentionPlan.parse("sinks(1)+window(2)"), 8, 8)
    # Each line holds two queries: 0 and 1, ..., 6 and 7.
    assert drawing.splitlines() == ["██", "█▒██", "█··▒██", "█····▒██"]
    full = pattern_text(AttentionPlan.parse("exact"), 4096, 16).splitlines()
    assert full == ["█" * n for n in range(2, 17, 2)]


def test_the_tail_is_drawn_where_it_differs() -> None:
    skim = AttentionPlan.parse("prefill: window(1) | tail: exact")
    assert density(skim, 16, 16, 16)[13].tolist()[:14] == [0.0] * 13 + [1.0]
    assert density(skim, 16, 16, 16)[14].tolist()[:15] == [1.0] * 15
    assert density(skim, 16, 16, 16, tail=0)[15, 0] == 0.0
    assert pattern_text(skim, 3, 64) == "█\n·█\n··█"


def test_heads_have_their_own_lattice() -> None:
    plan = AttentionPlan.parse("dilated(segments=8, rates=4)")
    maps = [np.nan_to_num(density(plan, 16, 16, 16, head=h)) for h in range(5)]
    assert [np.argwhere(m).min() for m in maps] == [0, 1, 2, 3, 0]
    assert sum(m.sum() for m in maps[:4]) == 4 * 2 * 3


@settings(deadline=None)
@given(plans(), st.integers(1, 40), st.integers(0, 4))
def test_density_is_the_formulas(plan: AttentionPlan, n: int, head: int) -> None:
    drawn = density(plan, n, n, n, head=head, tail=n // 3)
    for p in range(n):
        expected = np.full(n, np.nan)
        expected[: p + 1] = 0.0
        expected[keys(plan.tail if p >= n - n // 3 else plan.prefill, p, head)[0]] = 1.0
        np.testing.assert_array_equal(drawn[p], expected)


def test_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plan.png"
    pattern_png(AttentionPlan.parse("longnet"), path, 3000, 1)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_png_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'pyllama-long\[plot\]'"):
        pattern_png(AttentionPlan.parse("exact"), tmp_path / "plan.png", 100)


def test_shares() -> None:
    plan = AttentionPlan.parse("window(2)")
    assert shares(plan, (1, 2, 4)) == {1: 1.0, 2: 1.0, 4: 0.7}


def test_a_window_needs_n_over_w_layers() -> None:
    for n, w in ((1, 5), (2, 2), (1000, 33), (65536, 512)):
        assert longest_path(AttentionPlan.parse(f"window({w})"), n) == ceil((n - 1) / (w - 1))
    assert longest_path(AttentionPlan.parse("exact"), 65536) == 1
    skim = AttentionPlan.parse("prefill: window(3) | tail: exact")
    assert longest_path(skim, 1000, tail=1) == 1
    assert longest_path(skim, 1000) == ceil(999 / 2)
    assert longest_path(AttentionPlan.parse("window(1)"), 2) is None
    assert longest_path(AttentionPlan.parse("sinks(4)"), 100) is None


def test_longnet_needs_log_n_layers() -> None:
    hops = []
    for doublings in range(3, 10):
        plan = AttentionPlan.parse(f"dilated(w0=128, alpha=2, n={doublings + 1}, align=query)")
        hops.append(longest_path(plan, 128 << doublings, 4))
    assert all(found is not None and found <= 2 + k for k, found in enumerate(hops, 1)), hops
    # Beyond its largest segment, LongNet's pattern is closed.
    assert longest_path(AttentionPlan.parse("dilated(w0=128, n=4)"), 1024, 8) == 2
    assert longest_path(AttentionPlan.parse("dilated(w0=128, n=4)"), 1025, 8) is None


def brute_force(plan: AttentionPlan, start: int, tail_from: int, n_head: int) -> int | None:
    seen, frontier, hops = {start}, {start}, 0
    while len(seen) <= start:
        read: set[int] = set()
        for p in frontier:
            phase = plan.tail if p >= tail_from else plan.prefill
            for h in range(n_head):
                read |= set(keys(phase, p, h)[0].tolist())
        frontier = read - seen
        if not frontier:
            return None
        seen |= frontier
        hops += 1
    return hops


@settings(deadline=None)
@given(plans(), st.integers(1, 60), st.integers(1, 4), st.integers(0, 5))
def test_paths_equal_a_brute_force_search(plan: AttentionPlan, n: int, n_head: int, tail: int) -> None:
    assert longest_path(plan, n, n_head, tail=tail) == brute_force(plan, n - 1, n - tail, n_head)
    each = [brute_force(plan, p, n - tail, n_head) for p in (0, n // 2)]
    worst = None if None in each else max(hops for hops in each if hops is not None)
    assert longest_path(plan, n, n_head, tail=tail, starts=(0, n // 2)) == worst


def test_what_cannot_be_drawn_says_so() -> None:
    plan = AttentionPlan.parse("exact")
    for make in (
        lambda: pattern_text(plan, 0),
        lambda: pattern_text(plan, 10, head=-1),
        lambda: longest_path(plan, 0),
        lambda: longest_path(plan, 5, starts=(5,)),
    ):
        with pytest.raises(PlanError):
            make()


@pytest.mark.parametrize(
    "text", ["window(5)", "sinks(2)+window(4)", "dilated(w0=16, n=3)", "longnet", "sinks(4)"]
)
@pytest.mark.parametrize("start", [0, 37, 99])
def test_distances_are_those_of_a_search_over_single_keys(text: str, start: int) -> None:
    n, heads = 100, 4
    plan = AttentionPlan.parse(text)
    reads: list[set[int]] = [
        set().union(*(pattern.keys(plan.prefill, q, h).tolist() for h in range(heads))) for q in range(n)
    ]

    def search(edges: list[set[int]]) -> list[int]:
        away, queue = [-1] * n, deque([start])
        away[start] = 0
        while queue:
            at = queue.popleft()
            for t in edges[at]:
                if away[t] < 0:
                    away[t] = away[at] + 1
                    queue.append(t)
        return away

    read_by: list[set[int]] = [{q for q in range(n) if t in reads[q]} for t in range(n)]
    found = distances(plan, n, start, heads)
    assert found[: start + 1].tolist() == search(reads)[: start + 1]
    assert found[start:].tolist() == search(read_by)[start:]
    if start == n - 1 and (path := longest_path(plan, n, heads)) is not None:
        assert found.max() == path
