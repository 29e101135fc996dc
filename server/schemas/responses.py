"""/v1/responses: text, function and custom tools."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from .common import (
    MAX_LOGPROBS,
    MAX_TOOLS,
    Body,
    JsonObject,
    Overflowing,
    OverflowReport,
    Reply,
    Timings,
    TokenLimit,
    few,
)
from .conversation import NAME, CustomFormat, OneTool, OtherTool, Part

# Items about tools that are left out; this model wrote nothing of them.
LEFT_OUT = frozenset(
    "web_search_call file_search_call code_interpreter_call image_generation_call mcp_list_tools mcp_call "
    "mcp_approval_request mcp_approval_response computer_call computer_call_output local_shell_call "
    "local_shell_call_output shell_call shell_call_output apply_patch_call apply_patch_call_output compaction "
    "tool_search_call tool_search_output additional_tools program program_output".split()
)


MAX_METADATA = 64  # pairs; OpenAI takes 16, of 64 and 512 characters
MetaKey = Annotated[str, Field(max_length=256)]
MetaValue = Annotated[str, Field(max_length=2048)]


class InputPart(Part):
    pass


class InputItem(Body):
    """A message, a tool call, its result, reasoning, or a reference to a kept item."""

    harmless: ClassVar[frozenset[str]] = frozenset("status phase caller encrypted_content created_by".split())

    type: str | None = Field(None, max_length=64)
    id: str | None = Field(None, max_length=256)
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = Field(None, max_length=256)
    name: str | None = Field(None, max_length=256)
    arguments: str | None = None
    input: str | None = None
    output: str | list[InputPart] | None = None
    summary: list[InputPart] | None = None

    @property
    def is_read(self) -> bool:
        return self.type not in LEFT_OUT

    @property
    def reference(self) -> str | None:
        """The id of the kept item that it refers to."""
        if self.type == "item_reference":
            return self.id or ""
        return self.id if self.type is None and self.role is None else None


class FunctionTool(Body):
    type: Literal["function"]
    name: str = Field(min_length=1, max_length=64, pattern=NAME)
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class ResponsesCustomTool(Body):
    """A tool whose input is one text."""

    type: Literal["custom"]
    name: str = Field(min_length=1, max_length=64, pattern=NAME)
    description: str | None = None
    format: CustomFormat | None = None


AnyTool = OneTool[FunctionTool, ResponsesCustomTool]


class NamedChoice(Body):
    type: Literal["function", "custom"]
    name: str


class ResponsesAllowedChoice(Body):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedChoice | OtherTool] = Field(max_length=MAX_TOOLS)


class TextFormat(Body):
    harmless: ClassVar[frozenset[str]] = frozenset({"description"})

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: JsonObject | None = Field(None, alias="schema")
    strict: bool | None = None


class ReasoningOptions(Body):
    effort: str | None = Field(None, max_length=64)


class TextOptions(Body):
    format: TextFormat | None = None


class ResponsesRequest(Overflowing):
    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=100_000)]
    instructions: str | None = None
    max_output_tokens: TokenLimit = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    tools: Annotated[list[AnyTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | ResponsesAllowedChoice | None = None
    truncation: Literal["auto", "disabled"] | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    store: bool | None = Field(None, description="false: it is not kept.")
    background: bool | None = None
    metadata: (
        Annotated[dict[MetaKey, MetaValue], Field(max_length=MAX_METADATA), few(MAX_METADATA)] | None
    ) = None


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


class CustomCall(Reply):
    type: Literal["custom_tool_call"] = "custom_tool_call"
    id: str
    call_id: str
    name: str
    input: str
    status: Status


class Reasoning(Reply):
    type: Literal["reasoning"] = "reasoning"
    id: str
    summary: list[JsonObject] = Field(default_factory=list)
    content: list[ReasoningText]
    status: Status


OutputItem = OutputMessage | FunctionCall | CustomCall | Reasoning


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
    previous_response_id: str | None = None
    store: bool
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


class ResponseDeleted(Reply):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


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
        "response.custom_tool_call_input.delta",
        "response.custom_tool_call_input.done",
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
    input: str | None = None
    logprobs: list[JsonObject] | None = None
    prompt_progress: dict[str, Any] | None = None
