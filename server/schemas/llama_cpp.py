"""llama.cpp's own routes: /completion, /lora-adapters, /props, /apply-template."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .common import (
    MAX_BIAS,
    MAX_LOGPROBS,
    MAX_TOKENS,
    JsonObject,
    Mixed,
    MixedPrompts,
    Open,
    PromptProgress,
    Prompts,
    Reply,
    Sampled,
    Stop,
    Stops,
    Timings,
    TokenPrompts,
    Tokens,
)
from .conversation import Message, Talk


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
    """With response_fields, only some of the fields."""

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


class TemplateRequest(Talk):
    """A chat from which only the prompt is made."""

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
