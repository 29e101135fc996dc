"""Filters and tests of templates, with the size of their input and output counted."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from jinja2.runtime import Undefined

from pyllama_long.sandbox_budget import BUDGET, DATA, PLAIN, VIEWS, Budget, TooMuch

MAX_WIDTH = 1000  # padding of one value, or digits of a number
MAX_BITS = 4096  # of an integer
FILTER_NAMES = (
    "abs batch capitalize count d default dictsort escape e first float groupby indent int items join last length list "
    "lower map max min reject rejectattr replace reverse round select selectattr slice sort string sum title trim "
    "truncate unique upper wordcount"
).split()
_COUNTED = {
    "batch",
    "slice",
    "indent",
    "truncate",
    "round",
}  # filters with a number of items or characters as argument


def bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that counts the size of its input and output."""
    n_own = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        budget = BUDGET.get()
        budget.tick()
        taken = [listed(value) for value in args[n_own:]]
        named = {key: listed(value) for key, value in kwargs.items()}
        for value in (*taken, *named.values()):
            budget.weigh(value)
            if (
                name in _COUNTED
                and isinstance(value, int)
                and abs(value) > MAX_WIDTH
                and value is not taken[0]
            ):
                raise TooMuch(f"{name} is given {value:,}, more than {MAX_WIDTH:,}")
        _check_filter(name, budget, taken, named)
        result = function(*args[:n_own], *taken, **named)
        if isinstance(result, Iterator):
            items = list(result)
            budget.tick(budget.weigh(items))
            return iter(items)
        if not isinstance(result, PLAIN):
            budget.tick(budget.weigh(result))
        return result

    return run


def _check_filter(name: str, budget: Budget, taken: list[Any], named: dict[str, Any]) -> None:
    """Raises TooMuch before a filter makes much more than it was given."""
    value = taken[0] if taken else ""
    if name == "replace" and len(taken) > 2:
        budget.room(replaced(str(value), [str(part) for part in taken[1:3]]))
    elif name == "join":
        given = taken[1] if len(taken) > 1 else named.get("d", "")
        budget.room(joined(budget, str(given), value))
    elif name == "indent":
        width = taken[1] if len(taken) > 1 else named.get("width", 4)
        width = len(width) if isinstance(width, str) else width
        budget.room(len(str(value)) + (str(value).count("\n") + 1) * int(width))
    if name == "sum" and not isinstance(named.get("start", taken[2] if len(taken) > 2 else 0), (int, float)):
        raise TooMuch("it adds up what are no numbers")


def check_product(budget: Budget, left: Any, right: Any) -> None:
    for many, times in ((left, right), (right, left)):
        if isinstance(many, (str, list, tuple)) and isinstance(times, int):
            budget.room(budget.weigh(many) * max(times, 0))
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > MAX_BITS:
        raise TooMuch(f"it makes an integer of more than {MAX_BITS} bits")


def _items(value: Any) -> Any:
    return value if isinstance(value, (*DATA, str)) else ()


def replaced(text: str, args: Any) -> int:
    old, new = args[0], args[1]
    return len(text) + text.count(old) * len(new) if isinstance(old, str) and isinstance(new, str) else 0


def joined(budget: Budget, separator: str, items: Any) -> int:
    return budget.weigh(items) + len(separator) * len(_items(items))


def listed(value: Any) -> Any:
    """The items of an iterator as a list, so that their size can be counted."""
    return list(value) if isinstance(value, Iterator) else value


def weighed(value: Any) -> Any:
    if not isinstance(value, str):
        BUDGET.get().weigh(value)
    return value


def made(value: Any) -> Any:
    budget = BUDGET.get()
    budget.tick(budget.weigh(value))
    return value


def concat(parts: list[Any]) -> str:
    return "".join("" if isinstance(part, Undefined) else str(part) for part in parts)


def safe(value: Any) -> str:
    return str(value)


def escaped(value: Any) -> str:
    return html.escape(str(value))


def to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    """The filter as in Hugging Face; jinja2's own writes < as \\u003c for HTML."""
    if isinstance(indent, str) or (indent is not None and indent > 64):
        raise TooMuch("tojson is given an indent of more than 64")
    separators = options.get("separators")
    if separators is not None and sum(map(len, separators)) > 64:
        raise TooMuch("tojson is given separators of more than 64 characters")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=bool(options.get("sort_keys", False)),
        default=_no_json,
    )
    if indent is None:
        return encoder.encode(value)
    budget = BUDGET.get()
    written: list[str] = []
    for chunk in encoder.iterencode(value):
        budget.room(len(chunk))
        budget.left -= len(chunk)
        written.append(chunk)
    return "".join(written)


def _no_json(value: Any) -> Any:
    if isinstance(value, VIEWS):
        return [*iter(value)]
    raise TypeError(f"{type(value).__name__} is not of JSON")
