"""Engines on other kinds of models and plans: sliding windows, memories that cannot go back, sparse plans."""

from __future__ import annotations

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


def test_memories_that_cannot_go_back(demo_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for recurrent models: only a text that is wholly a prefix is continued."""
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
    """Weights in f32: with quantized ones a product's rounding hangs on what else is in the batch."""
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
