"""Finds fields inside the objects of a request that nothing reads, by comparing what was sent with what was
parsed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Any, get_args

from pydantic import BaseModel

from .schemas.common import Body

_MAX_LOOKS = 200_000  # objects, and unknown fields, that are looked at; about 0.1 s
_MAX_NAMES = 33  # one more than are shown
_MAX_CHARS = 48  # characters of a field's own name
_NOTHING: tuple[Any, ...] = (None, False, "", [], {})
MORE = "..."


def is_nothing(value: Any) -> bool:
    """Whether a value means the same as leaving the field out: null, false or empty."""
    return any(value is none or (type(value) is type(none) and value == none) for none in _NOTHING)


def inside(request: BaseModel, sent: Any) -> list[str]:
    """Paths such as `messages[].content[].foo`, each once, of fields below the top level. sent: the JSON of the
    request."""
    return _Search().names(request, sent)


class _Search:
    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._left = _MAX_LOOKS

    def names(self, request: BaseModel, sent: Any) -> list[str]:
        if isinstance(sent, dict):
            self._below(request, sent, "")
        return [*self._names, *([MORE] if self._left <= 0 else [])]

    def _below(self, model: BaseModel, sent: dict[str, Any], path: str) -> None:
        for name, key in _shape(type(model))[1]:
            value = getattr(model, name)
            if value is not None and key in sent:
                self._look(value, sent[key], f"{path}{key}")

    def _look(self, value: Any, sent: Any, path: str) -> None:
        if isinstance(value, list):
            if isinstance(sent, list):
                for one, was in zip(value, sent, strict=False):
                    if self._left <= 0 or len(self._names) >= _MAX_NAMES:
                        return
                    self._look(one, was, f"{path}[]")
        elif isinstance(value, Body) and isinstance(sent, dict):
            self._left -= 1
            known = _shape(type(value))[0]
            if not (sent.keys() <= known) and value.is_read:
                for key in islice(sent, self._left + 1):  # in the client's order
                    self._left -= 1
                    if key not in known and not is_nothing(sent[key]):
                        if len(self._names) >= _MAX_NAMES:
                            return
                        self._names[f"{path}.{key[:_MAX_CHARS] or '?'}"] = None
            if value.is_read:
                self._below(value, sent, f"{path}.")


@cache
def _shape(kind: type[BaseModel]) -> tuple[frozenset[str], tuple[tuple[str, str], ...]]:
    """Keys that a model reads or that are harmless, and (field, key) for fields that may contain other models."""
    keys = {name: field.alias or name for name, field in kind.model_fields.items()}
    holding = [
        (name, keys[name]) for name, field in kind.model_fields.items() if any(_models(field.annotation))
    ]
    harmless: frozenset[str] = kind.harmless if issubclass(kind, Body) else frozenset()
    return frozenset(keys.values()) | harmless, tuple(holding)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
