"""Keys, names of hosts, and what keys do not share."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from asking import CHAT, HELLO_CHAT, refused
from running_server import running

from pyllama_long.engine import EngineConfig
from pyllama_long.server.security import read_keys
from pyllama_long.server.settings import Settings

KEYS = ("first-key", "second-key")


def test_keys_are_needed_everywhere_but_for_health(demo_model: str) -> None:
    settings = Settings(model_name="demo", api_keys=KEYS, cors_origins=("http://page.example",))
    with (
        running(EngineConfig(demo_model, n_threads=1, n_ctx=512), settings) as server,
        server.client() as client,
    ):
        assert client.get("/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/props", "/openapi.json", "/v1/sessions", "/nothing"):
            refused(client.get(path), 401)
        for key in ("wrong", "first-ke", "first-key2", "FIRST-KEY", "clé"):
            wrong = {b"Authorization": f"Bearer {key}".encode()}
            refused(client.post(CHAT, json=HELLO_CHAT, headers=wrong), 401)
        for headers in (*({"Authorization": f"Bearer {key}"} for key in KEYS), {"X-Api-Key": KEYS[1]}):
            assert client.post(CHAT, json=HELLO_CHAT, headers=headers).status_code == 200
        asked = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST"}
        found = client.options(CHAT, headers=asked)
        assert found.headers["access-control-allow-origin"] == "http://page.example"


def test_only_names_of_ours_are_answered(demo_model: str) -> None:
    """DNS rebinding: a page whose own name stands for this machine."""
    settings = Settings(model_name="demo", allowed_hosts=("localhost",))
    with (
        running(EngineConfig(demo_model, n_threads=1, n_ctx=512), settings) as server,
        server.client() as client,
    ):
        for host in (
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
        ):
            assert refused(client.post(CHAT, json=HELLO_CHAT, headers={"Host": host}), 403)["code"]
        for host in ("localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "192.168.0.7"):
            assert client.post(CHAT, json=HELLO_CHAT, headers={"Host": host}).status_code == 200


def test_keys_do_not_share_what_is_cached(demo_model: str) -> None:
    settings = Settings(model_name="demo", api_keys=KEYS)
    long = {"messages": [{"role": "user", "content": "A secret text, and more of it. " * 5}], "max_tokens": 1}

    def cached(client: httpx.Client, key: str) -> int:
        found = client.post(CHAT, json=long, headers={"Authorization": f"Bearer {key}"}).json()
        return int(found["usage"]["prompt_tokens_details"]["cached_tokens"])

    with (
        running(EngineConfig(demo_model, n_threads=1, n_ctx=512), settings) as server,
        server.client() as client,
    ):
        assert cached(client, KEYS[0]) == 0
        assert cached(client, KEYS[1]) == 0
        assert cached(client, KEYS[0]) > 20


def test_key_files(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\none\n\n  two  \n")
    assert read_keys(path) == ["one", "two"]
    path.write_text("# none\n")
    with pytest.raises(ValueError, match="no API key"):
        read_keys(path)
