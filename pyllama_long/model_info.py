"""What a GGUF file says about its model: shape, trained length, RoPE keys, memory that a context takes."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from math import isfinite

from pyllama_long.context_options import KV_TYPES
from pyllama_long.gguf_file import GGUFError, GGUFFile, read_parts
from pyllama_long.hints import integers, read_hints
from pyllama_long.rope_scaling import read_scaling

__all__ = ["ModelInfo", "model_info"]

# Architectures that llama.cpp knows to have ALiBi, besides those whose files say so.
_ALIBI = ("bloom", "refact")


@dataclass(frozen=True)
class ModelInfo:
    """Counts are 0 if the file does not say. n_train: with the RoPE scaling that the file carries. kv_heads has one
    number per layer."""

    path: str
    file_bytes: int
    name: str
    architecture: str
    parameters: int
    weights: str
    n_train: int
    n_vocab: int
    n_layer: int
    n_head: int
    kv_heads: tuple[int, ...]
    key_length: int
    value_length: int
    rope: dict[str, int | float | str | bool]
    rope_scaling: str | None
    rope_extension: str  # the policy that the file names for lengths beyond n_train, or ""
    alibi: bool
    dilated: tuple[tuple[int, ...], tuple[int, ...]] | None
    sliding_window: int
    chat_template: bool

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that one token takes in the caches of all layers (exact; without SWA's savings)."""
        return sum(self.kv_heads) * (self.key_length + self.value_length)

    def kv_bytes_per_token(self, kv_type: str = "f16") -> float:
        """Bytes that these numbers take."""
        return self.kv_values_per_token * KV_TYPES[kv_type].bits / 8

    def memory(self, n: int, kv_type: str = "f16") -> int:
        """Bytes of weights and KV cache at n tokens; working buffers come on top."""
        return self.file_bytes + int(n * self.kv_bytes_per_token(kv_type))


def model_info(path: str | os.PathLike[str]) -> ModelInfo:
    """Reads the header of a GGUF file, and of its other parts if it is split; a GGUFFile is not read again.

    Raises GGUFError when it is not one, or not a language model's."""
    file = read_parts(path)
    architecture = file.values.get("general.architecture")
    if not isinstance(architecture, str):
        raise GGUFError(f"{file.path} does not name an architecture: it is not a language model's file")
    keys = _Keys(file, architecture)
    n_layer = keys.number("block_count")
    n_head = max(keys.per_layer("attention.head_count", n_layer), default=0)
    width = keys.number("embedding_length")
    head_length = width // n_head if n_head else 0
    hints = read_hints(file, architecture)
    try:
        scaling = read_scaling(file.values, architecture, keys.number("context_length"), hints.rope_factors)
    except ValueError as error:
        raise GGUFError(f"{file.path} is damaged: {error}") from None
    types = Counter[str]()
    for tensor in file.tensors:
        types[tensor.type.name] += tensor.elements
    prefix = f"{architecture}.rope."
    rope = {k.removeprefix(prefix): v for k, v in file.values.items() if k.startswith(prefix)}
    tokens = file.values.get("tokenizer.ggml.tokens")
    return ModelInfo(
        path=str(file.path),
        file_bytes=file.size,
        name=str(file.values.get("general.name", "")),
        architecture=architecture,
        parameters=sum(types.values()),
        weights=types.most_common(1)[0][0] if types else "",
        n_train=scaling.n_train,
        n_vocab=getattr(tokens, "count", 0) or keys.number("vocab_size"),
        n_layer=n_layer,
        n_head=n_head,
        kv_heads=keys.per_layer("attention.head_count_kv", n_layer) or (n_head,) * n_layer,
        key_length=keys.number("attention.key_length") or head_length,
        value_length=keys.number("attention.value_length") or head_length,
        rope={
            k: v if isinstance(v, str) or isfinite(v) else str(v)
            for k, v in rope.items()
            if isinstance(v, (int, float, str))
        },
        rope_scaling=scaling.name or None,
        rope_extension=keys.text("rope.extension"),
        alibi=architecture in _ALIBI or keys.positive("attention.max_alibi_bias"),
        dilated=hints.dilated,
        sliding_window=keys.number("attention.sliding_window"),
        chat_template="tokenizer.chat_template" in file.values,
    )


class _Keys:
    """The metadata of one architecture, by the names after its prefix."""

    _MAX_LAYERS = 4096

    def __init__(self, file: GGUFFile, architecture: str) -> None:
        self.file, self.architecture = file, architecture

    def number(self, name: str) -> int:
        value = self.file.values.get(f"{self.architecture}.{name}", 0)
        if isinstance(value, tuple):  # a number per layer; a cache must hold the largest
            value = max(value, default=0)
        if not isinstance(value, int) or not 0 <= value < 1 << 31:
            raise GGUFError(f"{self.file.path} is damaged: {self.architecture}.{name} is {value!r}")
        return value

    def positive(self, name: str) -> bool:
        value = self.file.values.get(f"{self.architecture}.{name}", 0)
        return isinstance(value, (int, float)) and value > 0

    def text(self, name: str) -> str:
        value = self.file.values.get(f"{self.architecture}.{name}", "")
        return value if isinstance(value, str) else ""

    def per_layer(self, name: str, n_layer: int) -> tuple[int, ...]:
        """One number per layer, () if the file does not say."""
        if n_layer > self._MAX_LAYERS:
            raise GGUFError(f"{self.file.path} is damaged: {self.architecture}.block_count is {n_layer}")
        value = self.file.values.get(f"{self.architecture}.{name}")
        if isinstance(value, tuple):
            return integers(self.file, f"{self.architecture}.{name}", value)
        return (self.number(name),) * n_layer if value is not None else ()
