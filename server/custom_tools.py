"""Tools that take one text: to the model they are functions of `input`."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

_INPUT = re.compile(r'\s*\{\s*"input"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)', re.DOTALL)
_CUT_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\u[0-9a-fA-F]{0,3}\Z")


def arguments_of(text: str) -> str:
    """Wraps the text as arguments of a function."""
    return json.dumps({"input": text}, ensure_ascii=False)


def input_of(arguments: str) -> str:
    """The text in the arguments of such a function, which may be cut; all of the arguments if they have another
    form."""
    found: Any = None
    try:
        found = json.loads(arguments, strict=False)
    except (ValueError, RecursionError):
        if match := _INPUT.match(arguments):
            whole = _CUT_ESCAPE.sub(r"\1", match[1])
            with suppress(ValueError):  # an escape that JSON does not know
                found = json.loads(f'"{whole}"', strict=False)
    if isinstance(found, dict):
        found = found.get("input", next(iter(found.values())) if len(found) == 1 else None)
    text = found if isinstance(found, str) else arguments
    return text.encode(errors="ignore").decode()  # without half of a surrogate pair
