"""The float64 reference against examples worked by hand and properties that hold whatever the numbers are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import attention, distance, hadamard, keys, logn, naive, rope_freqs, rotate, round_to

from pyllama_long.plan import AttentionPlan
from pyllama_long.rope import RopePolicy

LN2 = float(np.log(2))
Array = npt.NDArray[Any]


def weights(plan: str, p: int, h: int = 0) -> dict[int, float]:
    positions, log_w = keys(AttentionPlan.parse(plan).prefill, p, h)
    return dict(zip(positions.tolist(), log_w.tolist(), strict=True))


def zeros(*positions: int) -> dict[int, float]:
    return dict.fromkeys(positions, 0.0)


def test_set_parts() -> None:
    assert weights("exact", 4) == zeros(0, 1, 2, 3, 4)
    assert weights("sinks(2)", 5) == zeros(0, 1)
    assert weights("sinks(2)", 0) == zeros(0)
    assert weights("window(2)", 5) == zeros(4, 5)
    assert weights("sinks(1)+global(2)+window(1)", 5) == zeros(0, 1, 5)
    assert weights("window(1); dense_below=3", 2) == zeros(0, 1, 2)
    assert weights("window(1); dense_below=3", 3) == zeros(3)


def test_dilated_by_hand() -> None:
    plan = "dilated(segments=4/8, rates=1/2{})"
    # p = 6: the segment of 4 starts at 4, that of 8 at 0; head 0 is on the even lattice, head 1 on the odd.
    assert weights(plan.format(""), 6) == {0: 0.0, 2: 0.0, 4: LN2, 5: 0.0, 6: LN2}
    assert weights(plan.format(", weight=none"), 6) == zeros(0, 2, 4, 5, 6)
    assert weights(plan.format(", weight=stride"), 6) == {0: LN2, 2: LN2, 4: 0.0, 5: 0.0, 6: 0.0}
    assert weights(plan.format(""), 6, 1) == zeros(4, 5, 6)
    assert weights(plan.format(""), 6, 2) == weights(plan.format(""), 6)
    assert weights(plan.format(""), 8) == {8: LN2}
    assert weights("sinks(1)+window(1)+" + plan.format(""), 6) == {0: 0.0, 2: 0.0, 4: LN2, 5: 0.0, 6: 0.0}
    # The segment starts at 7, so head 0's lattice is 7, 9, 11, 13.
    assert weights("dilated(segments=7, rates=2)", 11) == zeros(7, 9, 11)
    assert weights("dilated(segments=7, rates=2)", 10) == {}


def test_dilated_that_slides_by_hand() -> None:
    plan = "dilated(segments=4/8, rates=1/2, align=query{})"
    assert weights(plan.format(""), 6, 1) == {1: 0.0, 3: LN2, 4: 0.0, 5: LN2, 6: 0.0}
    assert weights(plan.format(", weight=stride"), 9, 1) == {3: LN2, 5: LN2, 6: 0.0, 7: 0.0, 8: 0.0, 9: 0.0}
    assert weights("dilated(segments=4, rates=4, align=query)", 2, 3) == {}


def test_stride_owner_is_the_first_branch_that_covers_the_key_and_takes_the_query() -> None:
    plan = "dilated(segments=4/8, rates=2/4, weight=stride)"
    # Head 0, p = 6: branch 0 covers 4..6 and reads 4, 6; p is not on branch 1's lattice of 4.
    assert weights(plan, 6) == {4: LN2, 6: LN2}
    # p = 4: on both lattices; 4 belongs to branch 0, the rest of the segment of 8 to branch 1.
    assert weights(plan, 4) == {0: 2 * LN2, 4: LN2}
    # Keys 0..3 of the segment of 8: only 1 is on head 1's lattice; head 1, p = 5.
    assert weights(plan, 5, 1) == {1: 2 * LN2, 5: LN2}


def test_distances_by_hand() -> None:
    dca = RopePolicy(map="dca", chunk=6, local=2)  # keys sit at t mod 4
    assert distance(dca, 9, np.arange(10)).tolist() == [6, 5, 4, 3, 5, 4, 3, 2, 1, 0]
    assert distance(dca, 11, np.arange(12)).tolist() == [6, 5, 4, 3, 6, 5, 4, 3, 3, 2, 1, 0]
    extend = RopePolicy(map="self-extend", chunk=3, local=5)
    assert distance(extend, 20, np.array([20, 16, 15, 14, 12, 0])).tolist() == [0, 4, 5, 6, 6, 10]
    rerope = RopePolicy(map="rerope", chunk=3)
    assert distance(rerope, 5, np.arange(6)).tolist() == [3, 3, 3, 2, 1, 0]
    assert distance(RopePolicy(), 5, np.arange(6)).tolist() == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("text", ["dca", "self-extend", "rerope"])
@pytest.mark.parametrize("n_train", [64, 100, 512])
def test_default_maps_stay_within_the_trained_distances(text: str, n_train: int) -> None:
    policy = RopePolicy.parse(text, n_train=n_train, n_ctx=40 * n_train)
    t = np.arange(40 * n_train)
    for p in (n_train // 3, n_train, 17 * n_train + 5, len(t) - 1):
        found = distance(policy, p, t[: p + 1])
        assert found.min() >= 0
        assert found.max() < n_train
        near = min(p + 1, n_train // 8)
        assert found[-near:].tolist() == list(range(near))[::-1]


def test_logn() -> None:
    policy = RopePolicy.parse("native+logn", n_train=100)
    np.testing.assert_allclose(logn(policy, np.array([0, 99, 9999])), [1.0, 1.0, 2.0])
    assert logn(RopePolicy(n_train=100), np.array([9999])).tolist() == [1.0]


def test_frequencies_by_hand() -> None:
    base = 10000.0
    native, magnitude = rope_freqs(RopePolicy(), 4, base)
    np.testing.assert_allclose(native, [1.0, 0.01])
    assert magnitude == 1.0
    np.testing.assert_allclose(rope_freqs(RopePolicy(), 4, base, np.array([1.0, 4.0]))[0], [1.0, 0.0025])
    linear = rope_freqs(RopePolicy.parse("linear(4)"), 4, base, np.array([1.0, 4.0]))[0]
    np.testing.assert_allclose(linear, native / 4)
    # NTK keeps the highest frequency and divides the lowest by s.
    ntk = rope_freqs(RopePolicy.parse("ntk(4)"), 128, base)[0] / rope_freqs(RopePolicy(), 128, base)[0]
    np.testing.assert_allclose(ntk[[0, -1]], [1.0, 0.25])
    assert (np.diff(ntk) < 0).all()


def test_yarn_frequencies_by_hand() -> None:
    # n_rot 128, L 4096, base 10000: corr(32) = 20.9, corr(1) = 45.03: the ramp goes from pair 20 to pair 46.
    yarn, magnitude = rope_freqs(RopePolicy.parse("yarn(4)", n_train=4096), 128, 10000.0)
    ratio = yarn / rope_freqs(RopePolicy(), 128, 10000.0)[0]
    np.testing.assert_allclose(ratio[:21], 1.0)
    np.testing.assert_allclose(ratio[46:], 0.25)
    np.testing.assert_allclose(ratio[33], 0.5 / 4 + 0.5)
    assert magnitude == pytest.approx(1.138629436)


def test_llama3_and_longrope_frequencies_by_hand() -> None:
    policy = RopePolicy.parse("llama3(8)", n_train=8192)
    native = rope_freqs(RopePolicy(), 128, 500000.0)[0]
    ratio = rope_freqs(policy, 128, 500000.0)[0] / native
    wavelength = 2 * np.pi / native
    np.testing.assert_allclose(ratio[wavelength < 2048], 1.0)
    np.testing.assert_allclose(ratio[wavelength > 8192], 0.125)
    assert ((ratio > 0.125) & (ratio < 1.0)).sum() == ((wavelength > 2048) & (wavelength < 8192)).sum() > 0
    # Halfway: a wavelength of L / 2.5 has smooth = 0.5.
    base = (8192 / 2.5 / (2 * np.pi)) ** 2
    halfway = rope_freqs(policy, 4, base)[0]
    np.testing.assert_allclose(halfway, [1.0, base**-0.5 * (0.5 / 8 + 0.5)])
    longrope, magnitude = rope_freqs(RopePolicy.parse("longrope(32, factors=1/2)", n_train=4096), 4, 10000.0)
    np.testing.assert_allclose(longrope, [1.0, 0.005])
    assert magnitude == pytest.approx(1.1902380714238083)  # Phi-3-mini-128k


def test_rotation_by_hand() -> None:
    x = np.array([1.0, 0.0, 0.0, 2.0, 5.0])
    quarter = np.array([np.pi / 2, np.pi])
    np.testing.assert_allclose(rotate(x, np.array(1), quarter, 4, False), [0, 1, 0, -2, 5], atol=1e-15)
    np.testing.assert_allclose(rotate(x, np.array(1), quarter, 4, True), [0, 0, 1, -2, 5], atol=1e-15)
    np.testing.assert_allclose(rotate(x, np.array(0), quarter, 4, True, 3.0), [3, 0, 0, 6, 5])
    assert rotate(x, np.array(1), np.zeros(0), 0, True) is x


@pytest.mark.parametrize("neox", [True, False])
def test_rotations_compose_and_only_distance_counts(neox: bool) -> None:
    random = np.random.default_rng(0)
    freqs = rope_freqs(RopePolicy(), 48, 10000.0)[0]
    q, k = random.standard_normal((2, 64))
    a, b = np.array(1234), np.array(77)
    twice = rotate(rotate(q, a, freqs, 48, neox), b, freqs, 48, neox)
    np.testing.assert_allclose(twice, rotate(q, a + b, freqs, 48, neox), atol=1e-12)
    dot = rotate(q, a, freqs, 48, neox) @ rotate(k, b, freqs, 48, neox)
    assert dot == pytest.approx(float(rotate(q, a - b, freqs, 48, neox) @ k), abs=1e-11)
    back = rotate(rotate(q, a, freqs, 48, neox, 1.3), -a, freqs, 48, neox, 1 / 1.3)
    np.testing.assert_allclose(back, q, atol=1e-12)


def test_hadamard_is_its_own_inverse_and_keeps_dot_products() -> None:
    q, k = np.random.default_rng(0).standard_normal((2, 3, 128))
    np.testing.assert_allclose(hadamard(hadamard(q, 64), 64), q, atol=1e-13)
    np.testing.assert_allclose((hadamard(q, 64) * hadamard(k, 64)).sum(-1), (q * k).sum(-1), atol=1e-12)
    np.testing.assert_allclose(hadamard(np.array([1.0, 3.0]), 2), np.array([4.0, -2.0]) / np.sqrt(2))


def test_rounding() -> None:
    x = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-9, 65504.0])
    assert round_to(x, "bf16").tolist() == [1.0, 1 + 2**-6, -1.0, 65536.0]
    assert round_to(x, "f16").tolist() == x.tolist()
    assert round_to(x, "bf16").dtype == np.float32
    assert round_to(x, "f64").dtype == np.float64


def run(
    plan: str = "exact",
    rope: str = "native",
    n: int = 40,
    n_past: int = 0,
    *,
    order: Array | None = None,
    phase: int = 0,
    peaked: float = 1.0,
    n_head_kv: int = 2,
    **named: Any,
) -> Array:
    """[n, 4, 8]: the reference on fixed random tensors at positions n_past .. n_past + n."""
    random = np.random.default_rng(5)
    q, k, v = (random.standard_normal((200, heads, 8)) for heads in (4, 2, 2))
    k, v = (np.repeat(x, n_head_kv // 2, axis=1) for x in (k, v))
    policy = RopePolicy.parse(rope, n_train=16, n_ctx=64)
    freqs, magnitude = rope_freqs(policy, 6, 100.0)
    k_pos = np.arange(n_past + n) if order is None else order
    q_pos = np.arange(n_past, n_past + n)
    inputs = (peaked * q[q_pos], k[k_pos], v[k_pos], q_pos, k_pos, np.full(n, phase))
    function = naive if "precision" in named else attention
    plan_ = AttentionPlan.parse(plan)
    return function(*inputs, plan_, policy, 0.3, freqs, magnitude, 6, True, **named)


def test_exact_is_the_softmax_of_the_textbook() -> None:
    random = np.random.default_rng(5)
    q, k, v = (random.standard_normal((200, heads, 8)) for heads in (4, 2, 2))
    freqs = rope_freqs(RopePolicy(), 6, 100.0)[0]
    out = run()
    for p, h in ((0, 0), (7, 1), (39, 3)):
        logits = [
            0.3
            * rotate(q[p, h], np.array(p), freqs, 6, True)
            @ rotate(k[t, h // 2], np.array(t), freqs, 6, True)
            for t in range(p + 1)
        ]
        probabilities = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(out[p, h], probabilities @ v[: p + 1, h // 2], atol=1e-13)


@pytest.mark.parametrize(
    "plan",
    [
        "window(40)",
        "sinks(40)",
        "global(17)+window(23)",
        "window(1); dense_below=40",
        "window(1); dense_layers=1",
    ],
)
def test_a_full_plan_is_exact(plan: str) -> None:
    np.testing.assert_allclose(run(plan), run(), atol=1e-14)


@pytest.mark.parametrize("rope", ["rerope(40)", "dca(99, 7)", "self-extend(1, 8)", "self-extend(5, 40)"])
def test_a_map_that_maps_nothing_is_absolute(rope: str) -> None:
    np.testing.assert_allclose(run(rope=rope), run(), atol=1e-13)
    np.testing.assert_allclose(run(rope=rope + "+yarn(3)"), run(rope="yarn(3)"), atol=1e-13)


def test_maps_change_far_keys_only() -> None:
    np.testing.assert_allclose(run("window(5)", "rerope(5)"), run("window(5)"), atol=1e-13)
    assert np.abs(run("exact", "rerope(5)") - run())[20:].max() > 1e-3


def test_count_weights_are_a_softmax_over_the_multiset() -> None:
    plan = "dilated(segments=8/16/40, rates=1/2/4)"
    random = np.random.default_rng(5)
    q, k, v = (random.standard_normal((200, heads, 8)) for heads in (4, 2, 2))
    freqs = rope_freqs(RopePolicy(), 6, 100.0)[0]
    out = run(plan)
    for p, h in ((20, 0), (21, 2), (36, 0), (39, 3)):
        number = (0, 2, 1, 3)[h]  # heads 0 and 1 share a kv head, 2 and 3 do
        multiset = []
        for w, r in ((8, 1), (16, 2), (40, 4)):
            begin = p // w * w
            if (p - begin) % r == number % r:
                multiset += [t for t in range(begin, p + 1) if (t - begin) % r == number % r]
        logits = np.array(
            [0.3 * rotate(q[p, h], np.array(p - t), freqs, 6, True) @ k[t, h // 2] for t in multiset]
        )
        probabilities = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(out[p, h], probabilities @ v[multiset, h // 2], atol=1e-13)


def test_rows_without_keys_are_zero() -> None:
    out = run("dilated(segments=20, rates=4)")
    for p in range(40):
        for h in range(4):
            assert (out[p, h] != 0).any() == (p % 20 % 4 == (0, 2, 1, 3)[h])
    assert not run("sinks(3)", n=5, n_past=20, order=np.arange(10, 25)).any()


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(30)))
def test_the_order_of_cells_does_not_matter(order: list[int]) -> None:
    plan = "sinks(2)+dilated(segments=8/16, rates=1/2)"
    shuffled = run(plan, "dca(10, 3)+logn", n=30, order=np.array(order))
    np.testing.assert_allclose(shuffled, run(plan, "dca(10, 3)+logn", n=30), atol=1e-13)


def test_chunks_equal_one_shot() -> None:
    whole = run("sinks(2)+window(9)", "self-extend(3, 8)+logn")
    chunk = run("sinks(2)+window(9)", "self-extend(3, 8)+logn", n=13, n_past=27)
    np.testing.assert_allclose(chunk, whole[27:], atol=1e-13)


def test_grouped_heads_share_keys() -> None:
    np.testing.assert_allclose(run(n_head_kv=4), run(), atol=1e-14)


def test_phases_and_layers_choose_the_plan() -> None:
    plan = "prefill: window(3) | tail: exact; dense_layers=2"
    np.testing.assert_array_equal(run(plan, layer=2), run("window(3)"))
    np.testing.assert_array_equal(run(plan, layer=2, phase=1), run())
    np.testing.assert_array_equal(run(plan, layer=1), run())


def test_logn_scales_the_logits_of_late_queries() -> None:
    np.testing.assert_array_equal(run(rope="native+logn")[:16], run()[:16])
    sharper = run(rope="native+logn")[39]
    np.testing.assert_allclose(sharper, run(peaked=float(np.log(40) / np.log(16)))[39], atol=1e-13)


def test_huge_logits_are_finite() -> None:
    for out in (run(peaked=1e6), run(peaked=1e6, precision="f32"), run(peaked=1e6, precision="bf16")):
        assert np.isfinite(out).all()


@pytest.mark.parametrize("rope", ["native", "dca(10, 3)"])
def test_naive_errors_follow_the_precision(rope: str) -> None:
    exact = run(rope=rope)
    errors = [float(np.abs(run(rope=rope, precision=p) - exact).max()) for p in ("f32", "f16", "bf16")]
    assert 0 < errors[0] < 1e-6 < errors[1] < 3e-3 < 20 * errors[1]
    assert errors[1] < errors[2] < 3e-2
