"""Anthropic's requests as a chat."""

from __future__ import annotations

import json

import httpx
from asking import BODIES, HELLO, ok


def test_anthropic_tools_without_a_schema(client: httpx.Client) -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search"}, {"type": "bash_20250124", "name": "bash"}]
    body = BODIES["/v1/messages"] | {"tools": tools}
    found = ok(client.post("/v1/messages", json=body))
    assert found["ignored"] == ["tools.0.web_search_20250305"]
    count = {"messages": HELLO, "tools": tools[:1]}
    plain = ok(client.post("/v1/messages/count_tokens", json={"messages": HELLO}))
    assert ok(client.post("/v1/messages/count_tokens", json=count)) == plain
    shown = ok(client.post("/v1/messages/count_tokens", json=count | {"tools": tools}))
    assert shown["input_tokens"] > plain["input_tokens"] + 20  # bash, with its schema
    broken = client.post("/v1/messages", json=body | {"tools": [{"name": "x"}]})
    assert broken.status_code == 400 and broken.json()["error"]["param"].startswith("tools.0")


def test_output_config_binds(client: httpx.Client) -> None:
    form = {"type": "json_schema", "schema": {"enum": ["yes", "no"]}}
    body = BODIES["/v1/messages"] | {"max_tokens": 20, "output_config": {"format": form}}
    (block,) = ok(client.post("/v1/messages", json=body))["content"]
    assert json.loads(block["text"]) in ("yes", "no") and set(block) == {"type", "text"}
