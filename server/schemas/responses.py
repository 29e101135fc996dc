"""/v1/responses: text and function tools."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from pyllama_long.server.schemas.common import (
    MAX_LOGPROBS,
    MAX_TOOLS,
    Body,
    JsonObject,
    Most,
    Overflowing,
    OverflowReport,
    Reply,
    Timings,
)


class InputPart(Body):
    type: str = Field(max_length=64)
    text: str | None = None
    refusal: str | None = None


class InputItem(Body):
    """A message, a function_call, a function_call_output, or reasoning."""

    type: str | None = Field(None, max_length=64)
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = Field(None, max_length=256)
    name: str | None = Field(None, max_length=256)
    arguments: str | None = None
    input: str | None = None
    output: str | list[InputPart] | None = None


class FunctionTool(Body):
    type: Literal["function"]
    name: str = Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class OtherTool(Body):
    """A tool that OpenAI's server runs, or that only some models know."""

    type: str = Field(min_length=1, max_length=64)
    name: str | None = None

    @field_validator("type")
    @classmethod
    def _other(cls, given: str) -> str:
        if given == "function":
            raise ValueError("a function needs a name")
        return given


class NamedChoice(Body):
    type: Literal["function"]
    name: str


class AllowedChoice(Body):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedChoice | OtherTool] = Field(max_length=MAX_TOOLS)


class TextFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: JsonObject | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(Body):
    format: TextFormat | None = None


class ResponsesRequest(Overflowing):
    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=100_000)]
    instructions: str | None = None
    max_output_tokens: Most = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    text: TextOptions | None = None
    tools: Annotated[list[FunctionTool | OtherTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | AllowedChoice | None = None
    truncation: Literal["auto", "disabled"] | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    metadata: dict[str, str] | None = None


class OutputText(Reply):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[JsonObject] = Field(default_factory=list)
    logprobs: list[JsonObject] = Field(default_factory=list)


class ReasoningText(Reply):
    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputMessage(Reply):
    type: Literal["message"] = "message"
    id: str
    role: Literal["assistant"] = "assistant"
    status: Status
    content: list[OutputText]


class FunctionCall(Reply):
    type: Literal["function_call"] = "function_call"
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


class Reasoning(Reply):
    type: Literal["reasoning"] = "reasoning"
    id: str
    summary: list[JsonObject] = Field(default_factory=list)
    content: list[ReasoningText]
    status: Status


OutputItem = OutputMessage | FunctionCall | Reasoning


class InputDetails(Reply):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(Reply):
    reasoning_tokens: int


class ResponsesUsage(Reply):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Incomplete(Reply):
    reason: Literal["max_output_tokens"]


class ResponsesError(Reply):
    code: str
    message: str


class ResponsesReply(Reply):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    model: str
    status: Status
    error: ResponsesError | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    output: list[OutputItem]
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    store: Literal[False] = False
    temperature: float | None = None
    text: JsonObject
    tool_choice: str | JsonObject
    tools: list[JsonObject]
    top_p: float | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    usage: ResponsesUsage | None = None
    timings: Timings | None = None
    overflow: OverflowReport | None = None
    ignored: list[str] | None = None


class ResponsesEvent(Reply):
    """The data of an event; its `type` is the event's name."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.output_item.done",
        "response.content_part.added",
        "response.content_part.done",
        "response.output_text.delta",
        "response.output_text.done",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.completed",
        "response.incomplete",
        "response.failed",
        "response.prompt_progress",
    ]
    sequence_number: int
    response: ResponsesReply | None = None
    output_index: int | None = None
    content_index: int | None = None
    item_id: str | None = None
    item: OutputItem | None = None
    part: OutputText | ReasoningText | None = None
    delta: str | None = None
    text: str | None = None
    name: str | None = None
    arguments: str | None = None
    logprobs: list[JsonObject] | None = None
    prompt_progress: dict[str, Any] | None = None
