"""/tokenize, /detokenize and /tokenizer_info, as in llama-server and vLLM."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from .. import fields, lanes, vocabulary
from ..body import StrictRoute
from ..errors import bad
from ..schemas.tokens import (
    DetokenizeReply,
    DetokenizeRequest,
    TokenizeReply,
    TokenizeRequest,
    TokenizerInfo,
    TokenPiece,
)
from ..state import state_of

router = APIRouter(route_class=StrictRoute, tags=["llama.cpp"])


@router.post("/tokenize", response_model=TokenizeReply)
async def tokenize(request: TokenizeRequest, http: Request) -> TokenizeReply:
    fields.check(request, http)
    engine = state_of(http).loaded.engine
    text = request.content if request.content is not None else request.prompt
    if text is None or (request.content is not None and request.prompt is not None):
        raise bad("Give content, or prompt.", "content")
    special = request.add_special if request.add_special is not None else request.add_special_tokens
    if special is None:
        special = request.content is None  # vLLM's default, or llama-server's
    tokens = await lanes.run(engine.tokenize, text.encode(), special, request.parse_special)
    found: list[Any] = tokens
    if request.with_pieces:
        found = [TokenPiece(id=t, piece=_piece(engine.detokenize([t], True))) for t in tokens]
    return TokenizeReply(tokens=found, count=len(tokens), max_model_len=engine.n_ctx)


def _piece(raw: bytes) -> str | list[int]:
    """Text, or the bytes of an incomplete character."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)


@router.post("/detokenize", response_model=DetokenizeReply)
async def detokenize(request: DetokenizeRequest, http: Request) -> DetokenizeReply:
    fields.check(request, http)
    engine = state_of(http).loaded.engine
    if any(token >= engine.n_vocab for token in request.tokens):
        raise bad(f"tokens: one is outside the vocabulary of {engine.n_vocab}.", "tokens")
    raw = await lanes.run(engine.detokenize, request.tokens, True)
    text = raw.decode(errors="replace")
    return DetokenizeReply(content=text, prompt=text)


@router.get("/tokenizer_info", response_model=TokenizerInfo)
async def tokenizer_info(http: Request) -> TokenizerInfo:
    """What clients that tokenize here request first, as in vLLM."""
    engine = state_of(http).loaded.engine
    bos, eos = vocabulary.ends(engine)
    return TokenizerInfo(
        model_max_length=engine.n_ctx,
        bos_token=bos or None,
        eos_token=eos or None,
        pad_token=eos or None,
        chat_template=engine.chat_template,
    )
