"""Parts of responses that are shared by several APIs: usage, statistics, log-probabilities."""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel

from pyllama_long import __version__
from pyllama_long.engine import events

from .pieces import Done, Reading
from .schemas.chat import ChatLogprobs, TokenLogprob, TopLogprob
from .schemas.common import CompletionDetails, PromptDetails, PromptProgress, Timings, Usage
from .schemas.completions import CompletionLogprobs
from .schemas.llama_cpp import NativeProb, NativeToken

_MIN_LOGPROB = -9999.0  # JSON has no infinity


@dataclass(frozen=True)
class Head:
    """The fields that are in every chunk of one response."""

    prefix: str
    model: str
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def fields(self) -> dict[str, str | int]:
        return {**self.plain(), "system_fingerprint": f"pyllama-long-{__version__}"}

    def plain(self) -> dict[str, str | int]:
        return {"id": self.id, "created": self.created, "model": self.model}


def head(prefix: str, model: str) -> Head:
    return Head(prefix, model, new_id(prefix))


def new_id(prefix: str) -> str:
    return f"{prefix}{uuid.uuid4().hex}"


def absent(reply: BaseModel) -> set[str]:
    """Fields of ours that are empty in this reply, and are therefore left out."""
    return {name for name in ("overflow", "ignored") if getattr(reply, name) is None}


def usage(done: Sequence[Done]) -> Usage:
    """The usage of all choices of one prompt, which counts once."""
    n_prompt = done[0].usage.n_prompt
    n_completion = sum(one.usage.n_completion for one in done)
    return Usage(
        prompt_tokens=n_prompt,
        completion_tokens=n_completion,
        total_tokens=n_prompt + n_completion,
        prompt_tokens_details=PromptDetails(cached_tokens=min(one.usage.n_cached for one in done)),
        completion_tokens_details=CompletionDetails(
            reasoning_tokens=sum(one.reasoning_tokens for one in done)
        ),
    )


def several(usages: Sequence[Usage]) -> Usage:
    """The usage of several prompts."""
    n_prompt = sum(one.prompt_tokens for one in usages)
    n_completion = sum(one.completion_tokens for one in usages)
    cached = sum(one.prompt_tokens_details.cached_tokens for one in usages)
    return Usage(
        prompt_tokens=n_prompt,
        completion_tokens=n_completion,
        total_tokens=n_prompt + n_completion,
        prompt_tokens_details=PromptDetails(cached_tokens=cached),
    )


def timings(done: Done) -> Timings:
    used = done.usage
    n_read = used.n_prompt - used.n_cached
    return Timings(
        cache_n=used.n_cached,
        prompt_n=n_read,
        prompt_ms=round(1000 * used.prefill_s, 3),
        prompt_per_second=_rate(n_read, used.prefill_s),
        predicted_n=used.n_completion,
        predicted_ms=round(1000 * used.decode_s, 3),
        predicted_per_second=_rate(used.n_completion, used.decode_s),
        keys_read_share=round(used.keys_read_share, 6)
        if used.keys_read_share == used.keys_read_share
        else None,
        attention_error=None if used.attention_error is None else round(used.attention_error, 6),
    )


def _rate(n: int, seconds: float) -> float | None:
    return round(n / seconds, 3) if seconds > 0 else None


def progress(piece: Reading) -> PromptProgress:
    return PromptProgress(
        total=piece.total,
        cache=piece.cached,
        processed=piece.processed,
        time_ms=round(1000 * piece.seconds, 3),
    )


def _number(logprob: float | None) -> float:
    return max(_MIN_LOGPROB, logprob) if logprob is not None else _MIN_LOGPROB


def _top(raw: bytes, logprob: float | None) -> TopLogprob:
    return TopLogprob(token=raw.decode(errors="replace"), logprob=_number(logprob), bytes=list(raw))


def chat_logprobs(tokens: Sequence[events.TokenInfo], n_top: int) -> ChatLogprobs:
    return ChatLogprobs(
        content=[
            TokenLogprob(
                **_top(token.text_bytes, token.logprob).model_dump(),
                top_logprobs=[_top(raw, value) for _, raw, value in token.top[:n_top]],
            )
            for token in tokens
        ]
    )


class Offsets:
    """Counts the characters before each token of a text; a character may be spread over several tokens."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._n = 0

    def before(self, token: events.TokenInfo) -> int:
        """The offset of the next token; a part of a character has the character's offset."""
        n = self._n
        self._n += len(self._decoder.decode(token.text_bytes))
        return n


def completion_logprobs(
    tokens: Sequence[events.TokenInfo], n_top: int, offsets: Offsets
) -> CompletionLogprobs:
    """In the shape of legacy completions. offsets: of the tokens before."""
    return CompletionLogprobs(
        tokens=[token.text_bytes.decode(errors="replace") for token in tokens],
        token_logprobs=[None if t.logprob is None else _number(t.logprob) for t in tokens],
        top_logprobs=[_best(token, n_top) for token in tokens],
        text_offset=[offsets.before(token) for token in tokens],
    )


def _best(token: events.TokenInfo, n_top: int) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    found = {raw.decode(errors="replace"): _number(value) for _, raw, value in reversed(token.top[:n_top])}
    # The token that was written is always listed, as OpenAI does.
    found.setdefault(token.text_bytes.decode(errors="replace"), _number(token.logprob))
    return found


def native_probs(tokens: Sequence[events.TokenInfo], n_top: int) -> list[NativeToken]:
    return [
        NativeToken(
            **_native(token.id, token.text_bytes, token.logprob).model_dump(),
            top_logprobs=[_native(id, raw, value) for id, raw, value in token.top[:n_top]],
        )
        for token in tokens
    ]


def _native(id: int, raw: bytes, logprob: float | None) -> NativeProb:
    return NativeProb(id=id, token=raw.decode(errors="replace"), bytes=list(raw), logprob=_number(logprob))
