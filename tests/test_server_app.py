"""What the app does around its routes: request ids, origins, unknown paths."""

from __future__ import annotations

import httpx
from asking import CHAT, refused


def test_unknown_routes_and_methods(client: httpx.Client) -> None:
    refused(client.get("/v2/nothing"), 404)
    refused(client.get(CHAT), 405)
    assert client.get("/v1/messages/x").json()["type"] == "error"


def test_a_request_id_comes_back(client: httpx.Client) -> None:
    assert client.get("/health", headers={"X-Request-Id": "abc-1"}).headers["X-Request-Id"] == "abc-1"
    assert client.get("/health").headers["X-Request-Id"].startswith("req_")


def test_no_origin_is_allowed_by_default(client: httpx.Client) -> None:
    found = client.get("/v1/models", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in found.headers


def test_the_page_needs_no_other_host(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    whole = page.text + client.get("/web/app.js").text + client.get("/web/style.css").text
    assert "http://" not in whole.replace("http://www.w3.org/2000/svg", "") and "https://" not in whole
