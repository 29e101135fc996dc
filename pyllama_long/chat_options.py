"""Options of a chat that llama-cpp-python would ignore: translated into ones that it acts on, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CHOICES = ("none", "auto", "required")


def settled(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of create_chat_completion, by name. Raises ValueError for what would be ignored."""
    messages = options["messages"]
    if isinstance(messages, str) or not all(isinstance(m, Mapping) and m.get("role") for m in messages):
        raise ValueError("messages: give a list of {'role': ..., 'content': ...}")
    if not messages:
        raise ValueError("there are no messages: give one or more")
    found = dict(options)
    found["response_format"] = _format(options.get("response_format"))
    found["tool_choice"] = _choice(options.get("tool_choice"), options.get("tools") or [])
    return found


def _format(given: Any) -> Any:
    """Puts a JSON schema where llama-cpp-python looks for it."""
    if given is None:
        return None
    kind = given.get("type") if isinstance(given, Mapping) else given
    if kind in ("text", "json_object"):
        return given
    if kind != "json_schema":
        raise ValueError(f"response_format: {kind!r} is no type; known: text, json_object, json_schema")
    named = given.get("json_schema")
    schema = named.get("schema") if isinstance(named, Mapping) else None
    if schema is None:
        raise ValueError("response_format: json_schema needs a schema: {'json_schema': {'schema': ...}}")
    return {"type": "json_object", "schema": schema}


def _choice(given: Any, tools: list[Any]) -> Any:
    """`required` with one tool means that tool. With several, only the server can force a call, since it knows the
    model's format."""
    if not isinstance(given, str) or given in _CHOICES[:2]:
        return given
    if given not in _CHOICES:
        raise ValueError(f"tool_choice: {given!r}; known: {', '.join(_CHOICES)}, or a tool by its name")
    if len(tools) != 1:
        raise ValueError(
            f"tool_choice: 'required' takes one tool here, and there are {len(tools)}: name the one that is meant "
            "({'type': 'function', 'function': {'name': ...}}), or ask the server, which forces any of them"
        )
    return {"type": "function", "function": {"name": tools[0]["function"]["name"]}}
