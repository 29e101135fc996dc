"""The planned work of a batch: every row is in one tile, and reads the keys of its plan."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES, Case, Seq
from op_graph import OpCase

from pyllama_long import _native, cli

BY_NAME = {case.name: case for case in CASES}
SIZES = (21, 7, 6, 5, 2)  # int32 words of a tile, range, readers, row and count
HEAD = 14


class Parts:
    """The arrays of a work tensor, as work.h lays them out."""

    def __init__(self, words: _native.Words) -> None:
        at = HEAD
        arrays = []
        for n, size in zip(words[:5].tolist(), SIZES, strict=True):
            arrays.append(words[at : at + n * size].reshape(n, size))
            at += n * size
        self.tiles, self.ranges, self.readers, self.rows, self.counts = arrays
        assert at == len(words)


@pytest.mark.parametrize("n_threads", [1, 2, 16])
@pytest.mark.parametrize("name", ["length/1000/exact", "sequences/many/exact", "part/6/prefill", "tail/many"])
def test_each_row_is_in_one_tile(name: str, n_threads: int) -> None:
    op = OpCase(BY_NAME[name])
    seen = np.zeros((len(op.q), op.case.n_head), int)
    group = op.case.n_head // op.case.n_head_kv
    for tile in Parts(op.work(n_threads)).tiles:
        tok, n_tok, head, n_h, n_kv = (int(tile[i]) for i in (4, 6, 8, 9, 10))
        for kv in range(n_kv):
            seen[tok : tok + n_tok, head + kv * group : head + kv * group + n_h] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("plan", ["exact", "window(100)", "sinks(8)+window(100)", "global(3)"])
@pytest.mark.parametrize("new", [1, 3, 70])
def test_rows_read_the_keys_of_the_plan(plan: str, new: int) -> None:
    case = Case("work", n_head=4, n_head_kv=2, plan=plan, seqs=(Seq(300, new),))
    op = OpCase(case)
    found = Parts(op.work(2))
    keys: dict[tuple[int, int], list[int]] = {}
    for tile in found.tiles.tolist():
        tok, pos, n_tok, _, head, n_h = tile[4:10]
        for beg, end, stride, _, readers, sinks_end, *_ in found.ranges[tile[11] : tile[12]].tolist():
            first, last = found.readers[readers][:2]
            for row, at, lo, hi, _ in found.rows[first:last].tolist():
                kv, rest = divmod(row, n_tok * n_h)
                i, h = divmod(rest, n_h)
                assert at == pos + i
                read = [t for t in range(beg, end, stride) if t <= hi and (t >= lo or t < sinks_end)]
                keys.setdefault((tok + i, head + kv * 2 + h), []).extend(read)
    for i in range(new):
        for h in range(case.n_head):
            expected, _ = _native.phase_keys(op.plan.prefill, 300 + i, h)
            assert sorted(keys.get((i, h), [])) == expected.tolist()


def test_plan_prints_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--length", "4096", "--heads", "8", "--kv-heads", "2"]
    assert cli.run(["plan", "sinks(4)+window(100)", *options, "--work", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("tiles: 1, of at most 8 rows; key ranges: 2")
    assert "heads 0-3 of each of 2 kv heads" in shown
    assert "keys [0, 4): 4, for all rows" in shown and "keys [3996, 4096): 100" in shown
    assert "row 0 at 4095 reads 3996 .. 4095" in shown
    assert cli.run(["plan", "exact; dense_layers=1", *options, "--work", "64"]) == 0
    shown = capsys.readouterr().out
    assert "layers below 1:" in shown and "others:" in shown
    assert cli.run(["plan", "exact", *options, "--work", "5k"]) == 2
    assert "--work 5120 is more than the 4096 tokens of --length" in capsys.readouterr().err
    assert cli.run(["plan", "exact", *options[:-1], "3", "--work", "1"]) == 2
    assert "--kv-heads 3 does not divide --heads 8" in capsys.readouterr().err


def test_work_that_no_memory_holds_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_native.lib, "plong_work_new", lambda *_: None)
    assert cli.run(["plan", "exact", "--work", "9"]) == 1
    assert "not enough memory for --work 9: take fewer tokens" in capsys.readouterr().err
