"""Which layers a RoPE policy rotates: those with full attention, also where they share K; a policy that one of them
cannot follow is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import make_random_gguf
import numpy as np
import pytest
from gemma_model import Gemma
from raw_model import Context, Logits, Model

from pyllama_long import LongLlama, _native, cli, layers, log
from pyllama_long._native import llama_cpp as C
from pyllama_long.errors import ModelError
from pyllama_long.rope import RopePolicy

N_CTX, N_TRAIN = 1024, 64
TEXT = [(7 * i * i + 3 * i) % 500 for i in range(200)]
CLOSE = 0.01  # root mean square; another rotation in one layer changes logits by 0.2 or more
SHAPE: dict[str, Any] = {
    "type": "f32",
    "n_ctx_train": N_TRAIN,
    "n_embd": 64,
    "head_dim": 64,
    "n_head": 2,
    "n_head_kv": 1,
    "sliding_window": 48,
}
# Two window layers for each full one; in Gemma 4 the last three read the K and V of the three before them.
MODELS: dict[str, dict[str, Any]] = {
    "gemma3": {"n_layer": 6, "sliding_pattern": 3},
    "gemma4": {"n_layer": 6, "sliding_pattern": 3, "n_shared": 3},
}
POLICIES = (
    "native",
    "linear(4)",
    "ntk(4)",
    "yarn(4)",
    "rerope(20)",
    "self-extend(4, 16)",
    "dca(48, 8)",
    "dca(48, 8)+yarn(2)+logn",
)


@pytest.fixture(scope="module", params=MODELS)
def gemma(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Model, Gemma]]:
    folder = tmp_path_factory.mktemp("models")
    with Model.random(folder, request.param, seed=2, **SHAPE, **MODELS[request.param]) as model:
        yield model, Gemma(folder / f"{request.param}.gguf")


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Gemma 3n: layers from the 21st on read the keys of the 19th (windows) and the 20th (full)."""
    with Model.random(tmp_path_factory.mktemp("models"), "gemma3n", type="f32", n_ctx_train=N_TRAIN) as model:
        yield model


@pytest.fixture(scope="module")
def before_full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A window layer that reads only the token itself, before a full one: K of that only depends on the token and its
    position, so that rotating it in the cache can be exact."""
    shape = {**SHAPE, "n_layer": 2, "sliding_pattern": 2, "sliding_window": 1}
    with Model.random(tmp_path_factory.mktemp("models"), "gemma3", seed=3, **shape) as model:
        yield model


def same(a: Logits, b: Logits) -> None:
    assert np.sqrt(np.mean((a - b) ** 2)) < CLOSE and np.abs(a - b).max() < 10 * CLOSE


def decode(model: Model, rope: str = "native", plan: str | None = "exact", **options: Any) -> Logits:
    with closing(Context(model, N_CTX, plan, rope, n_ubatch=64, **options)) as ctx:
        return ctx.decode(TEXT)


@pytest.mark.parametrize("rope", POLICIES)
def test_full_layers_follow_and_window_layers_keep_their_own(gemma: tuple[Model, Gemma], rope: str) -> None:
    model, reference = gemma
    expected = reference.logits(TEXT, RopePolicy.parse(rope, n_train=N_TRAIN, n_ctx=N_CTX))
    same(decode(model, rope), expected)


@pytest.mark.parametrize(
    ("rope", "options"), [("linear(4)", {"linear": 4.0}), ("ntk(4)", {"base": 1e6 * 4 ** (32 / 30)})]
)
def test_layers_without_keys_are_rotated_as_those_whose_keys_they_read(
    sharing: Model, rope: str, options: dict[str, Any]
) -> None:
    expected = decode(sharing, plan=None, **options)
    same(decode(sharing, rope), expected)


@pytest.mark.parametrize("rope", ["rerope(1000)", "self-extend(4, 1000)", "dca(1000, 100)"])
def test_within_a_maps_window_it_is_the_models_own_rope(sharing: Model, rope: str) -> None:
    same(decode(sharing, rope), decode(sharing))


@pytest.mark.parametrize("rope", ["native", "yarn(4)", "rerope(20)", "self-extend(4, 16)", "dca(48, 8)"])
def test_a_shift_of_full_layers_beside_windows(before_full: Model, rope: str) -> None:
    kept = TEXT[:50] + TEXT[130:]
    with before_full.context(N_CTX, "exact", rope, kv_type="f32", n_ubatch=64) as ctx:
        ctx.decode(TEXT[:-1])
        assert C.llama_memory_seq_rm(ctx.memory, 0, 50, 130)
        C.llama_memory_seq_add(ctx.memory, 0, 130, -1, -80)
        shifted = ctx.decode(TEXT[-1:], len(kept) - 1)
        ctx.clear()
        np.testing.assert_allclose(shifted[0], ctx.decode(kept)[-1], atol=1e-3)


def test_a_dynamic_factor_is_that_of_the_full_layers(gemma: tuple[Model, Gemma]) -> None:
    model, _ = gemma
    with model.context(N_CTX, rope="dynamic-yarn", n_ubatch=64) as ctx:
        np.testing.assert_array_equal(ctx.decode(TEXT), decode(model))
        ctx.clear()
        _native.set_rope_factor(ctx.ptr, 0, 4.0)
        same(ctx.decode(TEXT), decode(model, "yarn(4)"))


def test_cached_keys_of_full_layers_are_turned_to_another_factor(before_full: Model) -> None:
    found = []
    for first, n in ((2.0, 150), (4.0, 0)):
        with before_full.context(N_CTX, rope="dynamic-ntk", kv_type="f32", n_ubatch=64) as ctx:
            _native.set_rope_factor(ctx.ptr, 0, first)
            if n:
                ctx.decode(TEXT[:n])
            _native.set_rope_factor(ctx.ptr, 0, 4.0)
            found.append(ctx.decode(TEXT[n:], n)[-1])
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)


# ---- policies that do not hold for every layer ---------------------------------------------------------------


def test_layers_that_keep_their_own_positions_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    make_random_gguf.write(path, "gemma4", **SHAPE, **MODELS["gemma4"])
    with closing(LongLlama(str(path), n_ctx=4 * N_TRAIN, verbose=False)) as llm:
        assert str(llm.rope) == "dynamic-yarn"
        assert "  not in layers 0-1, 3-4 (sliding window)\n" in llm.explain()
    with closing(LongLlama(str(path), n_ctx=N_TRAIN, verbose=False)) as llm:
        assert "not in layers" not in llm.explain()


def test_layers_without_rope_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM3: every fourth layer has none."""
    monkeypatch.setitem(make_random_gguf.ARCHS, "smollm3", make_random_gguf.Arch("smollm3"))
    path = tmp_path / "m.gguf"
    make_random_gguf.write(path, "smollm3", n_layer=5, n_ctx_train=N_TRAIN)
    for rope in ("yarn(4)", "rerope(20)"):
        with closing(LongLlama(str(path), n_ctx=4 * N_TRAIN, rope=rope, verbose=False)) as llm:
            assert "  not in layers 3 (no RoPE)\n" in llm.explain()
            llm.eval(TEXT)


@pytest.fixture
def without_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A diffusion model, whose attention never comes by the hooks."""
    monkeypatch.setitem(make_random_gguf.ARCHS, "llada", make_random_gguf.Arch("llada"))
    path = tmp_path / "m.gguf"
    make_random_gguf.write(path, "llada", n_layer=3, n_ctx_train=N_TRAIN)
    return str(path)


@pytest.mark.parametrize("rope", ["yarn(4)", "dynamic-yarn", "rerope(20)", "native+logn"])
def test_a_policy_that_a_layer_cannot_follow_is_an_error(without_cache: str, rope: str) -> None:
    said = r"cannot have layers 0-2 \(attention without a K/V cache\): use rope=\"native\"$"
    with pytest.raises(ModelError, match=said):
        LongLlama(without_cache, n_ctx=4 * N_TRAIN, rope=rope, verbose=False)


def test_auto_falls_back_to_native_and_says_why(
    without_cache: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(LongLlama(without_cache, n_ctx=4 * N_TRAIN, verbose=False)) as llm:
        assert str(llm.rope) == "native"
        assert "dynamic-yarn is left out (this RoPE policy" in llm.rope_reason
        assert "own attention: 0-2 (attention without a K/V cache)" in llm.explain()
    assert cli.run(["inspect", without_cache, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["refused_layers"] == {"attention without a K/V cache": [0, 1, 2]}
    assert {row["rope"] for row in report["choices"]} == {"native"}
    assert cli.run(["inspect", without_cache]) == 0
    assert "layers 0-2 (attention without a K/V cache)" in capsys.readouterr().out


def test_a_policy_that_would_change_no_layer_is_an_error(tmp_path: Path) -> None:
    """LFM2 with a window: it is that of every layer with attention."""
    path = str(tmp_path / "m.gguf")
    make_random_gguf.write(path, "lfm2", n_ctx_train=N_TRAIN, sliding_window=48)
    with pytest.raises(ModelError, match="would change no layer"):
        LongLlama(path, n_ctx=4 * N_TRAIN, rope="yarn(4)", verbose=False)
    with closing(LongLlama(path, n_ctx=4 * N_TRAIN, verbose=False)) as llm:
        assert str(llm.rope) == "native" and "would change no layer" in llm.rope_reason


def test_a_batch_that_cannot_follow_is_refused(gemma: tuple[Model, Gemma]) -> None:
    with closing(Context(gemma[0], N_CTX, rope="rerope(20)")) as ctx:
        expected = ctx.decode(TEXT)
        ctx.clear()
        C.llama_set_causal_attn(ctx.ptr, False)
        log.forget()
        with pytest.raises(AssertionError, match="llama_decode gave"):
            ctx.decode(TEXT)
        assert "attention is not causal" in (log.complaint() or "")
        C.llama_set_causal_attn(ctx.ptr, True)
        ctx.clear()
        np.testing.assert_array_equal(ctx.decode(TEXT), expected)


def test_numbers_of_layers_as_spans() -> None:
    found = [(0, "x"), (1, "x"), (2, ""), (3, "y"), (4, "x"), (6, "x"), (7, "x")]
    assert layers.describe(found) == "0-1, 4, 6-7 (x); 3 (y)"
    assert layers.describe([(0, "")]) == "" and layers.read("0\ta b\n1\t\n") == [(0, "a b"), (1, "")]
