"""Messages of the APIs for chat templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyllama_long import template
from pyllama_long.conversation import arguments
from pyllama_long.sandbox import Stopped
from pyllama_long.server import lanes
from pyllama_long.server.errors import ApiError, bad
from pyllama_long.server.schemas.chat import Message, Tool
from pyllama_long.template import Ask, Rendered, TemplateRefusal

_TEXTS = ("text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text")


class ChatTemplate(template.ChatTemplate):
    def rendered(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool = True,
        continue_final_message: bool | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> Rendered:
        """Raises ApiError when the template refuses the messages, the last one has more than text in it, or the work is
        over."""
        check_last(messages)
        given = [tool.model_dump(exclude_none=True) for tool in tools]
        ask = Ask(given, add_generation_prompt, continue_final_message, values, stopped=lanes.is_over)
        try:
            return self.render([plain(message) for message in messages], ask)
        except TemplateRefusal as error:
            raise bad(str(error), "messages", error.code) from None
        except Stopped:
            lanes.check()
            raise ApiError(499, "The client has gone.", code="client_closed_request") from None


def check_last(messages: Sequence[Message]) -> None:
    """Raises ApiError when the last message is a user's and has parts that are not text. In earlier ones, which a
    client cannot take back, and in results of tools a note stands for them."""
    last = messages[-1]
    if last.role == "user" and isinstance(last.content, list):
        for part in last.content:
            if part.type not in _TEXTS:
                raise bad(f"This model reads text; it cannot take a part of type {part.type!r}.", "messages")


def content_text(message: Message) -> str:
    """The text of a message, with notes for parts that are none."""
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    texts = []
    for part in message.content:
        if part.type in _TEXTS:
            texts.append((part.refusal if part.type == "refusal" else part.text) or "")
        else:
            texts.append(
                f"[{part.type.removeprefix('input_').replace('_', ' ')} left out: this model reads text]"
            )
    return "".join(texts)


def plain(message: Message) -> dict[str, Any]:
    """A message as templates have it."""
    found = message.model_dump(exclude_none=True)
    return {**found, "content": content_text(message)}


__all__ = ["ChatTemplate", "Rendered", "arguments", "content_text", "plain"]
