"""/v1/models, /v1/embeddings, /tokenize, /detokenize, /apply-template, /health, /props and sessions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from .chat import Message, Talk
from .common import MAX_INPUTS, Open, Reply, Token
from .completions import Prompts, TokenPrompts, Tokens

SESSION_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"


class ModelInfo(Reply):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "pyllama-long"
    meta: dict[str, int]


class ModelList(Reply):
    object: Literal["list"] = "list"
    data: list[ModelInfo]


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


class TokenizeRequest(Open):
    """content: as llama-server; prompt: as vLLM."""

    content: str | None = None
    prompt: str | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool = Field(True, description="Names of control tokens in the text become those tokens.")
    with_pieces: bool = False


class TokenPiece(Reply):
    id: int
    piece: str | list[int]


class TokenizeReply(Reply):
    tokens: list[int] | list[TokenPiece]
    count: int
    max_model_len: int


class DetokenizeRequest(Open):
    tokens: list[Token]


class DetokenizeReply(Reply):
    """The text, by llama-server's name and by vLLM's."""

    content: str
    prompt: str


class TokenizerInfo(Reply):
    """As vLLM tells it; texts of control tokens are null where the model has none."""

    tokenizer_class: str = "GGUF"
    model_max_length: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None


class TemplateRequest(Talk):
    """A chat of which the prompt is made only."""

    messages: list[Message] = Field(min_length=1, max_length=100_000)


class TemplateReply(Reply):
    prompt: str


class LoraAdapter(Reply):
    id: int
    path: str
    scale: float


class LoraScale(Open):
    id: int
    scale: float


class LoraReply(Reply):
    success: bool = True


class Health(Reply):
    status: Literal["ok", "loading", "failed", "draining", "stuck"]
    progress: float | None = None


class Props(Reply):
    model: str
    total_slots: int
    n_ctx: int
    n_ctx_train: int
    n_vocab: int
    attention: str
    rope: str
    overflow: str
    embeddings: bool
    chat_template: str | None
    default_generation_settings: dict[str, Any]
    explain: str
    stats: dict[str, Any]
    version: str


class SessionRequest(Talk):
    """Saves what is cached of a prompt; give messages or prompt."""

    name: str = Field(pattern=SESSION_NAME)
    messages: Annotated[list[Message], Field(min_length=1, max_length=100_000)] | None = None
    prompt: str | Tokens | None = None


class Session(Reply):
    name: str
    object: Literal["session"] = "session"
    tokens: int
    bytes: int
    created: int
    usable: bool = Field(description="Made under the model and the settings that run now.")


class SessionList(Reply):
    object: Literal["list"] = "list"
    data: list[Session]


class Deleted(Reply):
    name: str
    object: Literal["session"] = "session"
    deleted: bool = True


MAX_EMBEDDING_INPUTS = MAX_INPUTS
