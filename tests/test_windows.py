"""Sliding-window layers, sink logits and capped logits: a window layer reads its window from the window's own cache,
and the plan is that of the other layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import make_random_gguf
import numpy as np
import pytest
from raw_model import Context, Logits, Model

from pyllama_long import LongLlama, _native
from pyllama_long.errors import ModelError

TEXT = [(7 * i * i + 3 * i) % 500 for i in range(900)]
SMALL: dict[str, Any] = {"n_ctx_train": 2048, "type": "f32"}
LAYERS = {"gemma3": 7, "gemma2": 4, "gpt-oss": 4}
OSS: dict[str, Any] = {
    "n_expert": 2,
    **SMALL,
}  # as many as are used: a choice between two near ones would hide the rest
CLOSE = 0.02  # upstream rounds queries to f16; a wrong key changes logits by units


@pytest.fixture(scope="module", params=LAYERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp(request.param)
    options = OSS if request.param == "gpt-oss" else SMALL
    with Model.random(folder, request.param, n_layer=LAYERS[request.param], **options) as found:
        yield found


@pytest.fixture(scope="module")
def oss(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model.random(tmp_path_factory.mktemp("oss"), "gpt-oss", **OSS) as found:
        yield found


def logits(model: Model, plan: str | None = "exact", **options: Any) -> Logits:
    """Of a prompt in chunks, during which the cells of the window's cache are used again and again."""
    with closing(Context(model, 1024, plan, n_ubatch=225, **options)) as ctx:
        found = ctx.decode(TEXT)
        if plan is not None:
            assert [reason for _, reason in ctx.layers()] == [""] * LAYERS[model.arch]
    return found


def greedy(ctx: Context, n: int, given: list[int] | None = None) -> tuple[list[int], Logits]:
    """(the tokens that the context prefers after a prompt and the given ones, or else its own; its logits for each)"""
    found = [ctx.decode(TEXT[:300])[-1]]
    own = [int(found[-1].argmax())]
    while len(own) < n:
        last = (given or own)[len(own) - 1]
        found.append(ctx.decode([last], pos=299 + len(own))[0])
        own.append(int(found[-1].argmax()))
    return own, np.array(found)


@pytest.mark.parametrize("swa_full", [False, True])
def test_every_layer_equals_upstreams(model: Model, swa_full: bool) -> None:
    found = logits(model, swa_full=swa_full)
    np.testing.assert_allclose(found, logits(model, plan=None, swa_full=swa_full), atol=CLOSE)


def test_greedy_text_equals_upstreams(model: Model) -> None:
    """Token by token, but where upstream itself has two tokens within what it rounds away."""
    with closing(Context(model, 1024, n_ubatch=256)) as ctx:
        text, _ = greedy(ctx, 256)
    with closing(Context(model, 1024, None, n_ubatch=256)) as ctx:
        wanted, found = greedy(ctx, 256, text)
    lead = found.max(axis=1) - found[np.arange(256), text]
    assert lead.max() < CLOSE
    assert (np.array(text) == wanted).mean() > 0.97


def test_the_plan_is_that_of_the_full_layers(oss: Model, tmp_path: Path) -> None:
    """The same weights with windows in all layers: a plan that gives the full ones the same window is that."""
    with Model.random(tmp_path, "gpt-oss", sliding_pattern=0, **OSS) as narrow:
        expected = logits(narrow, plan=None)
        np.testing.assert_allclose(logits(narrow), expected, atol=CLOSE)
    np.testing.assert_allclose(logits(oss, plan="window(64)"), expected, atol=CLOSE)
    assert np.abs(logits(oss) - expected).max() > 1


def test_dense_layers_widen_no_window(oss: Model) -> None:
    np.testing.assert_allclose(logits(oss, plan="window(9); dense_layers=4"), logits(oss), atol=CLOSE)


def test_sequences_go_their_own_ways(model: Model) -> None:
    """Two prompts in one batch, one of which loses its tail and goes on in another way."""
    found = []
    for plan in ("exact", None):
        with closing(Context(model, 1024, plan, n_seq=2, n_ubatch=512, swa_full=True)) as ctx:
            ctx.decode_rows([(TEXT[i], i, i0) for i0 in range(2) for i in range(200 - 37 * i0)])
            assert _native.llama_cpp.llama_memory_seq_rm(ctx.memory, 0, 150, -1)
            rows = [(TEXT[i + 3], i, 0) for i in range(150, 330)] + [(TEXT[i], i, 1) for i in range(163, 190)]
            found.append(ctx.decode_rows(rows))
    np.testing.assert_allclose(found[0], found[1], atol=CLOSE)


def test_keys_outside_a_window_are_not_visible(oss: Model) -> None:
    with closing(Context(oss, 1024, "window(32)", n_ubatch=256)) as ctx:
        ctx.decode(TEXT[:200])
        stats = _native.stats(ctx.ptr)
    full, window, narrow = (sum(min(p + 1, w) for p in range(200)) for w in (200, 64, 32))
    assert (stats.n_tokens, stats.n_queries) == (200, 200 * 4 * 4)
    assert stats.keys_visible == 4 * 2 * (full + window)
    assert stats.keys_read == 4 * 2 * (narrow + window)


@pytest.mark.parametrize("window", [0, 2**31, 2**32 - 1])
def test_windows_that_see_no_key_are_refused(tmp_path: Path, window: int) -> None:
    path = tmp_path / "m.gguf"
    make_random_gguf.write(path, "gpt-oss", n_layer=2, sliding_window=64, **OSS)
    raw, key = bytearray(path.read_bytes()), b"gpt-oss.attention.sliding_window"
    at = raw.index(key + (4).to_bytes(4, "little")) + len(key) + 4  # the number after its type, uint32
    assert raw[at : at + 4] == (64).to_bytes(4, "little")
    raw[at : at + 4] = window.to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(ModelError, match=rf"gpt-oss\.attention\.sliding_window is {window}, but"):
        LongLlama(path, n_ctx=256, verbose=False)


def test_explain_names_the_windows(tmp_path: Path) -> None:
    make_random_gguf.write(tmp_path / "m.gguf", "gpt-oss", **OSS)
    with closing(LongLlama(tmp_path / "m.gguf", n_ctx=512, verbose=False)) as model:
        lines = model.explain().splitlines()
    assert "2 of 4 layers read the last 64 tokens whatever the plan and the policy" in lines
    assert lines[-1] == "layers with llama.cpp's own attention: none"
