"""llama.cpp's own routes: /completion, /lora-adapters, /props, /apply-template."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from sse_starlette import ServerSentEvent

from pyllama_long import __version__
from pyllama_long.engine import Request as EngineRequest
from pyllama_long.grammar import Lark

from .. import fields, grammar, lanes, metrics, prompt, replies, sse, tools
from ..answer import AnswerParser
from ..body import StrictRoute
from ..delivery import deliver
from ..errors import bad
from ..openapi import streamed
from ..pieces import Done, Reading, TextPiece, Tokens
from ..run import Prepared, Run
from ..sampling import sampling, seeds, stops, write_s
from ..schemas.chat import ChatRequest
from ..schemas.common import MAX_BIAS, MAX_N
from ..schemas.llama_cpp import (
    LoraAdapter,
    LoraReply,
    LoraScale,
    NativeReply,
    NativeRequest,
    PickedReply,
    Props,
    TemplateReply,
    TemplateRequest,
)
from ..state import Loaded, State, salt_of, state_of
from ..template_options import TemplateOptions
from ..whole import Whole
from .completions import prompts, tokens_of

NEVER = -100.0  # the bias of tokens that must not occur

router = APIRouter(route_class=StrictRoute, tags=["llama.cpp"])


@router.post(
    "/completion",
    response_model=NativeReply | list[NativeReply] | PickedReply,
    responses=streamed(NativeReply, "Chunks, then [DONE]; with stream."),
)
async def completion(request: NativeRequest, http: Request) -> Response:
    state = state_of(http)
    loaded = state.loaded
    fields.check(request, http)
    if request.stream and request.response_fields:
        raise bad("response_fields: not with stream.", "response_fields")
    prepared = await lanes.run(_prepare, state, loaded, request, salt_of(http))
    return await deliver(
        http,
        loaded,
        prepared,
        streams=request.stream,
        events=lambda run: _chunks(state, request, run),
        reply=lambda _, wholes: _reply(state, request, wholes),
    )


def _reply(state: State, request: NativeRequest, wholes: list[Whole]) -> JSONResponse:
    found = [_whole(state, request, i, whole) for i, whole in enumerate(wholes)]
    return JSONResponse(found[0] if len(found) == 1 else found)


def _whole(state: State, request: NativeRequest, i: int, whole: Whole) -> dict[str, Any]:
    assert whole.done is not None
    found = _last(state, i, whole.done, whole.text, [token.id for token in whole.tokens])
    if request.n_probs:
        found.completion_probabilities = replies.native_probs(whole.tokens, request.n_probs)
    return _picked(found.model_dump(exclude_none=True), request.response_fields)


def _picked(found: dict[str, Any], wanted: list[str] | None) -> dict[str, Any]:
    """Only the requested fields; `a/b` is b of a under its own name, as in llama-server."""
    if not wanted:
        return found
    picked = {}
    for path in wanted:
        value: Any = found
        for name in path.split("/"):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            picked[path.rpartition("/")[2]] = value
    return picked


def _prepare(state: State, loaded: Loaded, request: NativeRequest, salt: str) -> Prepared:
    loaded.check_extras(request)
    wanted = request.n_predict if request.n_predict is not None else request.max_tokens
    rules: str | Lark | None = request.grammar or None
    if request.json_schema is not None:
        if rules is not None:
            raise bad("Give grammar or json_schema, not both.", "json_schema")
        made = grammar.Rules(loaded.controls)
        rules = made.build(made.schema(request.json_schema, "json_schema"))
    (seed,) = seeds(request.seed, 1)
    bias = _bias(loaded, request.logit_bias)
    if request.ignore_eos:
        bias = {**bias, **{str(token): NEVER for token in loaded.engine.end_tokens}}
    chosen = sampling(loaded.engine, state.settings, request, seed, bias, rules)
    given = prompts(request.prompt)
    if len(given) > 4 * MAX_N:
        raise bad(f"At most {4 * MAX_N} prompts per request.", "prompt")
    requests = [
        EngineRequest(
            tokens=tokens_of(loaded, one, request.parse_special),
            max_tokens=None if wanted in (None, -1) else wanted,
            sampling=chosen,
            stop=stops(request.stop),
            logprobs=request.n_probs or None,
            salt=salt,
            priority=request.priority or 0,
            write_s=write_s(request),
        )
        for one in given
    ]
    return Prepared(requests, AnswerParser, "prompt")


def _bias(loaded: Loaded, given: list[list[Any]] | dict[str, Any] | None) -> dict[str, float]:
    """llama.cpp's pairs [token, bias], or an object of them. A text applies to each of its tokens; false means
    never."""
    pairs: list[Any] = [list(pair) for pair in given.items()] if isinstance(given, dict) else given or []
    found = {}
    for pair in pairs:
        if len(pair) != 2 or type(pair[0]) not in (int, str) or type(pair[1]) not in (int, float, bool):
            raise bad("logit_bias: give pairs of a token or a text and a number, or false.", "logit_bias")
        key, value = pair
        if value is True:
            raise bad("logit_bias: a bias is a number, or false for never.", "logit_bias")
        tokens = [key]
        if isinstance(key, str) and not (isinstance(given, dict) and key.isascii() and key.isdigit()):
            tokens = loaded.engine.tokenize(key.encode(), False, True)
        for token in tokens:
            found[str(token)] = NEVER if value is False else max(NEVER, min(-NEVER, float(value)))
    if len(found) > MAX_BIAS:
        raise bad(f"logit_bias: at most {MAX_BIAS} tokens.", "logit_bias")
    return found


def _last(state: State, i: int, done: Done, content: str, tokens: list[int]) -> NativeReply:
    usage = done.usage
    stop_type: Literal["eos", "limit", "word"] = "limit" if done.reason == "length" else "eos"
    return NativeReply(
        index=i,
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
    n_prompts = [len(one.tokens) for one in run.prepared.requests]
    waiting: list[list[Any]] = [[] for _ in n_prompts]
    n = [0] * len(n_prompts)

    def chunk(i: int, text: str, reading: Reading | None = None) -> ServerSentEvent:
        taken, waiting[i] = ([], waiting[i]) if reading is not None else (waiting[i], [])
        probs = replies.native_probs(taken, request.n_probs) if request.n_probs and taken else None
        found = NativeReply(
            index=i,
            content=text,
            tokens=[token.id for token in taken],
            stop=False,
            tokens_predicted=n[i],
            tokens_evaluated=n_prompts[i],
            completion_probabilities=probs,
            prompt_progress=None if reading is None else replies.progress(reading),
        )
        return sse.event(found)

    async for i, piece in run.pieces():
        if isinstance(piece, Tokens):
            waiting[i] += piece.tokens
            n[i] += len(piece.tokens)
        elif isinstance(piece, Reading) and request.return_progress:
            yield chunk(i, "", piece)
        elif isinstance(piece, TextPiece):
            yield chunk(i, piece.text)
        elif isinstance(piece, Done):
            if waiting[i]:  # part of a character, which has no text
                yield chunk(i, "")
            yield sse.event(_last(state, i, piece, "", []))


@router.get("/lora-adapters", response_model=list[LoraAdapter])
async def adapters(http: Request) -> list[LoraAdapter]:
    found = state_of(http).loaded.engine.lora
    return [LoraAdapter(id=i, path=path, scale=scale) for i, (path, scale) in enumerate(found)]


@router.post("/lora-adapters", response_model=LoraReply)
async def set_adapters(request: list[LoraScale], http: Request) -> LoraReply:
    """Accepts only the scales that are already set. As in llama-server, an adapter that is not named has 0."""
    running = [scale for _, scale in state_of(http).loaded.engine.lora]
    wanted = dict.fromkeys(range(len(running)), 0.0)
    for one in request:
        if one.id not in wanted:
            raise bad(f"There is no adapter {one.id}.", "id")
        wanted[one.id] = one.scale
    if list(wanted.values()) != running:
        message = (
            "What is cached depends on the adapters, so they stay: start a server with --lora FILE=SCALE."
        )
        raise bad(message, "scale", "unsupported_value")
    return LoraReply()


@router.get("/props", response_model=Props)
async def props(http: Request) -> Props:
    state = state_of(http)
    loaded = state.loaded
    engine = loaded.engine
    return Props(
        model=state.settings.model_name,
        total_slots=engine.config.n_parallel,
        n_ctx=engine.n_ctx,
        n_ctx_train=engine.n_train,
        n_vocab=engine.n_vocab,
        attention=str(engine.plan),
        rope=str(engine.rope),
        overflow=state.settings.overflow,
        embeddings=engine.config.embedding,
        chat_template=engine.chat_template,
        default_generation_settings={"n_ctx": engine.n_ctx, "temperature": state.settings.temperature},
        explain=engine.explain(),
        stats=metrics.numbers(engine.stats()),
        version=__version__,
    )


@router.post("/apply-template", response_model=TemplateReply)
async def apply_template(request: TemplateRequest, http: Request) -> TemplateReply:
    fields.check(request, http, others=ChatRequest.model_fields)
    fields.ignored(http, *tools.left_out(request))
    loaded = state_of(http).loaded
    options = TemplateOptions.of(http, loaded, request, request.messages)
    found = await lanes.run(prompt.render, loaded, request.messages, options)
    return TemplateReply(prompt=found.text)
