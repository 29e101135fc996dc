"""Tokens of texts and texts of tokens."""

from __future__ import annotations

import httpx


def test_tokenize_and_back(client: httpx.Client) -> None:
    text = "Zürich 東京 <|im_start|>"
    tokens = client.post("/tokenize", json={"content": text}).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": tokens}).json()["content"] == text
    special = client.post("/tokenize", json={"content": "<|im_start|>", "parse_special": True}).json()
    assert len(special["tokens"]) == 1
    pieces = client.post("/tokenize", json={"content": "東", "with_pieces": True}).json()["tokens"]
    assert bytes(b for piece in pieces for b in piece["piece"]).decode() == "東"
    assert client.post("/detokenize", json={"tokens": [99999]}).status_code == 400
