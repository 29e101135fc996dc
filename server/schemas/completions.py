"""/v1/completions and llama.cpp's /completion."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .chat import StreamOptions
from .common import (
    MAX_BIAS,
    MAX_INPUTS,
    MAX_LOGPROBS,
    MAX_N,
    MAX_TOKENS,
    Bias,
    JsonObject,
    MostOrNone,
    PromptProgress,
    Reply,
    Sampled,
    Stop,
    Stops,
    Timings,
    Token,
    Usage,
    few,
)

Tokens = Annotated[list[Token], Field(min_length=1)]
Prompts = Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]
Mixed = Annotated[list[str | Token], Field(min_length=1)]
MixedPrompts = Annotated[list[str | Mixed], Field(min_length=1, max_length=MAX_INPUTS)]
TokenPrompts = Annotated[list[Tokens], Field(min_length=1, max_length=MAX_INPUTS)]


class CompletionRequest(Sampled):
    prompt: str | Prompts | Tokens | TokenPrompts | Mixed | MixedPrompts
    suffix: str | None = None
    parse_special: bool = Field(
        True, description="Names of control tokens in the prompt become those tokens, as everywhere."
    )
    max_tokens: MostOrNone = 16
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


class NativeRequest(Sampled):
    """llama.cpp's names."""

    prompt: str | Prompts | Tokens | TokenPrompts | Mixed | MixedPrompts
    n_predict: int | None = Field(None, ge=-1, le=MAX_TOKENS)
    max_tokens: int | None = Field(None, ge=-1, le=MAX_TOKENS)
    stop: Stop | Stops | None = None
    n_probs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    logit_bias: Annotated[list[list[Any]], Field(max_length=MAX_BIAS)] | dict[str, Any] | None = None
    grammar: str | None = None
    json_schema: JsonObject | None = None
    ignore_eos: bool = False
    parse_special: bool = True
    response_fields: Annotated[list[str], Field(max_length=64)] | None = Field(
        None, description="Only these fields are returned; `a/b` is b of a."
    )


class PickedReply(BaseModel):
    """With response_fields: some of the fields only."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"not": {"required": ["content", "stop", "tokens_evaluated"]}}
    )


class NativeProb(Reply):
    id: int
    token: str
    bytes: list[int]
    logprob: float


class NativeToken(NativeProb):
    top_logprobs: list[NativeProb]


class NativeReply(Reply):
    """The response, and the chunks of a stream."""

    index: int = 0
    content: str
    tokens: list[int]
    stop: bool
    tokens_predicted: int
    tokens_evaluated: int
    completion_probabilities: list[NativeToken] | None = None
    model: str | None = None
    tokens_cached: int | None = None
    truncated: bool | None = None
    stop_type: Literal["eos", "limit", "word"] | None = None
    stopping_word: str | None = None
    timings: Timings | None = None
    prompt_progress: PromptProgress | None = None
