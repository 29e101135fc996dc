"""Turns a request of the responses API into a chat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from . import lanes
from .errors import ApiError, bad, converting
from .response_store import ResponseStore
from .schemas.chat import ChatRequest
from .schemas.common import Overflowing
from .schemas.conversation import OtherTool
from .schemas.responses import (
    LEFT_OUT,
    FunctionTool,
    InputItem,
    InputPart,
    NamedChoice,
    ResponsesAllowedChoice,
    ResponsesCustomTool,
    ResponsesRequest,
)
from .tools import is_told

_SAME = {*Overflowing.model_fields, "parallel_tool_calls", "top_logprobs"} - {"stream", "return_progress"}
_MAX_ITEMS = 100_000  # of a conversation
_ITEMS = TypeAdapter(list[InputItem])
_NOT_KEPT = "This server keeps responses in memory until newer ones need the room, each key's apart: send the whole {}."


@converting()
def as_chat(request: ResponsesRequest, items: Sequence[InputItem]) -> ChatRequest:
    """The same request as a chat with these items."""
    made = request.model_dump(include=_SAME, exclude_none=True)
    made["messages"] = _messages(request.instructions, items)
    made["max_completion_tokens"] = request.max_output_tokens
    if request.top_logprobs is not None:
        made["logprobs"] = True
    if request.truncation == "auto" and request.overflow is None:
        made["overflow"] = "shift"  # OpenAI's meaning of that name
    if request.reasoning is not None:
        made["reasoning_effort"] = request.reasoning.effort
    if tools := [_tool(tool) for tool in request.tools or () if not isinstance(tool, OtherTool)]:
        made["tools"] = tools
    choice = request.tool_choice
    if isinstance(choice, ResponsesAllowedChoice):
        named = [_named(one.name) for one in choice.tools if isinstance(one, NamedChoice)]
        allowed = {"mode": choice.mode, "tools": named}
        made["tool_choice"] = {"type": "allowed_tools", "allowed_tools": allowed}
    elif choice is not None:
        made["tool_choice"] = choice if isinstance(choice, str) else _named(choice.name)
    form = request.text.format if request.text is not None else None
    if form is not None:
        made["response_format"] = {"type": form.type}
        if form.type == "json_schema":
            made["response_format"]["json_schema"] = {"name": form.name, "schema": form.schema_}
    return ChatRequest.model_validate(made)


@dataclass(frozen=True)
class Conversation:
    """items: of the conversation so far. own: those of the request, as JSON, so that it can be continued later."""

    items: list[InputItem]
    own: bytes

    @staticmethod
    def of(request: ResponsesRequest, store: ResponseStore, salt: str) -> Conversation:
        """Includes the items that the request refers to. Raises ApiError if one is missing."""
        given = request.input
        own = [InputItem(role="user", content=given)] if isinstance(given, str) else given
        before = _before(request.previous_response_id, store, salt)
        wanted = {one for item in own if (one := item.reference) is not None}
        if wanted:
            found = store.items(salt, wanted)
            for lost in sorted(wanted - found.keys()):
                message = f"Item with id {lost[:64]!r} not found. {_NOT_KEPT.format('items')}"
                raise ApiError(
                    404, message, type="invalid_request_error", param="input", code="item_not_found"
                )
            own = [
                item if (one := item.reference) is None else InputItem.model_validate(found[one])
                for item in own
            ]
        if len(before) + len(own) > _MAX_ITEMS:
            raise bad(f"input: more than {_MAX_ITEMS} items with those of previous_response_id.", "input")
        return Conversation([*before, *own], _ITEMS.dump_json(own, exclude_none=True))


def _before(id: str | None, store: ResponseStore, salt: str) -> list[InputItem]:
    """The items of a kept response and of those that it continues, with their answers."""
    if id is None:
        return []
    chain = store.chain(salt, id)
    if chain is None:
        message = f"Previous response with id {id[:64]!r} not found. {_NOT_KEPT.format('conversation')}"
        raise bad(message, "previous_response_id", "previous_response_not_found")
    found = []
    for kept in chain:
        lanes.check()
        found += _ITEMS.validate_json(kept.sent)
        found += [InputItem.model_validate(item) for item in json.loads(kept.reply)["output"]]
    return found


def left_out(request: ResponsesRequest) -> list[str]:
    """Names of tools and items that are left out of the prompt, and of grammars that only the prompt describes."""
    found = []
    for i, tool in enumerate(request.tools or ()):
        if isinstance(tool, OtherTool):
            found.append(f"tools.{i}.{tool.type}")
        elif isinstance(tool, ResponsesCustomTool) and is_told(tool.format):
            found.append(f"tools.{i}.format")
    items = request.input if isinstance(request.input, list) else []
    return [*found, *(f"input.{i}.{item.type}" for i, item in enumerate(items) if item.type in LEFT_OUT)]


def _named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def _tool(tool: FunctionTool | ResponsesCustomTool) -> dict[str, Any]:
    return {"type": tool.type, tool.type: tool.model_dump(exclude={"type"}, exclude_none=True)}


def _messages(instructions: str | None, items: Sequence[InputItem]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    thought = ""  # before the next message of the assistant
    for item in items:
        if item.type == "reasoning":
            thought += _thought(item)
            continue
        n = len(messages)
        _add(messages, item)
        last = messages[-1] if messages else {}
        if thought and last.get("role") == "assistant" and item.type not in LEFT_OUT:
            last.setdefault("reasoning_content", thought)
        if len(messages) > n or last.get("reasoning_content"):
            thought = ""
    if not messages:
        raise bad("input: there is no message in it.", "input")
    return messages


def _thought(item: InputItem) -> str:
    """The text of reasoning, or its summary if there is nothing else."""
    parts = item.content if item.content else item.summary or []
    return parts if isinstance(parts, str) else "".join(part.text or "" for part in parts)


def _add(messages: list[dict[str, Any]], item: InputItem) -> None:
    if item.type in ("function_call", "custom_tool_call"):
        if not item.name:
            raise bad(f"input: a {item.type} needs a name.", "input")
        kind, made = "function", {"name": item.name, "arguments": item.arguments or ""}
        if item.type == "custom_tool_call":
            kind, made = "custom", {"name": item.name, "input": item.input or ""}
        call = {"id": item.call_id, "type": kind, kind: made}
        if messages and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("tool_calls", []).append(call)
        else:
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
    elif item.type in ("function_call_output", "custom_tool_call_output"):
        messages.append({"role": "tool", "content": _parts(item.output), "tool_call_id": item.call_id})
    elif item.type in (None, "message"):
        if item.role is None:
            raise bad("input: a message needs a role.", "input")
        messages.append({"role": item.role, "content": _parts(item.content)})
    elif item.type not in LEFT_OUT:
        raise bad(f"input: this server cannot take items of type {item.type!r}.", "input")


def _parts(content: str | list[InputPart] | None) -> Any:
    """The parts as text for the template, with notes for those that are not text."""
    if content is None or isinstance(content, str):
        return content or ""
    return [part.model_dump(include={"type", "text", "refusal"}) for part in content]
