"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sse_starlette import ServerSentEvent

from pyllama_long.engine import Request as EngineRequest

from .. import fields, lanes, replies, sse
from ..answer import AnswerParser
from ..body import StrictRoute
from ..delivery import deliver
from ..errors import bad
from ..openapi import streamed
from ..pieces import Done, Reading, Scored, TextPiece, Tokens
from ..run import Prepared, Run
from ..sampling import sampling, seeds, stops, write_s
from ..schemas.common import MAX_N
from ..schemas.completions import CompletionChoice, CompletionLogprobs, CompletionReply, CompletionRequest
from ..state import Loaded, State, salt_of, state_of
from ..whole import Whole

router = APIRouter(route_class=StrictRoute, tags=["OpenAI"])


@router.post("/completions", include_in_schema=False)
@router.post(
    "/v1/completions",
    response_model=CompletionReply,
    responses=streamed(CompletionReply, "Chunks, then [DONE]; with stream."),
)
async def create(request: CompletionRequest, http: Request) -> Response:
    state = state_of(http)
    loaded = state.loaded
    fields.check(request, http)
    prepared = await lanes.run(prepare, state, loaded, request, salt_of(http))
    head = replies.head("cmpl-", state.settings.model_name)
    return await deliver(
        http,
        loaded,
        prepared,
        streams=request.stream,
        events=lambda run: chunks(loaded, request, run, head),
        reply=lambda _, wholes: reply(loaded, request, wholes, head),
    )


def prompts(given: Any) -> list[Any]:
    """The prompts of a request: texts, or lists of tokens and texts."""
    if isinstance(given, str) or any(isinstance(one, int) for one in given):
        return [given]
    return list(given)


def tokens_of(
    loaded: Loaded, prompt: str | list[Any], special: bool, suffix: str | None = None, param: str = "prompt"
) -> list[int]:
    """The tokens of a prompt. special: names of control tokens in a text become those tokens, since such prompts are
    often templates that the client has filled in. param: the field that contained it. Raises ApiError."""
    engine = loaded.engine
    texts = [prompt, suffix or ""] if isinstance(prompt, str) else [t for t in prompt if isinstance(t, str)]
    loaded.check_length(texts, param)
    if isinstance(prompt, list):
        if suffix is not None:
            raise bad("suffix needs a prompt that is text.", "suffix")
        if max((one for one in prompt if isinstance(one, int)), default=0) >= engine.n_vocab:
            raise bad(f"{param}: a token is outside the vocabulary of {engine.n_vocab}.", param)
        found: list[int] = []
        for i, one in enumerate(prompt):  # a text at the beginning gets a BOS, as in llama-server
            found += [one] if isinstance(one, int) else engine.tokenize(one.encode(), i == 0, special)
        if not found:
            raise bad(f"{param}: a text is empty; give at least one token.", param)
        return found
    if suffix:
        if loaded.fim is None:
            raise bad("This model cannot fill in the middle: leave suffix out.", "suffix", "no_fim")
        before, after = (engine.tokenize(text.encode(), False, False) for text in (prompt, suffix))
        return [*engine.tokenize(b"", True, False), *loaded.fim.around(before, after)]
    tokens = engine.tokenize(prompt.encode(), True, special)
    if not tokens:
        raise bad(f"{param}: a text is empty; give at least one token.", param)
    return tokens


def prepare(state: State, loaded: Loaded, request: CompletionRequest, salt: str) -> Prepared:
    loaded.check_extras(request)
    given, n = prompts(request.prompt), request.n or 1
    if request.best_of not in (None, n):
        raise bad("best_of must be equal to n: this server returns every answer.", "best_of")
    if len(given) * n > 4 * MAX_N:
        raise bad(f"At most {4 * MAX_N} answers per request: prompts times n.", "n")
    scored = bool(request.echo) and request.logprobs is not None
    requests = [
        EngineRequest(
            tokens=tokens,
            max_tokens=request.max_tokens,
            sampling=sampling(
                loaded.engine, state.settings, request, seed, request.logit_bias, request.grammar
            ),
            stop=stops(request.stop),
            logprobs=request.logprobs,
            echo_logprobs=scored,
            salt=salt,
            priority=request.priority or 0,
            write_s=write_s(request),
        )
        for tokens in (tokens_of(loaded, prompt, request.parse_special, request.suffix) for prompt in given)
        for seed in seeds(request.seed, n)
    ]
    return Prepared(requests, AnswerParser, "prompt")


def _echoed(loaded: Loaded, request: CompletionRequest) -> list[str]:
    """The text before each answer."""
    n, given = request.n or 1, prompts(request.prompt)
    if not request.echo:
        return [""] * (n * len(given))
    show = loaded.engine.detokenize
    texts = [
        p
        if isinstance(p, str)
        else show(tokens_of(loaded, p, request.parse_special), True).decode(errors="replace")
        for p in given
    ]
    return [text for text in texts for _ in range(n)]


def _usage(done: list[Done], n: int) -> Any:
    return replies.several([replies.usage(done[i : i + n]) for i in range(0, len(done), n)])


def reply(loaded: Loaded, request: CompletionRequest, wholes: list[Whole], head: replies.Head) -> Response:
    choices = []
    for i, (whole, echo) in enumerate(zip(wholes, _echoed(loaded, request), strict=True)):
        assert whole.done is not None
        logprobs = None
        if request.logprobs is not None:
            shown = [*(whole.prompt if request.echo else ()), *whole.tokens]
            logprobs = replies.completion_logprobs(shown, request.logprobs, replies.Offsets())
        text, reason = echo + whole.text, cast(Any, whole.done.reason)
        choices.append(CompletionChoice(index=i, text=text, logprobs=logprobs, finish_reason=reason))
    done = [whole.done for whole in wholes if whole.done is not None]
    found = CompletionReply(
        **cast(Any, head.fields()),
        choices=choices,
        usage=_usage(done, request.n or 1),
        timings=replies.timings(done[0]),
    )
    return Response(found.model_dump_json(exclude={"prompt_progress"}), media_type="application/json")


async def chunks(
    loaded: Loaded, request: CompletionRequest, run: Run, head: replies.Head
) -> AsyncIterator[ServerSentEvent]:
    fields, n = cast(Any, head.fields()), len(run.handles)
    waiting: list[list[Any]] = [[] for _ in range(n)]
    offsets = [replies.Offsets() for _ in range(n)]
    echoes = _echoed(loaded, request)
    done: dict[int, Done] = {}

    def chunk(i: int, text: str, finish: str | None = None, **more: Any) -> ServerSentEvent:
        logprobs: CompletionLogprobs | None = None
        if request.logprobs is not None and waiting[i]:
            logprobs = replies.completion_logprobs(waiting[i], request.logprobs, offsets[i])
            waiting[i] = []
        if echoes[i]:
            text, echoes[i] = echoes[i] + text, ""
        choice = CompletionChoice(index=i, text=text, logprobs=logprobs, finish_reason=cast(Any, finish))
        return _event(CompletionReply(**fields, choices=[choice], **more))

    async for i, piece in run.pieces():
        if isinstance(piece, Reading):
            if request.return_progress:
                yield _event(CompletionReply(**fields, choices=[], prompt_progress=replies.progress(piece)))
        elif isinstance(piece, (Scored, Tokens)):
            waiting[i] += piece.tokens
        elif isinstance(piece, TextPiece):
            yield chunk(i, piece.text)
        elif isinstance(piece, Done):
            done[i] = piece
            last = len(done) == n
            yield chunk(i, "", piece.reason, timings=replies.timings(piece) if last else None)
    if request.stream_options is not None and request.stream_options.include_usage:
        found = _usage([done[i] for i in range(n)], request.n or 1)
        yield _event(CompletionReply(**fields, choices=[], usage=found))


def _event(chunk: CompletionReply) -> ServerSentEvent:
    found = chunk.model_dump()
    for key in ("usage", "timings", "prompt_progress"):
        if found[key] is None:
            del found[key]
    return sse.event(found)
