"""The KV cache under plans and RoPE policies: shifted, forked, saved and restored, and reconfigured."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from raw_model import Context, Logits, Model

from pyllama_long import _native
from pyllama_long._native import llama_cpp as C
from pyllama_long.plan import AttentionPlan
from pyllama_long.rope import RopePolicy

ROPES = (
    "native",
    "linear(3)",
    "ntk(4)",
    "yarn(4)",
    "llama3(8)",
    "dca(80, 16)",
    "dca(80, 16)+yarn(2)",
    "self-extend(4, 64)",
    "rerope(64)+logn",
)


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def one_layer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A model of one layer with f32 weights, so that K only depends on a token and its position, and a shift can be
    exact. llama rotates adjacent pairs, qwen2 pairs half a head apart."""
    shape: dict[str, Any] = {"type": "f32", "n_layer": 1, "n_ctx_train": 256}
    with Model.random(tmp_path_factory.mktemp("models"), request.param, seed=4, **shape) as model:
        yield model


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp("models")
    with Model.random(folder, "llama", seed=5, type="f32", n_ctx_train=256) as model:
        yield model


def same(a: Logits, b: Logits, step: float = 2e-5) -> None:
    assert np.abs(a - b).max() <= 20 * step * b.std()


@pytest.mark.parametrize("rope", ROPES)
def test_a_shift_equals_a_fresh_prefill(one_layer: Model, rope: str) -> None:
    tokens = one_layer.tokens(400)
    kept = tokens[:50] + tokens[130:]
    with one_layer.context(512, "exact", rope, kv_type="f32") as context:
        context.decode(tokens[:-1])
        assert C.llama_memory_seq_rm(context.memory, 0, 50, 130)
        C.llama_memory_seq_add(context.memory, 0, 130, -1, -80)
        shifted = context.decode(tokens[-1:], len(kept) - 1)
    with one_layer.context(512, "exact", rope, kv_type="f32") as context:
        fresh = context.decode(kept)[-1:]
    same(shifted, fresh)


@pytest.mark.parametrize("rope", [rope for rope in ROPES if "logn" not in rope])
@pytest.mark.parametrize("far", [1_000_000, 100_000_000])
def test_only_distances_count(deep: Model, rope: str, far: int) -> None:
    """Angles stay right far out: the same text a million positions later gives the same logits."""
    tokens = deep.tokens(200)
    with deep.context(512, "exact", rope, kv_type="f32") as context:
        near = context.decode(tokens)
    with deep.context(512, "exact", rope, kv_type="f32") as context:
        # 1e6 and 1e8 are multiples of the chunk of 64 and the group of 4
        same(context.decode(tokens, far), near, 1e-4)


@pytest.mark.parametrize("rope", ["native", "yarn(4)", "rerope(64)+logn"])
def test_a_hole_is_not_read(one_layer: Model, rope: str) -> None:
    """Removed positions leave a hole; the others keep their places."""
    tokens = one_layer.tokens(300)
    with one_layer.context(512, "exact", rope, kv_type="f32") as context:
        context.decode(tokens[:-1])
        assert C.llama_memory_seq_rm(context.memory, 0, 100, 200)
        holed = context.decode(tokens[-1:], len(tokens) - 1)
    with one_layer.context(512, "sinks(100)+window(100)", rope, kv_type="f32") as context:
        planned = context.decode(tokens)[-1:]
    same(holed, planned)


@pytest.mark.parametrize("rope", ROPES)
def test_saved_and_restored_equals_never_stopped(deep: Model, rope: str) -> None:
    tokens = deep.tokens(300)
    with deep.context(512, "exact", rope) as context:
        context.decode(tokens[:200])
        size = C.llama_state_seq_get_size(context.ptr, 0)
        data = (ctypes.c_uint8 * size)()
        assert C.llama_state_seq_get_data(context.ptr, data, size, 0) == size
        expected = context.decode(tokens[200:], 200)
    with deep.context(512, "exact", rope, n_seq=2) as context:
        context.decode(deep.tokens(40, seed=9), seq=1)  # so that the restored cells lie elsewhere
        assert C.llama_state_seq_set_data(context.ptr, data, size, 0) == size
        same(context.decode(tokens[200:], 200), expected)


@pytest.mark.parametrize("rope", ["native", "rerope(64)"])
def test_a_fork_continues_alone(deep: Model, rope: str) -> None:
    tokens, other = deep.tokens(300), deep.tokens(100, seed=1)
    with deep.context(1024, "exact", rope, n_seq=2, kv_type="f32") as context:
        context.decode(tokens[:200])
        C.llama_memory_seq_cp(context.memory, 0, 1, -1, -1)
        mixed = []
        for i in range(100):  # cells of the two sequences alternate from here on
            rows = [(tokens[200 + i], 200 + i, 0), (other[i], 200 + i, 1)]
            mixed.append(context.decode_rows(rows))
    for seq, tail in ((0, tokens[200:]), (1, other)):
        with deep.context(512, "exact", rope, kv_type="f32") as context:
            expected = context.decode(tokens[:200] + tail)[200:]
        same(np.stack([rows[seq] for rows in mixed]), expected)


def configure(context: Context, plan: str, rope: str = "native") -> None:
    policy = RopePolicy.parse(rope, n_train=256, n_ctx=1024)
    config = _native.c_config(AttentionPlan.parse(plan), policy, precision="f32")
    _native.configure(context.ptr, config)


def test_a_plan_can_change_on_a_live_context(deep: Model) -> None:
    tokens = deep.tokens(301)
    with deep.context(512, "exact", kv_type="f32") as context:
        exact = context.decode(tokens)[-1:]
        configure(context, "window(20)")
        windowed = context.decode(tokens[-1:], 301)
        configure(context, "exact")
        assert C.llama_memory_seq_rm(context.memory, 0, 300, -1)
        same(context.decode(tokens[-1:], 300), exact)
    assert np.abs(windowed - exact).max() > 0.1 * exact.std()


def test_a_rope_policy_cannot_change_under_a_cache(deep: Model) -> None:
    tokens = deep.tokens(20)
    with deep.context(512, "exact") as context:
        context.decode(tokens)
        with pytest.raises(ValueError, match="while the KV cache is empty"):
            configure(context, "exact", "rerope(64)")
        context.clear()
        configure(context, "exact", "rerope(64)")
        changed = context.decode(tokens)
    with deep.context(512, "exact", "rerope(64)") as context:
        same(changed, context.decode(tokens))


def test_a_wrong_configuration_is_refused(deep: Model) -> None:
    with deep.context(512, "exact") as context:
        config = _native.c_config(AttentionPlan.parse("exact"), RopePolicy())
        config.plan.phase[0].sinks = -1
        with pytest.raises(ValueError, match="negative"):
            _native.configure(context.ptr, config)
        config = _native.c_config(AttentionPlan.parse("exact"), RopePolicy())
        config.abi += 1
        with pytest.raises(ValueError, match="different versions"):
            _native.configure(context.ptr, config)


@pytest.mark.parametrize(
    ("plan", "again"),
    [
        ("dilated(w0=32, alpha=2, n=4)", False),
        ("sinks(4)+window(24)+dilated(segments=36/108/216, rates=1/3/6)", False),
        ("dilated(w0=32, alpha=2, n=4, align=query)", False),
        ("dilated(segments=48/100/333, rates=1/3/7)", True),
    ],
)
def test_keys_of_nested_branches_are_read_once(deep: Model, plan: str, again: bool) -> None:
    with deep.context(512, plan, kv_type="f32") as context:
        context.decode(deep.tokens(300))
        read = _native.stats(context.ptr).keys_read
    phase = AttentionPlan.parse(plan).prefill
    needed = 4 * sum(_native.phase_count(phase, p, h) for p in range(300) for h in range(4))  # layers, heads
    assert read > needed if again else read == needed


def test_tail_tokens_read_by_the_second_phase(deep: Model) -> None:
    tokens = deep.tokens(300)
    plan = "prefill: window(30) | tail: exact"
    with deep.context(512, plan, kv_type="f32") as context:
        _native.set_tail(context.ptr, 0, 250)
        both = context.decode(tokens)
        stats = _native.stats(context.ptr)
    with deep.context(512, "window(30)", kv_type="f32") as context:
        windowed = context.decode(tokens)
    same(both[:250], windowed[:250])
    assert np.abs(both[250:] - windowed[250:]).max() > 0.1 * windowed.std()
    rows = 4 * 4  # heads, layers
    assert stats.keys_visible == rows * 300 * 301 // 2
    assert stats.keys_read == rows * (30 * 31 // 2 + 220 * 30 + sum(range(251, 301)))
