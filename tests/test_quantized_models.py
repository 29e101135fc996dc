"""Whole models with quantized weights give the same bits for a text however it is cut, with any threads and company."""

from __future__ import annotations

import ctypes
from contextlib import closing
from pathlib import Path

import make_random_gguf
import numpy as np
import pytest
from cases import Array
from engines import GREEDY, answer, prose

from pyllama_long import LongLlama
from pyllama_long._native import llama_cpp
from pyllama_long.engine import Engine, EngineConfig, Request

FILE_TYPES = {"q8_0": 7, "q4_K_M": 15}  # of enum llama_ftype
SHAPES = {
    "llama": ["--arch", "llama", "--n-embd", "512", "--n-ff", "768", "--n-head", "8"],
    "qwen3moe": ["--arch", "qwen3moe", "--n-embd", "256", "--n-ff", "256", "--n-expert", "8"],
}
LENGTH = 531  # no chunk leaves so few tokens that their attention is computed like that of decode


@pytest.fixture(scope="module", params=[f"{shape} {kind}" for shape in SHAPES for kind in FILE_TYPES])
def model(request: pytest.FixtureRequest, demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape, kind = request.param.split()
    folder = tmp_path_factory.mktemp("quantized")
    floats, path = folder / "floats.gguf", folder / "model.gguf"
    common = ["--type", "f32", "--n-layer", "2", "--n-head-kv", "2", "--tokenizer-from", demo_model]
    make_random_gguf.main([*SHAPES[shape], *common, "--n-ctx-train", "2048", "--out", str(floats)])
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = FILE_TYPES[kind], 2
    assert llama_cpp.llama_model_quantize(str(floats).encode(), str(path).encode(), ctypes.byref(params)) == 0
    floats.unlink()
    return path


def logits(model: Path, chunk: int, threads: int) -> Array:
    """[LENGTH, vocabulary] of a text that is read in chunks."""
    llm = LongLlama(
        str(model),
        n_ctx=1024,
        n_batch=chunk,
        n_ubatch=chunk,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
    )
    with closing(llm):
        llm.eval(prose(llm, LENGTH))
        return np.array(llm.scores[:LENGTH])


def test_chunks_and_threads_change_no_bit(model: Path) -> None:
    whole = logits(model, 1024, 2)
    assert np.isfinite(whole).all()
    for chunk, threads in ((512, 1), (300, 3), (64, 2), (34, 1), (18, 2)):
        assert np.array_equal(logits(model, chunk, threads), whole), (chunk, threads)


def test_company_changes_no_bit(model: Path) -> None:
    with Engine(EngineConfig(str(model), n_ctx=4096, n_parallel=8, step_ms=4)) as engine:
        texts = [prose(engine, n, seed) for seed, n in enumerate((300, 40, 170, 9, 90, 55, 61, 200))]

        def request(i: int, salt: str) -> Request:
            return Request(texts[i], 12, GREEDY, logprobs=3, salt=salt)

        def bits(handle: object) -> list[tuple[int, float | None]]:
            return [(token.id, token.logprob) for token in answer(handle).tokens]  # type: ignore[arg-type]

        alone = [bits(engine.submit(request(i, f"alone {i}"))) for i in range(len(texts))]
        handles = [engine.submit(request(i, "together")) for i in range(len(texts))]
        assert [bits(handle) for handle in handles] == alone
