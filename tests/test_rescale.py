"""Dynamic RoPE factors behind plain llama_decode, and shifts that leave the length of keys alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from raw_model import Context, Model, nll
from saved_state import keys, restore, save
from test_cache import same

from pyllama_long import _native, filler
from pyllama_long._native import llama_cpp as C
from pyllama_long.rope import RopePolicy

DYNAMIC = ("dynamic-yarn", "dynamic-ntk")
SHAPES: dict[str, dict[str, Any]] = {"llama": {}, "qwen2": {}, "partial": {"n_rot": 32}}
BASES = {"llama": 1e4, "qwen2": 1e6, "partial": 1e4}


@pytest.fixture(scope="module", params=SHAPES)
def one_layer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """K of one layer only depends on a token, its position and the factor, so that rotating it can be exact. llama
    rotates adjacent pairs, qwen2 pairs half a head apart, partial a part of each head."""
    arch = "phi3" if request.param == "partial" else request.param
    shape: dict[str, Any] = {"type": "f32", "n_layer": 1, "n_ctx_train": 128, **SHAPES[request.param]}
    folder = tmp_path_factory.mktemp("models")
    with Model.random(folder, arch, request.param, seed=4, **shape) as model:
        yield model


@pytest.fixture(scope="module")
def prose(demo: Model) -> list[int]:
    return demo.tokenize(" ".join(filler.sentences()))


def set_factor(context: Context, factor: float, seq: int = 0) -> None:
    _native.set_rope_factor(context.ptr, seq, factor)


@pytest.mark.parametrize("rope", DYNAMIC)
@pytest.mark.parametrize(
    ("kv_type", "step"),
    [("f32", 2e-5), ("f16", 1e-3), ("q8_0", 1e-2), ("q4_0", 0.16), ("iq4_nl", 0.16), ("q5_1", 0.08)],
)
def test_turned_keys_are_those_of_a_fresh_prefill(
    one_layer: Model, rope: str, kv_type: str, step: float
) -> None:
    tokens = one_layer.tokens(300)
    with one_layer.context(512, "exact", rope, kv_type=kv_type) as context:
        set_factor(context, 4)
        fresh, expected = context.decode(tokens), keys(context, dynamic=True)
    with one_layer.context(512, "exact", rope, kv_type=kv_type) as context:
        context.decode(tokens[:100])
        set_factor(context, 2)
        context.decode(tokens[100:299], 100)
        set_factor(context, 4)
        assert _native.rope_factor(context.ptr, 0) == 4
        last = context.decode(tokens[299:], 299)
        found = keys(context, dynamic=True)
    error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    assert error <= step
    same(last, fresh[-1:], step)


@pytest.mark.parametrize("rope", DYNAMIC)
def test_within_the_trained_length_logits_are_native(demo: Model, prose: list[int], rope: str) -> None:
    tokens = prose[:500]
    with demo.context(2048, "exact", "native") as context:
        native = context.decode(tokens)
    with demo.context(2048, "exact", rope) as context:
        assert np.array_equal(context.decode(tokens), native)
        context.clear()
        set_factor(context, 8)
        assert not np.array_equal(context.decode(tokens), native)
        context.clear()
        set_factor(context, 1)
        assert np.array_equal(context.decode(tokens), native)


def test_a_text_that_grew_is_as_good_as_a_fresh_one(demo: Model, prose: list[int]) -> None:
    """From half the trained length to eight times it."""
    tokens = prose[:4096]
    with demo.context(4096, "exact", "dynamic-yarn") as context:
        set_factor(context, 8)
        fresh = nll(context.decode(tokens)[-513:], tokens[-513:])
    with demo.context(4096, "exact", "dynamic-yarn") as context:
        at = 0
        for end, factor in ((256, 1), (900, 2), (2000, 4), (3583, 8)):
            set_factor(context, factor)
            context.decode(tokens[at:end], at)
            at = end
        grown = nll(context.decode(tokens[at:], at), tokens[at:])
    assert abs(np.exp(grown.mean()) / np.exp(fresh.mean()) - 1) < 0.02


@pytest.mark.parametrize("unified", [True, False])
def test_each_sequence_has_its_own_factor(one_layer: Model, unified: bool) -> None:
    tokens, n = one_layer.tokens(150), 3
    factors = (1.0, 4.0, 2.0)
    alone = []
    for factor in factors:
        with one_layer.context(256, "exact", "dynamic-yarn", kv_type="f32") as context:
            set_factor(context, factor)
            alone.append(context.decode(tokens))
    with one_layer.context(
        256 * n, "exact", "dynamic-yarn", kv_type="f32", n_seq=n, unified=unified
    ) as context:
        for seq, factor in enumerate(factors):
            set_factor(context, factor, seq)
        rows = [(token, at, seq) for at, token in enumerate(tokens) for seq in range(n)]
        together = context.decode_rows(rows)
    for seq in range(n):
        same(together[seq::n], alone[seq])


def test_a_fork_takes_its_factor_along(one_layer: Model) -> None:
    tokens = one_layer.tokens(200)
    for unified in (True, False):
        with one_layer.context(
            1024, "exact", "dynamic-yarn", kv_type="f32", n_seq=3, unified=unified
        ) as context:
            set_factor(context, 4)
            context.decode(tokens[:199])
            C.llama_memory_seq_cp(context.memory, 0, 1, -1, -1)
            assert _native.rope_factor(context.ptr, 1) == 4
            same(context.decode(tokens[199:], 199, seq=1), context.decode(tokens[199:], 199, seq=0))
            if not unified:
                continue
            with pytest.raises(RuntimeError, match="sequence 0 shares cells with another one"):
                set_factor(context, 8)
            assert _native.rope_factor(context.ptr, 0) == 4
            context.decode(tokens[:10], seq=2)
            C.llama_memory_seq_cp(context.memory, 0, 2, -1, -1)  # of another factor: refused
            assert C.llama_memory_seq_pos_max(context.memory, 2) == 9


def test_a_saved_sequence_keeps_its_factor(demo: Model, prose: list[int]) -> None:
    tokens = prose[:700]
    with demo.context(1024, "exact", "dynamic-yarn") as context:
        set_factor(context, 2)
        context.decode(tokens[:600])
        data = save(context)
        expected = context.decode(tokens[600:], 600)
    with demo.context(1024, "exact", "dynamic-yarn", n_seq=2) as context:
        assert restore(context, data, 1)
        assert [_native.rope_factor(context.ptr, seq) for seq in (0, 1)] == [1, 2]
        assert np.array_equal(context.decode(tokens[600:], 600, seq=1), expected)
        assert not restore(context, data[:-9], 0)  # cut off
    with demo.context(1024, "exact", "native") as context:
        assert not restore(context, data)
        context.decode(tokens[:600])
        other = save(context)
    with demo.context(1024, "exact", "dynamic-yarn") as context:
        assert not restore(context, other)


def test_a_shift_turns_each_sequence_by_its_own_factor(one_layer: Model) -> None:
    tokens = one_layer.tokens(200)
    kept = tokens[:20] + tokens[60:]
    for factor in (1.0, 4.0):
        with one_layer.context(512, "exact", "dynamic-yarn", kv_type="f32") as context:
            set_factor(context, factor)
            fresh = context.decode(kept)[-1:]
        with one_layer.context(1024, "exact", "dynamic-yarn", kv_type="f32", n_seq=2) as context:
            set_factor(context, factor)
            set_factor(context, 2, seq=1)
            context.decode(tokens, seq=1)
            context.decode(tokens[:-1])
            assert C.llama_memory_seq_rm(context.memory, 0, 20, 60)
            C.llama_memory_seq_add(context.memory, 0, 60, -1, -40)
            same(context.decode(tokens[-1:], len(kept) - 1), fresh)


def test_what_cannot_be_set_is_said(demo: Model) -> None:
    with (
        demo.context(512, "exact", "yarn(4)") as context,
        pytest.raises(RuntimeError, match="has no factor to choose"),
    ):
        set_factor(context, 2)
    with demo.context(512, "exact", "dynamic-yarn") as context:
        for factor, seq, message in (
            (0.5, 0, "finite number of 1 or more"),
            (float("nan"), 0, "finite"),
            (2, 7, "no sequence 7"),
        ):
            with pytest.raises(RuntimeError, match=message):
                set_factor(context, factor, seq)


# ---- shifts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [4, 32])
@pytest.mark.parametrize("kv_type", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("by", ["upstream", "upstream's YaRN, our shift", "policy"])
def test_shifts_do_not_scale_keys(one_layer: Model, factor: int, kv_type: str, by: str) -> None:
    """Neither those of cells that move nor of others."""
    if by == "upstream" and kv_type == "q8_0" and one_layer.arch == "partial":
        kv_type = "f32"  # upstream aborts when a part of a quantized head is to be rotated
    tokens = one_layer.tokens(200)
    scaling: dict[str, Any] = {"rope": f"yarn({factor})"} if by == "policy" else {"yarn": factor}
    plan = None if by == "upstream" else "exact"
    with one_layer.context(512, plan, kv_type=kv_type, **scaling) as context:
        context.decode(tokens)
        before = np.linalg.norm(keys(context), axis=-1)[:, :50]
        shifts = 0
        for target in (1, 2, 3, 10):
            while shifts < target:
                C.llama_memory_seq_add(context.memory, 0, 100, -1, 1)
                context.decode(tokens[:1], 200 + 2 * shifts + 1)  # applies it
                shifts += 1
            after = np.linalg.norm(keys(context), axis=-1)
            assert np.abs(after[:, :50].mean() / before.mean() - 1) < 1e-3
            assert np.abs(after[:, 100:200].mean() / after[:, :50].mean() - 1) < 0.05


# ---- precision ---------------------------------------------------------------------------------------------

POLICIES = (
    "native linear(3) ntk(5.5) yarn(4) yarn(31.7) llama3(8) dynamic-yarn dynamic-ntk dca dca+yarn(4) self-extend "
    "rerope rerope+ntk(3)"
).split()


@pytest.mark.parametrize("far", [1_000_000, 100_000_000])
@pytest.mark.parametrize("rope", POLICIES)
def test_keys_are_turned_by_the_angle_of_their_position(one_layer: Model, rope: str, far: int) -> None:
    """As the graph stores them, against double precision: the same token at a far position and at 0."""
    token, n = one_layer.tokens(1), 5
    policy = RopePolicy.parse(rope, n_train=one_layer.n_train, n_ctx=far)
    shape = SHAPES[one_layer.arch]
    n_rot, neox, base = shape.get("n_rot", 64), one_layer.arch != "llama", BASES[one_layer.arch]
    factor = 7.3 if policy.dynamic else 1.0
    with one_layer.context(64, "exact", str(policy), kv_type="f32") as context:
        if policy.dynamic:
            set_factor(context, factor)
        context.decode(token * n)
        start = keys(context, dynamic=policy.dynamic)[0, 0]
        context.clear()
        context.decode(token * n, far)
        found = keys(context, dynamic=policy.dynamic)[0]
    scaled = replace(policy, dynamic=False, factor=factor) if policy.dynamic else policy
    f, _ = _native.rope_freqs(scaled, n_rot, base)
    for i in range(n):
        stored = _native.rope_stored(policy, far + i)
        angle = np.asarray(stored, np.float64) * f
        for head in (0, 1):
            a, b = (pairs(x[64 * head : 64 * head + n_rot], neox) for x in (start, found[i]))
            turned = np.angle(b / a)
            error = np.angle(np.exp(1j * (turned - angle)))
            weight = np.abs(a) > 0.2 * np.abs(a).mean()  # a pair near zero has no measurable angle
            assert np.abs(error[weight]).max() < 1e-4


def pairs(x: npt.NDArray[Any], neox: bool) -> npt.NDArray[np.complexfloating]:
    """The rotated pairs of a head as complex numbers."""
    half = len(x) // 2
    return x[:half] + 1j * x[half:] if neox else x[0::2] + 1j * x[1::2]
