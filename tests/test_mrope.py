"""M-RoPE: text goes through the op under every policy; images go upstream's way, and the op comes back after them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_model import Context, Logits, Model

from pyllama_long import LongLlama, _native, log
from pyllama_long._native import llama_cpp as C

TEXT = [(7 * i * i + 3 * i) % 500 for i in range(700)]
N_EMBD = 256
CLOSE = 0.03  # cached K is rounded to f16 at another angle; a wrong rotation changes logits by several units
SMALL: dict[str, Any] = {"n_layer": 2, "n_ctx_train": 256, "type": "f32"}
POLICIES = ("native", "yarn(4)", "ntk(4)", "dca", "rerope(128)", "self-extend(4, 128)", "rerope(128)+logn")


@pytest.fixture(scope="module")
def vl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model.random(tmp_path_factory.mktemp("mrope"), "qwen2vl", **SMALL) as model:
        yield model


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """The same weights without M-RoPE: the same model for text."""
    with Model.random(tmp_path_factory.mktemp("twin"), "qwen2", tied=False, **SMALL) as model:
        yield model


@pytest.fixture(scope="module")
def interleaved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Sections that leave two pairs without a position, as Qwen3-VL's do, with angles that would show."""
    with Model.random(tmp_path_factory.mktemp("imrope"), "qwen3vl", rope_base=100.0, **SMALL) as model:
        yield model


def logits(model: Model, rope: str = "native", plan: str | None = "exact") -> Logits:
    with closing(Context(model, 1024, plan, rope, n_ubatch=256)) as ctx:
        if plan is not None:
            assert ctx.layers() == [(0, ""), (1, "")]
        return ctx.decode(TEXT)


@pytest.mark.parametrize("rope", POLICIES)
def test_text_equals_that_of_the_model_without_it(vl: Model, twin: Model, rope: str) -> None:
    np.testing.assert_allclose(logits(vl, rope), logits(twin, rope), atol=CLOSE)


@pytest.mark.parametrize("name", ["vl", "interleaved"])
def test_text_equals_upstreams(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    np.testing.assert_allclose(logits(model), logits(model, plan=None), atol=2e-3)


def test_a_hybrid_model_is_taken(tmp_path: Path) -> None:
    """The Qwen3.5 family: every fourth layer has attention, with M-RoPE on half of each head."""
    with Model.random(tmp_path, "qwen35", n_rot=32, **{**SMALL, "n_layer": 8}) as model:
        found = []
        for plan in ("exact", None):
            with closing(Context(model, 1024, plan, n_ubatch=256)) as ctx:
                found.append(ctx.decode(TEXT))
                assert ctx.layers() == ([(3, ""), (7, "")] if plan else [])
    np.testing.assert_allclose(found[0], found[1], atol=2e-3)


def test_pairs_without_a_position_stay_so(interleaved: Model) -> None:
    """Within the window, ReRoPE is the model's own RoPE."""
    np.testing.assert_allclose(logits(interleaved, "rerope(1024)"), logits(interleaved), atol=CLOSE)


def test_dynamic_factors_rotate_cached_keys(vl: Model, twin: Model) -> None:
    both = []
    for model in (vl, twin):
        with closing(Context(model, 1024, rope="dynamic-yarn", n_ubatch=256)) as ctx:
            ctx.decode(TEXT[:200])
            _native.set_rope_factor(ctx.ptr, 0, 4.0)
            both.append(ctx.decode(TEXT[200:], pos=200))
    np.testing.assert_allclose(both[0], both[1], atol=CLOSE)


# ---- images --------------------------------------------------------------------------------------------------


def decode_image(ctx: Context, pos: int, rows: int = 3, columns: int = 4) -> int:
    """llama_decode of an image's embeddings, of which each has a position in time, of its row and of its column."""
    n = rows * columns
    batch = C.llama_batch_init(n, N_EMBD, 1)
    values = np.random.default_rng(5).standard_normal((n, N_EMBD)).astype(np.float32)
    ctypes.memmove(batch.embd, values.ctypes.data, values.nbytes)
    y, x = np.divmod(np.arange(n, dtype=np.int32), columns)
    positions = np.concatenate([np.full(n, pos), pos + y, pos + x, np.zeros(n)]).astype(np.int32)
    own: Any = ctypes.cast(batch.pos, ctypes.c_void_p).value  # the field is changed below
    batch.pos = positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
    batch.n_tokens = n
    for i in range(n):
        batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, i == n - 1
    code = int(C.llama_decode(ctx.ptr, batch))
    batch.pos = ctypes.cast(own, ctypes.POINTER(ctypes.c_int32))
    C.llama_batch_free(batch)
    return code


def last_logits(ctx: Context) -> Logits:
    return np.array(np.ctypeslib.as_array(C.llama_get_logits(ctx.ptr), (ctx.model.n_vocab,)), np.float64)


@pytest.mark.parametrize("name", ["vl", "interleaved"])
def test_images_are_upstreams_bit_for_bit(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    found = []
    for plan in ("exact", None):
        with closing(Context(model, 1024, plan)) as ctx:
            assert decode_image(ctx, 0) == 0
            image = last_logits(ctx)
            found.append((image, ctx.decode(TEXT[:40], pos=4), ctx.layers()))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert all("images" in reason for _, reason in found[0][2])


def test_the_op_comes_back_when_the_image_is_gone(vl: Model) -> None:
    with closing(Context(vl, 1024)) as ctx:
        expected = ctx.decode(TEXT[:60])
        C.llama_memory_seq_rm(ctx.memory, 0, 20, -1)
        assert decode_image(ctx, 20) == 0
        ctx.decode(TEXT[20:30], pos=24)
        assert all(reason for _, reason in ctx.layers())
        C.llama_memory_seq_rm(ctx.memory, 0, 20, -1)
        again = ctx.decode(TEXT[20:60], pos=20)
        assert ctx.layers() == [(0, ""), (1, "")]
    np.testing.assert_allclose(again, expected[20:], atol=1e-4)


def test_images_under_a_frequency_policy_are_rotated_by_each_position(vl: Model) -> None:
    """YaRN with factor 4 over the trained length, once ours and once upstream's own."""
    found = []
    for options in ({"rope": "yarn(4)"}, {"plan": None, "yarn": 4.0}):
        with closing(Context(vl, 1024, **options)) as ctx:
            assert decode_image(ctx, 0) == 0
            found.append(ctx.decode(TEXT[:40], pos=4))
    np.testing.assert_allclose(found[0], found[1], atol=CLOSE)


def test_position_maps_refuse_images(vl: Model) -> None:
    with closing(Context(vl, 1024, rope="rerope(128)")) as ctx:
        log.forget()
        assert decode_image(ctx, 0) != 0
        assert "takes text only" in (log.complaint() or "")
        assert np.isfinite(ctx.decode(TEXT[:30])).all()


def test_a_factor_is_refused_over_an_image(vl: Model) -> None:
    with closing(Context(vl, 1024, rope="dynamic-yarn")) as ctx:
        assert decode_image(ctx, 0) == 0
        with pytest.raises(RuntimeError, match="the cache holds images"):
            _native.set_rope_factor(ctx.ptr, 0, 2.0)


def test_long_llama_takes_all_layers(tmp_path: Path) -> None:
    import make_random_gguf

    path = tmp_path / "vl.gguf"
    make_random_gguf.write(path, "qwen2vl", n_layer=2, n_ctx_train=256)
    with closing(LongLlama(str(path), n_ctx=1024, verbose=False)) as llm:
        assert "layers with llama.cpp's own attention: none" in llm.explain()
        llm.eval([1, 2, 3])
