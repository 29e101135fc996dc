"""/v1/messages: Anthropic's API."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from .common import (
    MAX_TOKENS,
    MAX_TOOLS,
    Body,
    JsonObject,
    Open,
    Overflowing,
    OverflowReport,
    Reply,
    Stops,
    Timings,
)


class Block(Body):
    """A part of a message. type: text, tool_use, tool_result or thinking."""

    harmless: ClassVar[frozenset[str]] = frozenset({"cache_control", "citations", "signature", "caller"})

    type: str = Field(max_length=64)
    text: str | None = None
    thinking: str | None = None
    id: str | None = Field(None, max_length=256)
    name: str | None = Field(None, max_length=256)
    input: JsonObject | None = None
    tool_use_id: str | None = Field(None, max_length=256)
    content: str | list[Block] | None = None
    is_error: bool | None = None

    @property
    def is_read(self) -> bool:
        return self.type in ("text", "tool_use", "tool_result", "thinking")


class MessageInput(Body):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class ToolInput(Body):
    """A tool of the client with a schema, or one of a type that Anthropic defines."""

    harmless: ClassVar[frozenset[str]] = frozenset({"cache_control", "strict", "eager_input_streaming"})

    type: str | None = Field(None, max_length=64)
    name: str | None = Field(None, min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")
    description: str | None = None
    input_schema: JsonObject | None = None

    @property
    def own(self) -> bool:
        return self.type in (None, "custom")

    @property
    def is_read(self) -> bool:
        return self.own

    @model_validator(mode="after")
    def _whole(self) -> ToolInput:
        if self.own and (self.name is None or self.input_schema is None):
            raise ValueError("a tool needs a name and an input_schema")
        return self


class ToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class OutputFormat(Body):
    type: Literal["json_schema"]
    schema_: JsonObject = Field(alias="schema")


class OutputConfig(Body):
    format: OutputFormat | None = None
    effort: str | None = None


class Thinking(Body):
    type: str = Field(max_length=64, description="enabled, disabled or adaptive, which is as the model does.")


class CountRequest(Open):
    model: str | None = Field(None, max_length=1024)
    messages: list[MessageInput] = Field(min_length=1, max_length=100_000)
    system: str | list[Block] | None = None
    tools: Annotated[list[ToolInput], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest, Overflowing):
    max_tokens: int = Field(ge=1, le=MAX_TOKENS)
    stop_sequences: Stops | None = None


class CountReply(Reply):
    input_tokens: int


class TextBlock(Reply):
    type: Literal["text"] = "text"
    text: str


class ThinkingBlock(Reply):
    type: Literal["thinking"] = "thinking"
    thinking: str
    signature: str = ""


class ToolUseBlock(Reply):
    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: JsonObject


OutBlock = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(Reply):
    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int


class QuietUsage(Reply):
    """The usage in a `message_delta` that only keeps the connection open."""

    output_tokens: int


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessageReply(Reply):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[OutBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage
    timings: Timings | None = None
    overflow: OverflowReport | None = None
    ignored: list[str] | None = None


class MessageEvent(Reply):
    """The data of an event; its `type` is the event's name."""

    type: Literal[
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "ping",
    ]
    message: MessageReply | None = None
    index: int | None = None
    content_block: OutBlock | None = None
    delta: dict[str, Any] | None = None
    usage: MessageUsage | QuietUsage | None = None
