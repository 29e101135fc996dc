"""The op against the float64 reference: every case, every instruction set of this processor, by maximum error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from cases import CASES, QUANTIZED, Case, Seq
from op_graph import FLOOR, OpCase, known

from pyllama_long import _native

ISAS = [name for name, usable in _native.isas().items() if usable]
BY_NAME = {case.name: case for case in CASES}
EMPTY = ("empty/0/prefill", "empty/0/decode", "empty/1/prefill", "empty/2/prefill", "empty/gone")


# the precision of an instruction set; the others use f32
NAIVE = {"amx": "bf16", "avx512bf16": "bf16", "neonbf16": "bf16"}
BF16 = [name for name in NAIVE if name in ISAS]


def _mean_square(case: Case, precision: str, draw: int) -> tuple[float, float]:
    """The mean square errors of the op and of the naive computation, for other contents of the same case."""
    op = OpCase(replace(case, name=f"{case.name}#{draw}"))
    expected = op.expected()
    return tuple(float(np.mean((x - expected) ** 2)) for x in (op.run(), op.expected(precision)))  # type: ignore[return-value]


def tiles(isa: str) -> int:
    index = list(_native.isas()).index(isa)
    return int(_native.lib.plong_cpu_isa_tiles(index))


@pytest.fixture
def forced(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces the instruction set in request.param; at the end checks that it ran, and no other."""
    before = {isa: tiles(isa) for isa in ISAS}
    assert _native.lib.plong_cpu_isa_force(request.param.encode())
    yield request.param
    assert _native.lib.plong_cpu_isa(0).decode() == request.param
    assert [isa for isa in ISAS if tiles(isa) > before[isa]] == [request.param]
    assert _native.lib.plong_cpu_isa_force(b"")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("forced", ISAS, indirect=True)
def test_equals_the_reference(forced: str, case: Case) -> None:
    expected, allowed = known(case, NAIVE.get(forced, "f32"))
    got = OpCase(case).run()
    assert np.isfinite(got).all()
    worst = np.abs(got - expected).max()
    if forced in NAIVE and worst > allowed:
        # The largest of some thousand bf16 errors depends on one key of large weight, and so on luck. Then the op
        # must be as good as the naive computation in the mean of three draws, and its largest error in this draw
        # within twice more.
        assert worst <= 2 * allowed
        ours, naive = zip(*(_mean_square(case, NAIVE[forced], i) for i in range(3)), strict=True)
        assert sum(ours) <= 1.1 * sum(naive)
    else:
        assert worst <= allowed


@pytest.mark.parametrize("forced", ISAS, indirect=True)
@pytest.mark.parametrize("n_threads", [1, 3, 8])
@pytest.mark.parametrize(
    "name", ["length/1000/exact", "length/1000/past", "sequences/many/exact", "part/6/prefill", "tail/many"]
)
def test_any_number_of_threads(forced: str, name: str, n_threads: int) -> None:
    expected, allowed = known(BY_NAME[name], NAIVE.get(forced, "f32"))
    assert np.abs(OpCase(BY_NAME[name]).run(n_threads) - expected).max() <= allowed


@pytest.mark.parametrize("forced", ISAS, indirect=True)
@pytest.mark.parametrize("name", EMPTY)
def test_rows_without_keys_are_zero(forced: str, name: str) -> None:
    expected, _ = known(BY_NAME[name])
    empty = ~expected.any(axis=2)
    assert empty.any(), "the case must have such rows"
    assert not OpCase(BY_NAME[name]).run()[empty].any()


@pytest.mark.parametrize("forced", ISAS, indirect=True)
@pytest.mark.parametrize("n_past", [40, 400])
@pytest.mark.parametrize("bad", ["q", "k", "v"])
def test_nan_shows(forced: str, bad: str, n_past: int) -> None:
    op = OpCase(Case("nan", seqs=(Seq(n_past, 9),), kv_type="f32"))
    if bad == "q":
        op.q[3, 1, 5] = np.nan
        assert np.isnan(op.run()[3, 1]).all()
    else:
        _set_key(op, bad, n_past - 20, np.nan)
        got = op.run()
        assert np.isnan(got[:, :2]).any(axis=2).all(), "every query of this kv head reads the key"
        assert np.isfinite(got[:, 2:]).all()


@pytest.mark.parametrize("forced", ISAS, indirect=True)
@pytest.mark.parametrize("kv_type", ["f16", *QUANTIZED])
@pytest.mark.parametrize("bad", ["q", "k", "v"])
def test_nan_shows_in_decode(forced: str, bad: str, kv_type: str) -> None:
    op = OpCase(Case("nan decode", seqs=(Seq(200, 1),), kv_type=kv_type))
    if bad == "q":
        op.q[0, 1, 5] = np.nan
        assert np.isnan(op.run()[0, 1]).all()
        return
    raw = bytearray(op.k_bytes if bad == "k" else op.v_bytes)
    at = len(raw) // op.n_kv * 100  # in cell 100: a scale, or a number
    raw[at : at + 2] = np.array(np.nan, np.float16).tobytes()
    op.k_bytes, op.v_bytes = (bytes(raw), op.v_bytes) if bad == "k" else (op.k_bytes, bytes(raw))
    got = op.run()
    assert np.isnan(got[0, :2]).any(axis=1).all(), "both queries of this kv head read the key"
    assert np.isfinite(got[0, 2:]).all()


def _set_key(op: OpCase, which: str, at: int, value: float) -> None:
    """One number of a key, in the first kv head."""
    array = np.array(op.k if which == "k" else op.v)
    array[0, at, 0, 7] = value
    raw = array.astype(np.float32).tobytes()
    op.k_bytes, op.v_bytes = (raw, op.v_bytes) if which == "k" else (op.k_bytes, raw)


@pytest.mark.parametrize("forced", ISAS, indirect=True)
@pytest.mark.parametrize("power", [-20, -9, 9, 14, 40])
def test_queries_and_keys_of_any_size(forced: str, power: int) -> None:
    """Their products stay the same, so nothing changes."""
    case = Case("sizes", seqs=(Seq(400, 9),), kv_type="f32")
    expected, allowed = known(case, NAIVE.get(forced, "f32"))
    op = OpCase(case)
    op.q *= 2.0**power
    op.k_bytes = (np.array(op.k) * 2.0**-power).astype(np.float32).tobytes()
    assert np.abs(op.run() - expected).max() <= allowed


@pytest.mark.parametrize("forced", ISAS, indirect=True)
@pytest.mark.parametrize("logit", [300.0, 3e4, 1e6, 1e12])
def test_a_late_key_takes_all(forced: str, logit: float) -> None:
    op = OpCase(Case("late", seqs=(Seq(400, 9),), kv_type="f32"))
    op.q[:, :2, 7] = 8 * op.case.d_k**0.5  # the scale's inverse
    _set_key(op, "k", 380, logit / 8)
    got = op.run()[:, :2]
    np.testing.assert_allclose(
        got, np.broadcast_to(np.array(op.v)[0, 380, 0], got.shape), rtol=5e-3, atol=1e-6
    )


@pytest.mark.parametrize("forced", ISAS, indirect=True)
@pytest.mark.parametrize("size", [3e3, 1e12, -1e12])
def test_a_key_ahead_changes_no_bit(forced: str, size: float) -> None:
    case = Case("ahead", seqs=(Seq(400, 40),), kv_type="f32")
    op = OpCase(case)
    _set_key(op, "k", 430, size)
    got, without = op.run(), OpCase(case).run()
    np.testing.assert_array_equal(got[:30], without[:30])
    assert (got[30:, :2] != without[30:, :2]).any(axis=2).all()


@pytest.mark.parametrize("forced", ISAS, indirect=True)
@pytest.mark.parametrize("n_keys", [1, 64, 777])
def test_a_plan_that_covers_all_equals_exact(forced: str, n_keys: int) -> None:
    case = Case("full", seqs=(Seq(n_keys, 33),))
    exact = OpCase(case).run()
    np.testing.assert_array_equal(OpCase(replace(case, plan=f"window({n_keys + 40})")).run(), exact)
    # Sinks are a block of their own, so that other rows of a tile do not change what a row gets.
    both = replace(case, plan=f"sinks({n_keys // 2 + 1})+window({n_keys - n_keys // 2 + 40})")
    expected, allowed = known(case, NAIVE.get(forced, "f32"))
    assert np.abs(OpCase(both).run() - expected).max() <= allowed


@pytest.mark.skipif(not BF16, reason="this processor multiplies no bf16")
@pytest.mark.parametrize("forced", BF16, indirect=True)
@pytest.mark.parametrize("name", [name for name in BY_NAME if name.startswith("quantized/")])
def test_decode_of_a_quantized_cache_is_finer_than_bf16(forced: str, name: str) -> None:
    expected, allowed = known(BY_NAME[name], "bf16")
    assert np.abs(OpCase(BY_NAME[name]).run() - expected).max() <= allowed / 20 + FLOOR


def test_unknown_instruction_set_is_refused() -> None:
    before = _native.lib.plong_cpu_isa(0)
    assert not _native.lib.plong_cpu_isa_force(b"quantum")
    assert _native.lib.plong_cpu_isa(0) == before
