"""Models and cached keys that give NaN or infinity: an error that says so, and nothing broken is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import gguf
import numpy as np
import pytest
from engines import GREEDY, answer, prose
from running_server import running

from pyllama_long import LongLlama
from pyllama_long.engine import Engine, EngineConfig, Request
from pyllama_long.errors import NotNumbers

IDS = list(range(300, 340))
TEXT = "Captain Ahab stood upon the deck"


@pytest.fixture(scope="module", params=[np.nan, np.inf], ids=["nan", "inf"])
def broken(request: pytest.FixtureRequest, demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "broken.gguf"
    shutil.copy(demo_model, path)
    (norm,) = (t for t in gguf.GGUFReader(path, "r+").tensors if t.name == "output_norm.weight")
    norm.data[:] = request.param
    return str(path)


def test_a_model_of_them(broken: str) -> None:
    model = LongLlama(broken, n_ctx=256)
    calls: list[Callable[[], Any]] = [
        lambda: model.eval(IDS),
        lambda: model(TEXT, max_tokens=3),
        lambda: model(TEXT, max_tokens=0),
        lambda: model(TEXT, max_tokens=1, echo=True, logprobs=2),
        lambda: list(model(TEXT, max_tokens=3, stream=True)),
        lambda: model.create_chat_completion([{"role": "user", "content": "x"}], max_tokens=3),
    ]
    for call in calls:
        with pytest.raises(NotNumbers, match="logits that are not numbers"):
            call()
        assert len(model.scores) == 0
    model.close()
    for pooling in (0, 1, 2, 3):
        model = LongLlama(broken, n_ctx=64, embedding=True, pooling_type=pooling)
        for normalize in (False, True):
            with pytest.raises(NotNumbers, match="embeddings that are not numbers"):
                model.embed(["a cat", TEXT], normalize=normalize, return_count=normalize)
        with pytest.raises(NotNumbers):
            model.create_embedding(TEXT)
        model.close()


def test_an_engine_and_a_server_of_them(broken: str) -> None:
    with (
        running(EngineConfig(broken, n_ctx=256, n_threads=1, embedding=True)) as server,
        server.client() as client,
    ):
        engine = server.engine
        for request in (
            Request(IDS, 3),
            Request(IDS, 0),
            Request(IDS, 0, logprobs=1, echo_logprobs=True),
            Request(IDS, 3, GREEDY, logprobs=2),
        ):
            with pytest.raises(NotNumbers, match="logits that are not numbers"):
                answer(engine.submit(request))
        with pytest.raises(NotNumbers, match="embeddings that are not numbers"):
            engine.embed([IDS])
        assert engine.stats().cells_used == 0
        for path, body in (
            ("/v1/embeddings", {"model": "demo", "input": [TEXT]}),
            ("/completion", {"prompt": TEXT, "n_predict": 0}),
            (
                "/v1/completions",
                {"model": "demo", "prompt": TEXT, "max_tokens": 0, "echo": True, "logprobs": 1},
            ),
            ("/v1/chat/completions", {"model": "demo", "messages": [{"role": "user", "content": "x"}]}),
        ):
            found = client.post(path, json=body)
            assert found.status_code == 500, found.text
            assert found.json()["error"]["code"] == "not_numbers" and "damaged" in found.text


def spoiled(data: Any) -> Any:
    """A state of float32 keys, some of them NaN."""
    found = np.frombuffer(data, np.uint8).copy()
    begin = len(found) // 64 * 4  # within the keys of the first layer
    found[begin : begin + 1024] = 0xFF  # NaN wherever a number begins
    return found


@pytest.fixture
def small(demo_model: str) -> Iterator[Engine]:
    with Engine(EngineConfig(demo_model, n_ctx=512, kv_type="f32", n_threads=1)) as engine:
        yield engine


def test_broken_keys_in_memory_are_dropped_and_the_prompt_is_read_again(small: Engine) -> None:
    prompt, other = prose(small, 400), prose(small, 400, 1)
    expected = answer(small.submit(Request(prompt, 8, GREEDY))).ids
    for max_tokens in (8, 0):
        answer(small.submit(Request(other, 8, GREEDY)))  # for which the first has to leave
        (stored,) = (one for one in small._loop._store.index if one.text[:400].tolist() == prompt)
        assert stored.data is not None
        stored.data = spoiled(stored.data)
        found = answer(small.submit(Request(prompt, max_tokens, GREEDY)))
        assert (found.ids, found.usage.n_cached) == (expected[:max_tokens], 0) and stored.gone
    assert small.stats().failed == 0
    found = answer(small.submit(Request(prompt, 8, GREEDY)))
    assert found.ids == expected and found.cached > 300


def test_broken_states_of_llama_cpps_cache_fail_once(demo_model: str) -> None:
    from llama_cpp.llama_cache import LlamaRAMCache

    model = LongLlama(demo_model, n_ctx=256, kv_type="f32")
    cache, text = LlamaRAMCache(), f"{TEXT}. " * 12
    model.set_cache(cache)
    expected = model(text, max_tokens=4, temperature=0)["choices"][0]["text"]
    (state,) = cache.cache_state.values()
    half = len(state.llama_state) // 8 * 4  # before it there are logits, too
    state.llama_state = state.llama_state[:half] + spoiled(state.llama_state[half:]).tobytes()
    model("Once", max_tokens=1)
    with pytest.raises(NotNumbers):
        model(text, max_tokens=4, temperature=0)
    assert state not in cache.cache_state.values()
    assert model(text, max_tokens=4, temperature=0)["choices"][0]["text"] == expected
    model.close()
