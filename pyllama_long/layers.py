"""A model's layers by what is said of them: `0-4, 6 (sliding window)`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Reasons = Sequence[tuple[int, str]]  # a layer, and what is said of it; "" is nothing


def read(text: str) -> list[tuple[int, str]]:
    """Lines of `<layer>\\t<reason>`, as the native library writes them; there may be more columns."""
    rows = (line.split("\t") for line in text.splitlines() if "\t" in line)
    return [(int(row[0]), row[1]) for row in rows]


def by_reason(layers: Reasons) -> dict[str, list[int]]:
    """The layers with a reason, in order of the first layer of each."""
    found: dict[str, list[int]] = {}
    for layer, reason in layers:
        if reason:
            found.setdefault(reason, []).append(layer)
    return found


def spans(layers: Iterable[int]) -> str:
    """Ascending numbers, neighbours as one span: `0-4, 6`."""
    found: list[list[int]] = []
    for layer in layers:
        if found and layer == found[-1][1] + 1:
            found[-1][1] = layer
        else:
            found.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def describe(layers: Reasons) -> str:
    """The layers with a reason, and the reasons; "" if there is none."""
    return "; ".join(f"{spans(group)} ({reason})" for reason, group in by_reason(layers).items())
