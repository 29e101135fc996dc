"""The `exact` plan against upstream's own attention, on whole models and behind plain llama_decode."""

from __future__ import annotations

import itertools
import pydoc_data.topics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_model import Logits, Model, nll

from pyllama_long import _native
from pyllama_long.context_options import KV_TYPES

ARCHS = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "phi3", "mixtral", "qwen3moe", "mpt", "lfm2")


@pytest.fixture(scope="module", params=ARCHS)
def random_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model.random(tmp_path_factory.mktemp("models"), request.param, seed=1) as model:
        yield model


@pytest.fixture(scope="module")
def precise(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Weights in f32: a matrix product with quantized weights would also quantize the activations, and hide much."""
    folder = tmp_path_factory.mktemp("models")
    with Model.random(folder, "llama", seed=3, type="f32", n_ctx_train=256) as model:
        yield model


@pytest.fixture(scope="module")
def text_tokens(demo: Model) -> list[int]:
    return demo.tokenize(" ".join(pydoc_data.topics.topics.values()))


def test_logits_on_random_models(random_model: Model) -> None:
    tokens = random_model.tokens(1000)
    with random_model.context(1024) as ours, random_model.context(1024, None) as upstream:
        a, b = ours.decode(tokens), upstream.decode(tokens)
    with random_model.context(1024, None, flash=False) as other:
        c = other.decode(tokens)
    rounding = np.sqrt(np.mean((b - c) ** 2))  # upstream's two paths differ by their f16 roundings only
    assert np.sqrt(np.mean((a - b) ** 2)) <= 2 * rounding
    assert np.abs(a - b).max() <= 2 * max(float(np.abs(b - c).max()), 10 * rounding)
    assert (a.argmax(axis=1) == b.argmax(axis=1)).mean() >= 0.99


def test_layers_that_take_the_op(random_model: Model) -> None:
    with random_model.context(512) as context:
        layers = context.layers()
    assert layers and not any(reason for _, reason in layers)


@pytest.mark.parametrize("kv_type", [*KV_TYPES, "q8_0/q5_1", "q4_1/iq4_nl"])
def test_cache_types(demo: Model, text_tokens: list[int], kv_type: str) -> None:
    tokens = text_tokens[:512]
    with demo.context(512, kv_type="f32") as best:
        reference = best.decode(tokens)
    with demo.context(512, kv_type=kv_type) as ours, demo.context(512, None, kv_type=kv_type) as upstream:
        a, b = ours.decode(tokens), upstream.decode(tokens)
    error = np.sqrt(np.mean((a - reference) ** 2))
    assert error <= 1.05 * np.sqrt(np.mean((b - reference) ** 2)) + 1e-3, "never further off than upstream"


def test_dense_layers_of_an_exact_plan_change_no_bit(demo: Model, text_tokens: list[int]) -> None:
    tokens = text_tokens[:300]
    with demo.context(512) as plain, demo.context(512, "exact; dense_layers=2") as dense:
        np.testing.assert_array_equal(plain.decode(tokens), dense.decode(tokens))
        np.testing.assert_array_equal(plain.decode(tokens[:1], 300), dense.decode(tokens[:1], 300))


def greedy(
    model: Model, prompt: list[int], n: int, plan: str | None, kv_type: str
) -> tuple[list[int], list[float]]:
    """(n likeliest tokens, by how much each leads the next likeliest)"""
    with model.context(512, plan, kv_type=kv_type) as context:
        logits, out, leads = context.decode(prompt)[-1], [], []
        for i in range(n):
            second, first = np.sort(logits)[-2:]
            out.append(int(logits.argmax()))
            leads.append(float(first - second))
            logits = context.decode(out[-1:], len(prompt) + i)[-1]
    return out, leads


@pytest.mark.parametrize(
    ("kv_type", "n", "doubt"),
    [("f16", 128, 0.25), *((kind, 48, 0.5) for kind in ("q4_1", "iq4_nl", "q5_0", "q5_1", "q5_1/iq4_nl"))],
)
def test_greedy_text(demo: Model, text_tokens: list[int], kv_type: str, n: int, doubt: float) -> None:
    """The text equals upstream's, up to a token where the two likeliest are closer than 8-bit activations can tell;
    upstream also rounds queries to 8 bits where keys are quantized. doubt: of a logit"""
    agreed = 0
    for start in (1000, 2000, 3000, 4000):
        prompt = text_tokens[start : start + 100]
        ours, _ = greedy(demo, prompt, n, "exact", kv_type)
        theirs, leads = greedy(demo, prompt, n, None, kv_type)
        at = next((i for i in range(n) if ours[i] != theirs[i]), n)
        assert at == n or leads[at] < doubt
        agreed += at
    assert agreed > 100


def perplexity(model: Model, tokens: list[int], n: int, *settings: Any, **more: Any) -> float:
    """The perplexity of windows of n tokens, each read in a context of n."""
    losses = []
    with model.context(n, *settings, **more) as context:
        for i in range(0, len(tokens), n):
            window = tokens[i : i + n]
            losses.append(nll(context.decode(window), window))
            context.clear()
    return float(np.exp(np.concatenate(losses).mean()))


def test_perplexity(demo: Model, text_tokens: list[int]) -> None:
    tokens = text_tokens[: 40 * 512]
    assert len(tokens) >= 20_000
    ours, upstream = (perplexity(demo, tokens, 512, plan) for plan in ("exact", None))
    assert ours == pytest.approx(upstream, rel=1e-3)


@pytest.mark.parametrize(("n", "rope"), [(512, "native"), (4096, "rerope(128)+logn")])
def test_perplexity_of_precisions(demo: Model, text_tokens: list[int], n: int, rope: str) -> None:
    tokens = text_tokens[: 40 * 512]
    assert len(tokens) >= 20_000
    best = _native.isa()
    isas = (best, {"amx": "avx512", "avx512bf16": "avx512", "neonbf16": "neon"}.get(best, best))
    found = []
    for precision, isa in zip(("auto", "f32"), isas, strict=True):
        before = {name: _native.isa_tiles(name) for name in _native.isas()}
        found.append(perplexity(demo, tokens, n, "exact", rope, precision=precision))
        assert [name for name in before if _native.isa_tiles(name) > before[name]] == [isa]
    assert found[0] == pytest.approx(found[1], rel=2e-3)


PLANS = (
    ("exact", "native"),
    ("sinks(4)+window(100)", "rerope(64)+logn"),
    ("dilated(w0=64, alpha=2, n=3)", "native"),
    ("exact", "dca(80, 16)"),
)


@pytest.mark.parametrize(("plan", "rope"), PLANS)
@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0"])
def test_chunked_prefill_equals_one_shot(precise: Model, plan: str, rope: str, kv_type: str) -> None:
    tokens = precise.tokens(600)
    with precise.context(1024, plan, rope, kv_type=kv_type, n_ubatch=600) as context:
        whole = context.decode(tokens)
    with precise.context(1024, plan, rope, kv_type=kv_type) as context:
        cuts = [0, 1, 8, 133, 134, 390, 599, 600]
        chunks = [context.decode(tokens[a:b], a) for a, b in itertools.pairwise(cuts)]
    close(np.concatenate(chunks), whole, kv_type)


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize(("plan", "rope"), PLANS)
def test_sequences_in_one_batch_equal_each_alone(precise: Model, plan: str, rope: str, unified: bool) -> None:
    texts = [precise.tokens(150, seed) for seed in (1, 2)]
    with precise.context(1024, plan, rope, kv_type="f32") as context:
        alone = []
        for tokens in texts:
            alone.append(context.decode(tokens))
            context.clear()
    with precise.context(1024, plan, rope, kv_type="f32", n_seq=2, unified=unified) as context:
        together: list[list[Logits]] = [[], []]
        for start in range(0, 150, 50):  # equal parts, and alternating single tokens at the end
            rows = [(t, start + i, s) for s in (0, 1) for i, t in enumerate(texts[s][start : start + 50])]
            logits = context.decode_rows(rows)
            together[0].append(logits[:50])
            together[1].append(logits[50:])
    for s in (0, 1):
        close(np.concatenate(together[s]), alone[s], "f32")


def close(a: Logits, b: Logits, kv_type: str) -> None:
    """Equal except for the effect of another order of float32 sums: with a rounded cache, a value is rounded the
    other way now and then."""
    step = {"f32": 2e-5, "f16": 1e-3, "q8_0": 1e-2}[kv_type]
    assert np.sqrt(np.mean((a - b) ** 2)) <= step * b.std()
    assert np.abs(a - b).max() <= 20 * step * b.std()


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_quantized_models_run(tmp_path: Path, kind: str) -> None:
    with Model.random(tmp_path, "llama", seed=2, type=kind) as model, model.context(512) as context:
        assert np.isfinite(context.decode(model.tokens(100))).all()
