"""/v1/embeddings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .common import Open, Prompts, Reply, TokenPrompts, Tokens


class EmbeddingRequest(Open):
    model: str | None = Field(None, max_length=1024)
    input: str | Prompts | Tokens | TokenPrompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, le=1 << 20)
    embd_normalize: int = Field(
        2, ge=-1, le=64, description="As llama-server: 2 for length 1, -1 for as it is, 0 for int16's range."
    )


class Embedding(Reply):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Reply):
    prompt_tokens: int
    total_tokens: int


class EmbeddingReply(Reply):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
