"""llama.cpp's routes: /completion, /tokenize, /detokenize, /apply-template."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sse_starlette import ServerSentEvent

from pyllama_long.engine import Request as EngineRequest
from pyllama_long.server import chat, grammar, replies, sse
from pyllama_long.server.answer import AnswerParser, Said
from pyllama_long.server.body import StrictRoute
from pyllama_long.server.errors import bad
from pyllama_long.server.openapi import streamed
from pyllama_long.server.routes.completions import tokens_of
from pyllama_long.server.run import Done, Prepared, Reading, Run, Tokens, collect, seeds, submit
from pyllama_long.server.sampling import sampling, stops
from pyllama_long.server.schemas.completions import NativeReply, NativeRequest
from pyllama_long.server.schemas.tools import (
    DetokenizeReply,
    DetokenizeRequest,
    TemplateReply,
    TemplateRequest,
    TokenizeReply,
    TokenizeRequest,
    TokenPiece,
)
from pyllama_long.server.state import Loaded, State, salt_of, state_of

NEVER = -100.0  # the bias of tokens that are not to come

router = APIRouter(route_class=StrictRoute, tags=["llama.cpp"])


@router.post(
    "/completion",
    response_model=NativeReply,
    responses=streamed(NativeReply, "Chunks, then [DONE]; with stream."),
)
async def completion(request: NativeRequest, http: Request) -> Response:
    state = state_of(http)
    loaded = state.loaded
    prepared = await asyncio.to_thread(_prepare, state, loaded, request, salt_of(http))
    run = await submit(loaded.engine, prepared, state.metrics, state.settings.request_timeout_s)
    if request.stream:
        return sse.response(http, run, _chunks(state, request, run))
    (whole,) = await collect(http, run)
    assert whole.done is not None
    found = _last(state, run, whole.done, whole.text, [token.id for token in whole.tokens])
    if request.n_probs:
        found.completion_probabilities = replies.native_probs(whole.tokens, request.n_probs)
    return Response(found.model_dump_json(exclude_none=True), media_type="application/json")


def _prepare(state: State, loaded: Loaded, request: NativeRequest, salt: str) -> Prepared:
    loaded.check_extras(request)
    wanted = request.n_predict if request.n_predict is not None else request.max_tokens
    rules = request.grammar or None
    if request.json_schema is not None:
        if rules is not None:
            raise bad("Give grammar or json_schema, not both.", "json_schema")
        made = grammar.Rules()
        rules = made.build(made.schema(request.json_schema, "json_schema"))
    (seed,) = seeds(request.seed, 1)
    bias = _bias(request.logit_bias) or {}
    if request.ignore_eos:
        bias = {**bias, **{str(token): NEVER for token in loaded.engine.model.end_tokens}}
    one = EngineRequest(
        tokens=tokens_of(loaded, request.prompt, request.parse_special),
        max_tokens=None if wanted in (None, -1) else wanted,
        sampling=sampling(loaded.engine, state.settings, request, seed, bias, rules),
        stop=stops(request.stop),
        logprobs=request.n_probs or None,
        salt=salt,
        priority=request.priority or 0,
    )
    return Prepared([one], AnswerParser, "prompt")


def _bias(given: list[list[Any]] | dict[str, float] | None) -> dict[str, float] | None:
    """llama.cpp's pairs [token, bias], where false means never."""
    if not isinstance(given, list):
        return given
    found = {}
    for pair in given:
        if len(pair) != 2 or type(pair[0]) is not int or type(pair[1]) not in (int, float, bool):
            raise bad("logit_bias: give pairs of a token and a number, or false.", "logit_bias")
        value = NEVER if pair[1] is False else float(pair[1])
        found[str(pair[0])] = max(NEVER, min(-NEVER, value))
    return found


def _last(state: State, run: Run, done: Done, content: str, tokens: list[int]) -> NativeReply:
    usage = done.usage
    stop_type: Literal["eos", "limit", "word"] = "limit" if done.reason == "length" else "eos"
    return NativeReply(
        content=content,
        tokens=tokens,
        stop=True,
        tokens_predicted=usage.n_completion,
        tokens_evaluated=usage.n_prompt,
        model=state.settings.model_name,
        tokens_cached=usage.n_cached,
        truncated=False,
        stop_type="word" if done.stop_string is not None else stop_type,
        stopping_word=done.stop_string or "",
        timings=replies.timings(done),
    )


async def _chunks(state: State, request: NativeRequest, run: Run) -> AsyncIterator[ServerSentEvent]:
    waiting: list[Any] = []
    n_prompt, n = len(run.prepared.requests[0].tokens), 0

    def chunk(text: str, taken: list[Any], reading: Reading | None = None) -> ServerSentEvent:
        probs = replies.native_probs(taken, request.n_probs) if request.n_probs and taken else None
        found = NativeReply(
            content=text,
            tokens=[token.id for token in taken],
            stop=False,
            tokens_predicted=n,
            tokens_evaluated=n_prompt,
            completion_probabilities=probs,
            prompt_progress=None if reading is None else replies.progress(reading),
        )
        return sse.event(found)

    async for _, piece in run.pieces():
        if isinstance(piece, Tokens):
            waiting += piece.tokens
            n += len(piece.tokens)
        elif isinstance(piece, Reading) and request.return_progress:
            yield chunk("", [], piece)
        elif isinstance(piece, Said):
            yield chunk(piece.text, waiting)
            waiting = []
        elif isinstance(piece, Done):
            if waiting:  # part of a character, which has no text
                yield chunk("", waiting)
            yield sse.event(_last(state, run, piece, "", []))


@router.post("/tokenize", response_model=TokenizeReply)
async def tokenize(request: TokenizeRequest, http: Request) -> TokenizeReply:
    engine = state_of(http).loaded.engine
    raw = request.content.encode()
    tokens = await asyncio.to_thread(engine.tokenize, raw, request.add_special, request.parse_special)
    if not request.with_pieces:
        return TokenizeReply(tokens=tokens)
    return TokenizeReply(
        tokens=[TokenPiece(id=t, piece=_piece(engine.detokenize([t], True))) for t in tokens]
    )


def _piece(raw: bytes) -> str | list[int]:
    """Text, or the bytes of a part of a character."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)


@router.post("/detokenize", response_model=DetokenizeReply)
async def detokenize(request: DetokenizeRequest, http: Request) -> DetokenizeReply:
    engine = state_of(http).loaded.engine
    if any(token >= engine.n_vocab for token in request.tokens):
        raise bad(f"tokens: one is outside the vocabulary of {engine.n_vocab}.", "tokens")
    raw = await asyncio.to_thread(engine.detokenize, request.tokens, True)
    return DetokenizeReply(content=raw.decode(errors="replace"))


@router.post("/apply-template", response_model=TemplateReply)
async def apply_template(request: TemplateRequest, http: Request) -> TemplateReply:
    loaded = state_of(http).loaded
    found = await asyncio.to_thread(
        chat.render, loaded, request.messages, request.tools or (), request.add_generation_prompt
    )
    return TemplateReply(prompt=found.text)
