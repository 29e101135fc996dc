"""JSON that models and clients write inside texts, read and written strictly: nothing that JSON does not have."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_SURROGATES = re.compile("[\ud800-\udfff]")


def loads(text: str, strict: bool = True) -> Any:
    """strict: strings contain no line breaks. Raises ValueError for anything that is not JSON, including NaN and
    numbers beyond floats, and for what is nested too deeply to be read."""
    try:
        return (_STRICT if strict else _LENIENT).decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_text(value: Any) -> str:
    """A value as JSON. Half of a surrogate pair, which UTF-8 cannot contain, stays an escape."""
    return _SURROGATES.sub(lambda half: f"\\u{ord(half[0]):04x}", json.dumps(value, ensure_ascii=False))


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


_STRICT, _LENIENT = (
    json.JSONDecoder(parse_constant=_constant, parse_float=_float, strict=strict) for strict in (True, False)
)
