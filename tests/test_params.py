"""From Llama's arguments to llama.cpp's parameters."""

from __future__ import annotations

import pytest

from pyllama_long import LongLlama, keywords, params


def test_threads() -> None:
    cores, threads = params.cpus()
    assert 1 <= cores <= threads
    found = params.context_params(keywords.options({}), 512, 1, 1)
    assert (found.n_threads, found.n_threads_batch) == (cores, threads)
    found = params.context_params(keywords.options({"n_threads": 3, "n_threads_batch": 5}), 512, 1, 1)
    assert (found.n_threads, found.n_threads_batch) == (3, 5)
    for name in ("n_threads", "n_threads_batch"):
        assert keywords.options({name: 512})
        with pytest.raises(ValueError, match=f"{name} is 513: give at most 512"):
            keywords.options({name: 513})


def test_overrides(demo_model: str) -> None:
    model = LongLlama(
        demo_model, vocab_only=True, kv_overrides={"general.name": "other", "llama.context_length": 64}
    )
    assert model.n_vocab() == 8192
    model.close()
    model = LongLlama(demo_model, kv_overrides={"llama.context_length": 1024})
    assert model.n_train == model.n_ctx() == 1024
    model.close()
    for value in (None, "x" * 128):
        with pytest.raises(ValueError, match="kv_overrides: "):
            LongLlama(demo_model, kv_overrides={"general.name": value})
