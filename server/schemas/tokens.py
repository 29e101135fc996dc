"""/tokenize, /detokenize and /tokenizer_info."""

from __future__ import annotations

from pydantic import Field

from .common import Open, Reply, Token


class TokenizeRequest(Open):
    """content: as in llama-server; prompt: as in vLLM."""

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
    """As in vLLM; texts of control tokens are null if the model has none."""

    tokenizer_class: str = "GGUF"
    model_max_length: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None
