"""Shared by tests of LongLlama: a prompt, tokens, and responses in a comparable form."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from pyllama_long import LongLlama

PROMPT = "Captain Ahab stood upon the deck, and the crew"


def ids(llm: LongLlama, n: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(300, 3000, n)]


def plain(response: Any) -> Any:
    """A response without its id and time, logprobs apart, numbers rounded."""
    response = {k: v for k, v in response.items() if k not in ("id", "created")}
    return json.loads(json.dumps(response, default=float), parse_float=lambda x: round(float(x), 4))


def joined(chunks: list[Any]) -> str:
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)
