"""The chat templates that a model's file carries, as llama_cpp's chat handlers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from pyllama_long._native import llama_chat_format
from pyllama_long.model import Model
from pyllama_long.template import Ask, ChatTemplate


def chat_formats(model: Model, metadata: Mapping[str, str], eos: int, bos: int) -> dict[str, Any]:
    """Chat handlers for the templates that the GGUF carries, by name."""
    prefix = "tokenizer.chat_template"
    templates = {
        key[len("tokenizer.") :]: text for key, text in metadata.items() if key.startswith(f"{prefix}.")
    }
    if prefix in metadata:
        templates["chat_template.default"] = metadata[prefix]
    text = {token: model.token_get_text(token) if token != -1 else "" for token in (eos, bos)}
    handlers = {}
    for name, source in templates.items():
        try:
            template = ChatTemplate(source, text[bos], text[eos], ())
        except ValueError as error:
            warnings.warn(f"{name} of {model.path_model}: {error}", stacklevel=4)
            continue
        formatter = _formatter(template, text[eos])
        handlers[name] = llama_chat_format.chat_formatter_to_chat_completion_handler(formatter)
    return handlers


def _formatter(template: ChatTemplate, eos: str) -> Any:
    """Wraps a model's own template for llama_cpp."""

    def render(*, messages: Sequence[Any], tools: Any = None, **_: Any) -> Any:
        found = template.render([_as_text(message) for message in messages], Ask(tools or ()))
        return llama_chat_format.ChatFormatterResponse(
            prompt=found.text, stop=[eos] if eos else [], added_special=True
        )

    return render


def _as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with its parts joined into one text. Raises ValueError for parts that are not text."""
    content = message.get("content")
    if isinstance(content, list):
        kinds = [part.get("type") for part in content if part.get("type") != "text"]
        if kinds:
            raise ValueError(f"this model reads text; it cannot take a part of type {kinds[0]!r}")
        content = "".join(part.get("text") or "" for part in content)
    return {**message, "content": content}
