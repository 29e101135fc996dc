"""Sessions: saved, listed, restored and deleted."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from asking import PROMPT
from running_server import Server, running

from pyllama_long.engine import EngineConfig


@pytest.fixture(scope="module")
def server(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("cache")
    config = EngineConfig(
        demo_model, n_ctx=512, n_parallel=2, n_threads=1, precision="f32", cache_dir=str(folder)
    )
    with running(config) as found:
        yield found


def test_sessions_are_saved_listed_restored_and_deleted(client: httpx.Client, server: Server) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    said = client.post(
        "/v1/chat/completions", json={"messages": messages, "max_tokens": 8, "temperature": 0}
    ).json()
    messages.append({"role": "assistant", "content": said["choices"][0]["message"]["content"]})
    server.quiet()
    saved = client.post("/v1/sessions", json={"name": "day-1", "messages": messages})
    assert saved.status_code == 200, saved.text
    assert saved.json()["tokens"] > 30
    assert [one["name"] for one in client.get("/v1/sessions").json()["data"]] == ["day-1"]
    assert client.post("/v1/sessions/day-1/restore").json()["tokens"] == saved.json()["tokens"]
    assert client.delete("/v1/sessions/day-1").json()["deleted"]
    assert client.post("/v1/sessions/day-1/restore").status_code == 404
    assert client.delete("/v1/sessions/day-1").status_code == 404


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "x" * 100, "a\x00b", "a b"])
def test_names_of_sessions_are_names(client: httpx.Client, name: str) -> None:
    assert client.post("/v1/sessions", json={"name": name, "prompt": "x"}).status_code == 400


def test_nothing_cached_is_nothing_to_save(client: httpx.Client) -> None:
    found = client.post("/v1/sessions", json={"name": "a", "prompt": [700, 701, 702]})
    assert found.status_code == 400
