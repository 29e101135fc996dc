"""A request's options for the model's template, besides its messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request as HttpRequest

from . import fields
from .errors import bad
from .schemas.conversation import Message, Talk
from .state import Loaded
from .tools import Tools

_RESERVED = {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"}
_COMMON = {
    "enable_thinking",
    "thinking",
    "reasoning_effort",
}  # sent to every model; those without the feature ignore it
_SWITCHES = ("enable_thinking", "thinking")  # names by which templates read whether the model reasons


@dataclass(frozen=True)
class TemplateOptions:
    """tools: those that may be called. answer: the model's answer follows. continued: whether a last message of the
    assistant is continued. values: the template's own variables."""

    tools: Tools = field(default_factory=Tools)
    answer: bool = True
    continued: bool | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(
        http: HttpRequest,
        loaded: Loaded,
        request: Talk,
        messages: Sequence[Message],
        names: Mapping[str, str] | None = None,
    ) -> TemplateOptions:
        """A request's options for the template; fields that it does not read are named in the answer's header. names:
        what clients call the fields, by their names in a chat. Raises ApiError."""
        tools = Tools.of(request)
        values, unread = _values(loaded, request)
        named = any(m.name and m.role not in ("tool", "function") for m in messages)
        if named and not loaded.chat_template().shows_names:
            unread.append("messages[].name")
        fields.ignored(http, *((names or {}).get(name, name) for name in unread))
        answer = request.add_generation_prompt is not False
        return TemplateOptions(tools, answer, request.continue_final_message, values)


PLAIN = TemplateOptions()


def _values(loaded: Loaded, request: Talk) -> tuple[dict[str, Any], list[str]]:
    """The template's own variables that a request sets, and the names of fields that the template does not read.
    Raises ApiError for names in chat_template_kwargs that are the server's or unknown."""
    template = loaded.chat_template()
    known, given = template.variables, request.chat_template_kwargs or {}
    values: dict[str, Any] = {}
    unread = []
    for name, value in given.items():
        if name in _RESERVED:
            raise bad(f"chat_template_kwargs: {name!r} is set by the server.", "chat_template_kwargs")
        if name in known:
            values[name] = value
        elif name not in _COMMON:
            message = f"chat_template_kwargs: the model's chat template reads no {name!r}."
            raise bad(message, "chat_template_kwargs")
    asked = [("enable_thinking", request.enable_thinking), ("reasoning_effort", request.reasoning_effort)]
    common = [(f"chat_template_kwargs.{name}", given[name]) for name in _COMMON & given.keys() - known]
    switch = next((name for name in _SWITCHES if name in known), None)
    for path, value in [*common, *asked]:
        name, wanted = path.rpartition(".")[2], value
        if name == "reasoning_effort" and name not in known:
            name, wanted = _SWITCHES[0], False if value == "none" else value
        if value is None:
            continue
        if name in known:
            values.setdefault(name, wanted)
        elif name in _SWITCHES and switch is not None and isinstance(wanted, bool):
            values.setdefault(switch, wanted)
        elif not (isinstance(wanted, bool) and wanted == template.thinks):  # it does that anyway
            unread.append(path)
    return values, unread
