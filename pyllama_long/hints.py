"""What a GGUF says about long contexts besides the RoPE scaling in its scalar keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyllama_long.gguf_file import GGUFError, GGUFFile
from pyllama_long.rope_scaling import TENSORS

__all__ = ["Hints", "integers", "read_hints"]

_PARTIAL = ("gemma4",)  # their rope_freqs only says which pairs are never rotated


@dataclass(frozen=True)
class Hints:
    """dilated: segment lengths and rates that the model was trained with, in tokens. rope_factors: llama3 or
    longrope, if the file has tensors of such factors."""

    dilated: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    rope_factors: str | None = None


def read_hints(file: GGUFFile, architecture: str) -> Hints:
    """Raises GGUFError for numbers that cannot be right."""
    found = []
    for name in ("segment_lengths", "rates"):
        key = f"{architecture}.attention.dilated.{name}"
        value = file.values.get(key)
        if isinstance(value, tuple) and value:
            found.append(integers(file, key, value))
    names = {tensor.name for tensor in file.tensors}
    if architecture in _PARTIAL:
        names -= TENSORS.keys()
    factors = next((kind for name, kind in TENSORS.items() if name in names), None)
    return Hints((found[0], found[1]) if len(found) == 2 else None, factors)


def integers(file: GGUFFile, key: str, values: Sequence[object]) -> tuple[int, ...]:
    """The values of an array of counts. Raises GGUFError."""
    found = tuple(value for value in values if isinstance(value, int) and 0 <= value < 1 << 31)
    if len(found) < len(values):
        raise GGUFError(f"{file.path} is damaged: {key} is {values[:8]!r}")
    return found
