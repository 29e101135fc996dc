"""Metrics, and a health route that reports an engine that hangs or has failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from asking import PROMPT, STREAMS, Asked, body, gauge, wait_until
from running_server import Server, running

from pyllama_long.engine import EngineConfig
from pyllama_long.server.routes import monitoring


@pytest.fixture(scope="module")
def server(demo_model: str) -> Iterator[Server]:
    with running(EngineConfig(demo_model, n_ctx=512, n_parallel=2, n_threads=1)) as found:
        yield found


def test_metrics_count(client: httpx.Client) -> None:
    def value(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    before = value("pyllama_long_completion_tokens_total")
    client.post("/completion", json={"prompt": PROMPT, "n_predict": 5, "temperature": 0})
    assert value("pyllama_long_completion_tokens_total") == before + 5
    assert value('pyllama_long_http_requests_total{method="POST",route="/completion",status="200"}') >= 1
    assert value("pyllama_long_engine_cells_total") == 512
    assert value("pyllama_long_requests_active") == 0
    assert value('pyllama_long_attention_layers{layers="0-5",refused=""}') == 6


def health(url: str) -> tuple[int, str]:
    found = httpx.get(f"{url}/health", timeout=5)
    return found.status_code, found.json()["status"]


def test_an_engine_that_hangs_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitoring, "_STUCK_S", 0.3)
    go, context = threading.Event(), server.engine._context
    decode = context.decode

    def hangs(n: int) -> int:
        assert go.wait(20)
        return decode(n)

    assert health(server.url) == (200, "ok")
    with monkeypatch.context() as patch:
        patch.setattr(context, "decode", hangs)
        asked = Asked(server.url, "/completion", body("/completion", "Once", False, 3))
        wait_until(lambda: health(server.url) == (503, "stuck"), 10)
        assert httpx.post(f"{server.url}/tokenize", json={"content": "word"}, timeout=5).status_code == 200
        assert gauge(server.url, "engine_running") == 1
        go.set()
        asked.join(20)
    assert asked.status == 200
    assert health(server.url) == (200, "ok")
    time.sleep(0.4)  # with nothing to do it makes no steps either
    assert health(server.url) == (200, "ok")


def test_an_engine_that_gives_up_is_told(demo_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(EngineConfig(demo_model, n_ctx=512, n_threads=1)) as server:
        engine = server.engine
        asked = Asked(server.url, "/completion", body("/completion", "Once", True, 400))
        wait_until(lambda: engine.stats().running == 1)

        def broken(*_: object) -> None:
            raise RuntimeError("torn")

        monkeypatch.setattr(engine._context, "decode", broken)
        monkeypatch.setattr(engine._context, "clear", broken)
        asked.join(20)
        assert '"error"' in asked.text and asked.text.rstrip().endswith("data: [DONE]")
        wait_until(lambda: engine.failure is not None)
        assert health(server.url) == (503, "failed")
        for path in STREAMS:
            found = httpx.post(server.url + path, json=body(path, "Once", True), timeout=10)
            assert found.status_code == 503 and found.json()["error"]["code"] == "failed", found.text
        assert httpx.get(f"{server.url}/metrics").status_code == 200
