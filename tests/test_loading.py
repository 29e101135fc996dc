"""From Llama's arguments to llama.cpp's parameters, and what a GGUF says besides its scalar keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from pyllama_long import LongLlama, loading
from pyllama_long.model import Hints, read_hints


def test_rope_arguments_that_change_nothing() -> None:
    o = loading.options({"rope_freq_base": 10000.0, "rope_freq_scale": 1.0})
    assert not loading.scaled_by_caller(o, 10000.0)
    o = loading.options({"rope_freq_base": 10000.0})
    with pytest.warns(
        UserWarning, match="rope_freq_base=10000 is ignored: the model was trained with 500000"
    ):
        assert not loading.scaled_by_caller(o, 500000.0)
    assert o.rope_freq_base == 0.0


@pytest.mark.parametrize("given", [{"rope_freq_scale": 0.5}, {"rope_freq_base": 2e4}, {"yarn_orig_ctx": 512}])
def test_rope_arguments_that_scale(demo_model: str, given: dict[str, Any]) -> None:
    assert loading.scaled_by_caller(loading.options(given), 10000.0)
    model = LongLlama(demo_model, n_ctx=1024, **given)
    assert str(model.rope) == "native"
    assert "llama_cpp's own arguments scale" in model.explain()
    model.close()


def test_threads() -> None:
    cores, threads = loading.cpus()
    assert 1 <= cores <= threads
    params = loading.context_params(loading.options({}), 512, 1, 1)
    assert (params.n_threads, params.n_threads_batch) == (cores, threads)
    params = loading.context_params(loading.options({"n_threads": 3, "n_threads_batch": 5}), 512, 1, 1)
    assert (params.n_threads, params.n_threads_batch) == (3, 5)
    for name in ("n_threads", "n_threads_batch"):
        assert loading.options({name: 512})
        with pytest.raises(ValueError, match=f"{name} is 513: give at most 512"):
            loading.options({name: 513})


def test_kv_types_by_number() -> None:
    assert {loading.kv_type(name) for name in loading.KV_TYPES} == {0, 1, 2, 8, 30}
    for number in (*loading.KV_TYPES.values(), 3, 6, 7, 20):
        assert loading.kv_type(number) == number
    for number in (-1, 4, 26, 31, 99, 100000):
        with pytest.raises(ValueError, match=rf"type_v {number}; known: 0 \(f32\), 1 \(f16\), 2 \(q4_0\), 8"):
            loading.kv_type(number)


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


def test_chat_templates_that_cannot_be_read(demo_model: str) -> None:
    model = LongLlama(demo_model, vocab_only=True)
    with pytest.warns(
        UserWarning, match="chat_template.default of .*: the model.s chat template cannot be read"
    ):
        assert loading.chat_formats(model._model, {"tokenizer.chat_template": "{% if"}, 1, 2) == {}
    found = loading.chat_formats(model._model, {"tokenizer.chat_template.tools": "hello"}, -1, -1)
    assert list(found) == ["chat_template.tools"]
    model.close()


def test_hints(tmp_path: Path, demo_model: str) -> None:
    assert read_hints(demo_model, "llama") == Hints()
    path = tmp_path / "hints.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("llama.attention.dilated.segment_lengths", [64, 256])
    writer.add_array("llama.attention.dilated.rates", [1, 4])
    writer.add_tensor("rope_freqs.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_hints(str(path), "llama") == Hints(([64, 256], [1, 4]), "llama3")
    assert read_hints(str(path), "other").dilated is None
    assert read_hints(str(tmp_path / "missing.gguf"), "llama") == Hints()
