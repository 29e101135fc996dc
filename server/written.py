"""Earlier calls of a conversation in the model's own form, for templates that show tools and leave calls out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyllama_long.conversation import all_as_text
from pyllama_long.json_values import json_text

from .calls import DeepSeek, Format, Hermes, Objects, Python


def calls(form: Format, given: Sequence[tuple[str, Any]]) -> str:
    """given: names and arguments; these are objects, or texts if they are not objects."""
    if isinstance(form, Python):
        return f"{form.begin}[{', '.join(_python_call(name, value) for name, value in given)}]{form.end}"
    if isinstance(form, Objects) and form.listed and not form.by_name:
        objects = [f'{{"{form.name}": {json_text(n)}, "{form.arguments}": {_json(v)}}}' for n, v in given]
        return f"{form.begin}[{', '.join(objects)}]{form.end}"
    if isinstance(form, DeepSeek) and form.fenced:
        calls = "\n".join(
            f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{_json(value)}\n```<｜tool▁call▁end｜>"
            for name, value in given
        )
        return f"<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>"
    return ("" if isinstance(form, Hermes) else "\n") + all_as_text(given)


def _python_call(name: str, value: Any) -> str:
    if not isinstance(value, dict):
        return f"{name}({value})"
    return f"{name}({', '.join(f'{key}={_literal(item)}' for key, item in value.items())})"


def _literal(value: Any) -> str:
    return json_text(value) if isinstance(value, str) else repr(value)


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json_text(value)
