"""/v1/completions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .common import (
    MAX_BIAS,
    MAX_LOGPROBS,
    MAX_N,
    Bias,
    Mixed,
    MixedPrompts,
    PromptProgress,
    Prompts,
    Reply,
    Sampled,
    Stop,
    Stops,
    StreamOptions,
    Timings,
    TokenLimitOrNone,
    TokenPrompts,
    Tokens,
    Usage,
    few,
)


class CompletionRequest(Sampled):
    prompt: str | Prompts | Tokens | TokenPrompts | Mixed | MixedPrompts
    suffix: str | None = None
    parse_special: bool = Field(
        True, description="Names of control tokens in the prompt become those tokens, as everywhere."
    )
    max_tokens: TokenLimitOrNone = 16
    n: int | None = Field(None, ge=1, le=MAX_N)
    best_of: int | None = Field(None, ge=1, le=MAX_N)
    echo: bool | None = None
    stop: Stop | Stops | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIAS), few(MAX_BIAS)] | None = None
    grammar: str | None = Field(None, description="GBNF, as llama-server takes it.")
    stream_options: StreamOptions | None = None


class CompletionLogprobs(Reply):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Reply):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length", "content_filter"] | None


class CompletionReply(Reply):
    """Also the chunks of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    timings: Timings | None = None
    prompt_progress: PromptProgress | None = None
