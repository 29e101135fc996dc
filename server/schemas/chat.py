"""/v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .common import (
    MAX_BIAS,
    MAX_LOGPROBS,
    MAX_N,
    Bias,
    Body,
    JsonObject,
    Overflowing,
    OverflowReport,
    PromptProgress,
    Reply,
    Stop,
    Stops,
    StreamOptions,
    Timings,
    TokenLimit,
    Usage,
    few,
)
from .conversation import Message, Talk


class JsonSchema(Body):
    name: str | None = None
    description: str | None = None
    schema_: JsonObject | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: JsonObject | None = Field(None, alias="schema", description="As llama-server takes it.")


class ChatRequest(Talk, Overflowing):
    messages: list[Message] = Field(min_length=1, max_length=100_000)
    max_tokens: TokenLimit = None
    max_completion_tokens: TokenLimit = None
    n: int | None = Field(None, ge=1, le=MAX_N)
    stop: Stop | Stops | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIAS), few(MAX_BIAS)] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    grammar: str | None = Field(None, description="GBNF, as llama-server takes it.")
    parallel_tool_calls: bool | None = None
    stream_options: StreamOptions | None = None


class TopLogprob(Reply):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Reply):
    content: list[TokenLogprob]
    refusal: None = None


class Called(Reply):
    name: str
    arguments: str


class ToolCall(Reply):
    id: str
    type: Literal["function"] = "function"
    function: Called


class CalledInput(Reply):
    name: str
    input: str


class CustomToolCall(Reply):
    id: str
    type: Literal["custom"] = "custom"
    custom: CalledInput


class Answer(Reply):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall | CustomToolCall] | None = None


FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class ChatChoice(Reply):
    index: int
    message: Answer
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatReply(Reply):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    timings: Timings | None = None
    overflow: OverflowReport | None = None
    ignored: list[str] | None = Field(None, description="Tools that are left out of the prompt.")


class CalledDelta(Reply):
    name: str | None = None
    arguments: str | None = None


class CalledInputDelta(Reply):
    name: str | None = None
    input: str | None = None


class ToolCallDelta(Reply):
    index: int
    id: str | None = None
    type: Literal["function", "custom"] | None = None
    function: CalledDelta | None = None
    custom: CalledInputDelta | None = None


class Delta(Reply):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(Reply):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(Reply):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    timings: Timings | None = None
    overflow: OverflowReport | None = None
    ignored: list[str] | None = None
    prompt_progress: PromptProgress | None = None
