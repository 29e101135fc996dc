"""Cells are counted as llama.cpp keeps them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllama_long.engine.cells import Cells


def test_cells_are_counted_once() -> None:
    cells = Cells(100)
    cells.extend(0, 40)
    cells.fork(0, 1, 25)
    cells.extend(1, 10)
    cells.fork(1, 2, 30)
    assert (cells.used, cells.held(0), cells.held(1), cells.held(2)) == (50, 40, 35, 30)
    assert cells.freed_by([0]) == 15
    assert cells.freed_by([0, 1]) == 20
    assert cells.freed_by([0, 1, 2]) == 50
    assert cells.freed_by([1, 2], keep=(1, 28)) == 7
    cells.truncate(1, 10)
    assert (cells.used, cells.is_shared(1)) == (45, True)
    cells.drop(0)
    cells.drop(2)
    assert (cells.used, cells.is_shared(1)) == (10, False)
    cells.drop(1)
    assert cells.used == 0
    with pytest.raises(AssertionError):
        cells.extend(0, 101)


_OPS = st.lists(
    st.tuples(st.sampled_from("efta"), st.integers(0, 4), st.integers(0, 4), st.integers(0, 12)), max_size=40
)


@given(_OPS)
@settings(deadline=None, max_examples=200)
def test_cells_agree_with_sets(ops: list[tuple[str, int, int, int]]) -> None:
    """The same count, kept with every single cell."""
    cells, sets, fresh = Cells(10_000), dict[int, list[int]](), itertools.count()
    for op, a, b, n in ops:
        mine = sets.setdefault(a, [])
        if op == "e":
            cells.extend(a, n)
            mine.extend(itertools.islice(fresh, n))
        elif op == "f" and a != b and not sets.get(b) and n <= len(mine):
            cells.fork(a, b, n)
            sets[b] = mine[:n]
        elif op == "t" and n <= len(mine):
            cells.truncate(a, n)
            del mine[n:]
        seqs = [s for s in sets if (s + n) % 2]
        left = set(itertools.chain.from_iterable(ids for s, ids in sets.items() if s not in seqs))
        gone = set(itertools.chain.from_iterable(sets[s] for s in seqs)) - left
        assert cells.used == len(set(itertools.chain.from_iterable(sets.values())))
        assert cells.freed_by(seqs) == len(gone)
        if a in seqs:
            assert cells.freed_by(seqs, keep=(a, b)) == len(gone - set(sets[a][:b]))
