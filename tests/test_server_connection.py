"""Clients that leave end the work for their requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from asking import STREAMS, body, gauge, prose, wait_until
from running_server import Server, running

from pyllama_long.engine import EngineConfig


@pytest.fixture(scope="module")
def small(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = str(tmp_path_factory.mktemp("sessions"))
    config = EngineConfig(
        demo_model, n_ctx=50_000, n_parallel=2, n_threads=1, embedding=True, cache_dir=folder
    )
    with running(config) as found:
        yield found


def leave(server: Server, path: str, content: dict[str, Any], seconds: float = 0.3) -> None:
    with server.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post(path, json=content, timeout=httpx.Timeout(30, read=seconds))


def nothing_is_left(server: Server) -> bool:
    stats, state = server.engine.stats(), server.app.state.state
    return (
        stats.running + stats.waiting == 0
        and not server.engine.has_work
        and stats.cells_used == stats.cells_idle
        and not state.lanes.is_busy
        and gauge(server.url, "requests_active") == 0
    )


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_leave_while_their_prompt_is_read(small: Server, stream: bool) -> None:
    for path in STREAMS:
        n = small.engine.stats().cancelled
        if stream:
            with small.client() as client:
                request = client.build_request("POST", path, json=body(path, path + prose(900), True))
                response = client.send(request, stream=True)
                assert response.status_code == 200
                wait_until(lambda: small.engine.stats().running == 1)
                response.close()
        else:
            leave(small, path, body(path, f"{path} {prose(900)}", False), 0.2)
        wait_until(lambda: nothing_is_left(small), 10)
        assert small.engine.stats().cancelled == n + 1


def test_clients_that_leave_while_they_wait(small: Server) -> None:
    with small.client() as client:
        writing = []
        for _ in range(2):
            request = client.build_request(
                "POST", "/completion", json=body("/completion", "Once", True, 20_000)
            )
            writing.append(client.send(request, stream=True))
        wait_until(lambda: small.engine.stats().running == 2)
        for path in STREAMS:
            leave(small, path, body(path, "Once", False), 0.2)
        wait_until(lambda: small.engine.stats().waiting == 0, 5)
        assert small.engine.stats().running == 2
        for response in writing:
            response.close()
    wait_until(lambda: nothing_is_left(small), 10)


def test_clients_that_leave_while_they_are_prepared_for(small: Server) -> None:
    many = [{"role": "user", "content": "word"}] * 20_000
    for path, content in (
        ("/apply-template", {"messages": many}),
        ("/v1/chat/completions", {"messages": many, "model": "demo", "overflow": "shift"}),
        ("/v1/messages/count_tokens", {"messages": many, "model": "demo"}),
    ):
        leave(small, path, content, 0.15)
        wait_until(lambda: nothing_is_left(small), 10)
    assert httpx.post(f"{small.url}/completion", json={"prompt": "Once", "n_predict": 2}).status_code == 200
