"""Engines on other kinds of models and plans: sliding windows, memories that cannot go back, sparse plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engines import GREEDY, answer, assert_same, prose
from make_random_gguf import write

from pyllama_long import LongLlama
from pyllama_long.engine import Engine, EngineConfig, Request


@pytest.fixture(scope="module", params=["gemma3", "qwen3", "mpt"])
def random_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / f"{request.param}.gguf"
    write(path, request.param)
    return str(path)


def test_random_models(random_model: str) -> None:
    """Where the window has moved on, a prefix may not be found; what is found is right."""
    llm = LongLlama(random_model, n_ctx=1024, precision="f32", n_batch=64, rope="native")
    config = EngineConfig(
        random_model, n_ctx=1024, precision="f32", n_batch=64, n_parallel=3, rope="native", cache_ram=1 << 24
    )
    rng = np.random.default_rng(0)
    with Engine(config) as engine:
        base = rng.integers(260, engine.n_vocab, 300).tolist()
        prompts = [base[:n] for n in (200, 290, 90, 199)]
        prompts += [[*base[:150], *rng.integers(260, engine.n_vocab, 30).tolist()]]
        for _ in range(2):
            handles = [engine.submit(Request(prompt, 12, GREEDY)) for prompt in prompts]
            for prompt, handle in zip(prompts, handles, strict=True):
                llm.sequence.keep(0)
                llm.reset()
                expected = []
                for token in llm.generate(prompt, temp=0):
                    expected.append(token)
                    if len(expected) == 12:
                        break
                given = answer(handle).ids
                assert_same(llm, prompt, given, expected[: len(given)])
        assert engine.stats().failed == 0
    llm.close()


def test_a_restored_window_gives_what_a_fresh_read_does(tmp_path: Path) -> None:
    """Texts are read from disk, grow, and are abandoned for an older prefix with another end."""
    path = str(tmp_path / "gemma3.gguf")
    write(path, "gemma3", type="f32")
    config = EngineConfig(path, n_ctx=1024, precision="f32", kv_type="f32", n_batch=64, rope="native")
    kept = replace(config, cache_disk=1 << 26, cache_dir=str(tmp_path / "cache"))
    rng = np.random.default_rng(3)
    with Engine(kept) as engine:
        base = rng.integers(260, engine.n_vocab, 400).tolist()
        base += answer(engine.submit(Request(base, 4, GREEDY))).ids[:3]  # all of what is kept
    ends = [rng.integers(260, 512, 40).tolist() for _ in range(4)]
    grown = [*base, *ends[0]]
    prompts = [grown, *([*grown[:n], *end] for n, end in zip((390, 200, 64), ends[1:], strict=True))]
    with Engine(kept) as engine:
        given = [answer(engine.submit(Request(ids, 8, GREEDY, logprobs=4))) for ids in prompts]
        assert given[0].cached >= 390
        assert engine.stats().failed == 0
    with Engine(config) as engine:
        for i, ids in enumerate(prompts):
            fresh = answer(engine.submit(Request(ids, 8, GREEDY, salt=str(i), logprobs=4)))
            assert fresh.cached == 0
            assert fresh.ids == given[i].ids
            for a, b in zip(fresh.tokens, given[i].tokens, strict=True):
                assert a.logprob is not None and b.logprob is not None
                # Reading the same prompt in other batches changes them by up to 0.01; missing keys change them by
                # over 1.
                assert abs(a.logprob - b.logprob) < 0.05


def test_memories_that_cannot_go_back(demo_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with recurrent models, a text is only continued if all of it is a prefix."""
    with Engine(EngineConfig(demo_model, n_ctx=1024, rope="native")) as engine:
        monkeypatch.setattr(engine._context, "whole_only", True)
        prompt = prose(engine, 200)
        ids = answer(engine.submit(Request(prompt, 8, GREEDY))).ids
        assert answer(engine.submit(Request(prompt, 8, GREEDY))).cached == 0
        longer = [*prompt, *ids, *prose(engine, 20, 1)]
        assert answer(engine.submit(Request(longer, 8, GREEDY))).cached == 207
        assert answer(engine.submit(Request(longer[:-1], 8, GREEDY))).cached in (0, 207)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "whole.gguf"
    write(path, "llama", seed=7, type="f32")
    return str(path)


@pytest.mark.parametrize("plan", ["prefill: sinks(4)+window(128) | tail: exact", "sinks(4)+window(128)"])
def test_plans_know_the_tail(whole: str, plan: str) -> None:
    """Weights in f32: with quantized ones, the rounding of a product depends on what else is in the batch."""
    llm = LongLlama(whole, n_ctx=2048, attention=plan, rope="native", precision="f32")
    config = EngineConfig(whole, n_ctx=8192, attention=plan, rope="native", precision="f32", n_parallel=3)
    with Engine(config) as engine:
        prompts = [prose(engine, n, n) for n in (1900, 300, 1200)]
        handles = [engine.submit(Request(prompt, 16, GREEDY)) for prompt in prompts]
        for prompt, handle in zip(prompts, handles, strict=True):
            llm.sequence.keep(0)
            expected = llm.create_completion(prompt, max_tokens=16, temperature=0)["choices"][0]["text"]
            got = answer(handle)
            if got.text != expected:  # a near tie
                llm.sequence.keep(0)
                llm.place_tail(prompt, None, None)
                ids = llm.tokenize(expected.encode(), add_bos=False)
                assert_same(llm, prompt, got.ids, ids)
    llm.close()
