"""Fixtures: the embedded model, and one LongLlama and one llama_cpp.Llama on it, shared by the tests of a
module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pyllama_long

if TYPE_CHECKING:
    import httpx
    import openai
    import raw_model
    from llama_cpp import Llama
    from running_server import Server

    from pyllama_long import LongLlama
    from pyllama_long.engine import Engine


@pytest.fixture(scope="session")
def demo_model() -> str:
    """Path of the embedded model."""
    return str(Path(pyllama_long.__file__).parent / "data" / "demo.gguf")


@pytest.fixture(scope="session")
def float_model(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of the embedded model with float32 weights."""
    import float_model

    path = tmp_path_factory.mktemp("models") / "float.gguf"
    float_model.write(demo_model, path)
    return str(path)


@pytest.fixture(scope="module")
def demo(demo_model: str) -> Iterator[raw_model.Model]:
    """The embedded model through llama.cpp's own C API."""
    from raw_model import Model

    model = Model(Path(demo_model))
    yield model
    model.close()


@pytest.fixture(scope="module")
def llm(demo_model: str) -> Iterator[LongLlama]:
    """A LongLlama with n_ctx 512 and chunks of 64 tokens."""
    from pyllama_long import LongLlama

    model = LongLlama(demo_model, n_ctx=512, n_batch=64, precision="f32")
    yield model
    model.close()


@pytest.fixture(scope="module")
def engine(demo_model: str) -> Iterator[Engine]:
    """An engine with 512 tokens, four sequences and embeddings; at the end all cells must be free again. Modules may
    have their own."""
    from pyllama_long.engine import Engine, EngineConfig

    config = EngineConfig(demo_model, n_ctx=512, n_batch=64, n_parallel=4, precision="f32", embedding=True)
    with Engine(config) as engine:
        yield engine
        stats = engine.stats()
        assert (stats.running, stats.waiting) == (0, 0)
        assert stats.cells_used == stats.cells_idle
    assert engine.stats().cells_used == 0


@pytest.fixture(scope="module")
def server(demo_model: str) -> Iterator[Server]:
    """A running server of the embedded model: 2,048 tokens, four sequences, embeddings. Modules may have their own."""
    from running_server import running

    from pyllama_long.engine import EngineConfig

    config = EngineConfig(demo_model, n_threads=1, n_ctx=2048, n_parallel=4, embedding=True, precision="f32")
    with running(config) as found:
        yield found


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of the module's server; every answer must match its OpenAPI."""
    with server.client() as found:
        yield found
    assert not server.faults, server.faults[0]


@pytest.fixture
def openai_client(server: Server) -> Iterator[openai.OpenAI]:
    """The official client of the module's server, which must have nothing left to do at the end."""
    import openai

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as found:
        yield found
    server.quiet()
    assert not server.faults, server.faults[0]


@pytest.fixture(scope="module")
def upstream(demo_model: str) -> Iterator[Llama]:
    """llama_cpp's own class with the same settings and attention, keeping all logits."""
    from pyllama_long import AttentionPlan, RopePolicy, _native

    _native.configure_next(_native.c_config(AttentionPlan.parse("exact"), RopePolicy(), precision="f32"))
    model = _native.llama_cpp.Llama(
        demo_model, n_ctx=512, n_batch=64, logits_all=True, flash_attn=True, verbose=False
    )
    _native.configure_next(None)
    yield model
    model.close()


@pytest.fixture
def counted(llm: LongLlama) -> Iterator[Callable[[], int]]:
    """A function that tells how many tokens were evaluated since its last call."""
    llm.reset()
    llm.attention_stats(reset=True)
    yield lambda: int(llm.attention_stats(reset=True)["tokens"])
    llm.reset()
