"""Tokens of texts and texts of tokens."""

from __future__ import annotations

import httpx
from asking import ok


def test_tokenize_and_back(client: httpx.Client) -> None:
    text = "Zürich 東京 <|im_start|>"
    tokens = client.post("/tokenize", json={"content": text}).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": tokens}).json()["content"] == text
    special = client.post("/tokenize", json={"content": "<|im_start|>", "parse_special": True}).json()
    assert len(special["tokens"]) == 1
    pieces = client.post("/tokenize", json={"content": "東", "with_pieces": True}).json()["tokens"]
    assert bytes(b for piece in pieces for b in piece["piece"]).decode() == "東"
    assert client.post("/detokenize", json={"tokens": [99999]}).status_code == 400


def test_a_tokenizer_from_afar(client: httpx.Client) -> None:
    info = ok(client.get("/tokenizer_info"))
    assert info["eos_token"] and "im_start" in info["chat_template"]
    found = ok(client.post("/tokenize", json={"prompt": "Hello <|im_start|>", "add_special_tokens": False}))
    assert found["count"] == len(found["tokens"]) and found["max_model_len"] == 2048
    assert ok(client.post("/detokenize", json={"tokens": found["tokens"]}))["prompt"] == "Hello <|im_start|>"
    plain = {"content": "Hello <|im_start|>", "parse_special": False}
    assert len(ok(client.post("/tokenize", json=plain))["tokens"]) > found["count"]
    assert client.post("/tokenize", json={}).status_code == 400
