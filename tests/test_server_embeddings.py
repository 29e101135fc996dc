"""Embeddings: their encodings, and that they wait, end and let others work like requests."""

from __future__ import annotations

import base64
import os
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
from asking import ask
from running_server import Server, running

from pyllama_long.engine import EngineConfig


def test_embeddings_in_both_encodings(openai_client: openai.OpenAI, server: Server) -> None:
    found = openai_client.embeddings.create(model="demo", input=["a cat", "a dog"])  # base64 by default
    plain = openai_client.embeddings.create(model="demo", input="a cat", encoding_format="float")
    assert len(found.data) == 2 and len(plain.data[0].embedding) == 256
    np.testing.assert_allclose(found.data[0].embedding, plain.data[0].embedding, rtol=1e-3, atol=1e-3)
    with server.client() as raw:
        data = raw.post("/v1/embeddings", json={"input": "a cat", "encoding_format": "base64"}).json()
    assert len(base64.b64decode(data["data"][0]["embedding"])) == 4 * 256


def waiting(server: Server, n: int) -> None:
    """Waits until n requests are in the queue."""
    end = time.monotonic() + 5
    while server.engine.stats().waiting < n and time.monotonic() < end:
        time.sleep(0.01)
    assert server.engine.stats().waiting == n


def test_embeddings_leave_threads_to_others(openai_client: openai.OpenAI, server: Server) -> None:
    n_threads = min(32, (os.cpu_count() or 1) + 4) + 4  # more than asyncio has
    long = {"input": ["A long text about the sea. " * 200] * 40}
    with ThreadPoolExecutor(n_threads) as pool, server.client() as raw:
        sent = [pool.submit(raw.post, "/v1/embeddings", json=long, timeout=4) for _ in range(n_threads)]
        waiting(server, n_threads - 1)
        assert ask(openai_client, max_tokens=5).usage.completion_tokens == 5
        assert not any(one.done() for one in sent)
        for one in sent:
            with pytest.raises(httpx.ReadTimeout):
                one.result()
    # Nobody waits for them any more, so a new one does not either.
    begun = time.monotonic()
    openai_client.embeddings.create(model="demo", input="a cat")
    assert time.monotonic() - begun < 2


def test_embeddings_wait_in_the_queue(demo_model: str) -> None:
    config = EngineConfig(demo_model, n_ctx=2048, n_threads=1, max_queue=1, embedding=True)
    long = {"input": ["A long text about the sea. " * 200] * 40}
    with running(config) as small, small.client() as raw, ThreadPoolExecutor(2) as pool:
        sent = [pool.submit(raw.post, "/v1/embeddings", json=long, timeout=3) for _ in range(2)]
        waiting(small, 1)
        full = raw.post("/v1/embeddings", json={"input": "x"})
        assert full.status_code == 503 and full.json()["error"]["code"] == "queue_full"
        assert int(full.headers["Retry-After"]) >= 1
        assert raw.post("/completion", json={"prompt": "x", "n_predict": 1}).status_code == 200
        for one in sent:
            with pytest.raises(httpx.ReadTimeout):
                one.result()
        small.quiet()


def test_embeddings_name_their_field(server: Server) -> None:
    with server.client() as raw:
        error = raw.post("/v1/embeddings", json={"input": [99999]}).json()["error"]
    assert error["param"] == "input" and error["message"].startswith("input: ")


def test_without_embeddings_there_are_none(demo_model: str) -> None:
    with running(EngineConfig(demo_model, n_ctx=512, n_threads=1)) as plain, plain.client() as client:
        found = client.post("/v1/embeddings", json={"input": "x"})
    assert found.status_code == 400 and found.json()["error"]["code"] == "no_embeddings"
