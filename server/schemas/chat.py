"""/v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from pyllama_long.server.schemas.common import (
    MAX_BIAS,
    MAX_LOGPROBS,
    MAX_N,
    MAX_TOOLS,
    Bias,
    Body,
    JsonObject,
    Most,
    Overflowing,
    OverflowReport,
    PromptProgress,
    Reply,
    Stop,
    Stops,
    Timings,
    Usage,
)


class Part(Body):
    """A part of a message; only text can be read."""

    type: str = Field(max_length=64)
    text: str | None = None
    refusal: str | None = None


class CalledFunction(Body):
    name: str = Field(min_length=1, max_length=256)
    arguments: str = ""


class CallInput(Body):
    id: str | None = Field(None, max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = Field(None, max_length=256)
    tool_calls: Annotated[list[CallInput], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: str | None = Field(None, max_length=256)
    reasoning_content: str | None = None


class Function(Body):
    name: str = Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(max_length=MAX_TOOLS)


class AllowedChoice(Body):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class JsonSchema(Body):
    name: str | None = None
    description: str | None = None
    schema_: JsonObject | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: JsonObject | None = Field(None, alias="schema", description="As llama-server takes it.")


class StreamOptions(Body):
    include_usage: bool | None = None


class ChatRequest(Overflowing):
    messages: list[Message] = Field(min_length=1, max_length=100_000)
    max_tokens: Most = None
    max_completion_tokens: Most = None
    n: int | None = Field(None, ge=1, le=MAX_N)
    stop: Stop | Stops | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIAS)] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    grammar: str | None = Field(None, description="GBNF, as llama-server takes it.")
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedChoice | None = None
    parallel_tool_calls: bool | None = None
    stream_options: StreamOptions | None = None
    add_generation_prompt: bool | None = Field(
        None, description="false: the prompt ends with the last message."
    )
    continue_final_message: bool | None = Field(
        None, description="false: a last message of the assistant is not continued, but followed by another."
    )
    chat_template_kwargs: JsonObject | None = Field(
        None, description="Names that the model's template reads."
    )
    enable_thinking: bool | None = None
    reasoning_effort: str | None = Field(None, max_length=64)

    @field_validator("tools")
    @classmethod
    def _distinct(cls, tools: list[Tool] | None) -> list[Tool] | None:
        names = [tool.function.name for tool in tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        return tools


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


class Answer(Reply):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


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


class CalledDelta(Reply):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Reply):
    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledDelta


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
    prompt_progress: PromptProgress | None = None


def as_input(messages: list[dict[str, Any]]) -> list[Message]:
    """Messages that another API's were turned into."""
    return [Message.model_validate(message) for message in messages]
