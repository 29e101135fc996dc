"""Turns a request of Anthropic's API into a chat: blocks, tools, thinking."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pyllama_long.json_values import json_text

from .client_tools import CLIENT_TOOLS
from .errors import bad, converting
from .schemas.chat import ChatRequest
from .schemas.conversation import Message
from .schemas.messages import Block, CountRequest, MessagesRequest, ToolInput

_SERVERS = ("redacted_thinking", "server_tool_use", "web_search_tool_result", "web_fetch_tool_result")
_THINKING = {"enabled": True, "disabled": False}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


@converting()
def as_chat(request: CountRequest) -> ChatRequest:
    """The same request in OpenAI's shape."""
    messages: list[Message] = []
    if request.system:
        messages.append(Message(role="system", content=_text(request.system)))
    for message in request.messages:
        messages += _messages(message.role, message.content)
    made: dict[str, Any] = {"messages": messages}
    if shown := [found for tool in request.tools or () if (found := _tool(tool)) is not None]:
        made["tools"] = shown
    choice = request.tool_choice
    if choice is not None:
        if choice.type == "tool":
            if choice.name is None:
                raise bad("tool_choice: give the name of the tool.", "tool_choice")
            made["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
        else:
            made["tool_choice"] = _CHOICES[choice.type]
        if choice.disable_parallel_tool_use:
            made["parallel_tool_calls"] = False
    if request.thinking is not None and request.thinking.type in _THINKING:
        made["enable_thinking"] = _THINKING[request.thinking.type]
    if request.output_config is not None:
        made["reasoning_effort"] = request.output_config.effort
    if isinstance(request, MessagesRequest):
        other = {"stream", *CountRequest.model_fields, "stop_sequences"} - {"model"}
        made.update(request.model_dump(include=set(type(request).model_fields) - other, exclude_none=True))
        config = request.output_config
        if config is not None and config.format is not None:
            made["response_format"] = {
                "type": "json_schema",
                "json_schema": {"schema": config.format.schema_},
            }
        made["stop"] = request.stop_sequences
    return ChatRequest.model_validate(made)


def _tool(tool: ToolInput) -> dict[str, Any] | None:
    """A tool as a function; None for one that Anthropic's servers would run."""
    told, schema = tool.description, tool.input_schema
    if not tool.own:
        kind = next(
            (one for one in CLIENT_TOOLS if tool.type and re.fullmatch(rf"{one}_\d{{8}}", tool.type)), None
        )
        if kind is None:
            return None
        told, schema = CLIENT_TOOLS[kind]
    function = {"name": tool.name, "description": told, "parameters": schema}
    return {"type": "function", "function": function}


def left_out(request: CountRequest) -> list[str]:
    """Names of tools that are left out of the prompt."""
    return [f"tools.{i}.{tool.type}" for i, tool in enumerate(request.tools or ()) if _tool(tool) is None]


def _text(content: str | Sequence[Block]) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for block in content:
        if block.type != "text" or block.text is None:
            raise bad(f"This model reads text; it cannot take a block of type {block.type!r}.", "messages")
        texts.append(block.text)
    return "".join(texts)


def _parts(content: str | Sequence[Block]) -> Any:
    """The parts as text for the template, with notes for those that are not text."""
    return content if isinstance(content, str) else [{"type": b.type, "text": b.text} for b in content]


def _result(block: Block) -> Any:
    """A tool's result; it says that the tool failed if the client says so."""
    content = _parts(block.content or "")
    if not block.is_error:
        return content
    start = content if isinstance(content, str) else next((p["text"] or "" for p in content), "")
    if "error" in start[:64].lower():
        return content
    return (
        f"Error: {content}" if isinstance(content, str) else [{"type": "text", "text": "Error: "}, *content]
    )


def _messages(role: Any, content: str | Sequence[Block]) -> list[Message]:
    """Turns a message of blocks into OpenAI's messages; results of tools become messages of their own."""
    if isinstance(content, str):
        return [Message(role=role, content=content)]
    results: list[Message] = []
    parts: list[dict[str, Any]] = []
    called, thought = [], ""
    for block in content:
        if block.type == "tool_result":
            result = {
                "role": "tool",
                "content": _result(block),
                "tool_call_id": block.tool_use_id,
            }
            results.append(Message.model_validate(result))
        elif block.type == "tool_use":
            if not block.name:
                raise bad("A tool_use block needs a name.", "messages")
            function = {"name": block.name, "arguments": json_text(block.input or {})}
            called.append({"id": block.id, "type": "function", "function": function})
        elif block.type == "thinking":
            thought += block.thinking or ""
        elif block.type not in _SERVERS:
            parts += _parts([block])
    if parts or called or thought or not results:
        own = {"role": role, "content": parts, "tool_calls": called or None}
        results.append(Message.model_validate({**own, "reasoning_content": thought or None}))
    return results
