"""Messages of the APIs for chat templates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from pyllama_long import template
from pyllama_long.conversation import arguments
from pyllama_long.sandbox_budget import Stopped
from pyllama_long.template import Ask, Rendered, TemplateRefusal

from . import call_formats, lanes, written
from .custom_tools import arguments_of
from .errors import ApiError, bad
from .schemas.conversation import TEXTS, CustomCallInput, Message, Tool

_NAME = "Zbqx"  # which no template contains


class ChatTemplate(template.ChatTemplate):
    """shows_names: the names of users are in the prompt."""

    def __init__(self, source: str, bos: str, eos: str, control: Iterable[str]) -> None:
        super().__init__(source, bos, eos, control)
        self._written = partial(written.calls, call_formats.format_of(source))
        try:
            self.shows_names = _NAME in self.render([{"role": "user", "content": "a", "name": _NAME}]).text
        except TemplateRefusal:
            self.shows_names = False

    def rendered(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> Rendered:
        """Raises ApiError if the template refuses the messages, if the last one contains more than text, or if the
        work must end."""
        check_last(messages)
        given = [tool.model_dump(exclude_none=True) for tool in tools]
        ask = Ask(
            given,
            add_generation_prompt,
            continue_final_message,
            values,
            own=self._written,
            stopped=lanes.is_over,
        )
        try:
            return self.render([plain(message) for message in messages], ask)
        except TemplateRefusal as error:
            raise bad(str(error), "messages", error.code) from None
        except Stopped:
            lanes.check()
            raise ApiError(499, "The client has gone.", code="client_closed_request") from None


def check_last(messages: Sequence[Message]) -> None:
    """Raises ApiError if the last message is a user's and has parts that are not text. In earlier messages, which a
    client cannot take back, and in results of tools, a note replaces them."""
    last = messages[-1]
    if last.role == "user" and isinstance(last.content, list):
        for part in last.content:
            if not part.is_read:
                raise bad(f"This model reads text; it cannot take a part of type {part.type!r}.", "messages")


def content_text(message: Message) -> str:
    """The text of a message, with notes for parts that are not text."""
    if message.content is None or isinstance(message.content, str):
        return message.content or message.refusal or ""
    texts = []
    for part in message.content:
        if part.type in TEXTS:
            texts.append((part.refusal if part.type == "refusal" else part.text) or "")
        else:
            texts.append(
                f"[{part.type.removeprefix('input_').replace('_', ' ')} left out: this model reads text]"
            )
    return "".join(texts)


def plain(message: Message) -> dict[str, Any]:
    """A message in the form that templates expect."""
    found = message.model_dump(exclude_none=True, exclude={"refusal"})
    if any(isinstance(call, CustomCallInput) for call in message.tool_calls or ()):
        found["tool_calls"] = [_call(call) for call in found["tool_calls"]]
    return {**found, "content": content_text(message)}


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """A call of a tool that takes one text, as the call of a function."""
    if call["type"] != "custom":
        return call
    custom = call.pop("custom")
    made = {"name": custom["name"], "arguments": arguments_of(custom["input"])}
    return {**call, "type": "function", "function": made}


__all__ = ["ChatTemplate", "Rendered", "arguments", "content_text", "plain"]
