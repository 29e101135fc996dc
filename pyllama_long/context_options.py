"""What a context may be opened with: types of its K and V cache, precisions of attention, numbers of threads."""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "KV_TYPES",
    "MAX_THREADS",
    "PRECISIONS",
    "KVType",
    "bytes_per_value",
    "kv_type",
    "kv_type_name",
    "kv_types",
    "precision",
]


class KVType(NamedTuple):
    """number: ggml_type. bits: per value, scales included."""

    number: int
    bits: float


KV_TYPES = {  # those of llama.cpp's options -ctk and -ctv
    "f32": KVType(0, 32.0),
    "f16": KVType(1, 16.0),
    "bf16": KVType(30, 16.0),
    "q8_0": KVType(8, 8.5),
    "q4_0": KVType(2, 4.5),
    "q4_1": KVType(3, 5.0),
    "iq4_nl": KVType(20, 4.5),
    "q5_0": KVType(6, 5.5),
    "q5_1": KVType(7, 6.0),
}
PRECISIONS = ("auto", "f32")  # enum plong_precision
MAX_THREADS = 512  # GGML_MAX_N_THREADS


def kv_type(given: str | int, option: str = "kv_type") -> int:
    """ggml_type of a KV cache type's name, or of its number, as llama_cpp's type_k and type_v give it. Raises
    ValueError, which names the option."""
    if isinstance(given, int):
        numbers = {kind.number: name for name, kind in KV_TYPES.items()}
        if given not in numbers:
            known = ", ".join(f"{number} ({numbers[number]})" for number in sorted(numbers))
            raise ValueError(f"unknown {option} {given}; known: {known}")
        return given
    if given not in KV_TYPES:
        raise ValueError(f"unknown {option} {given!r}; known: {', '.join(KV_TYPES)}")
    return KV_TYPES[given].number


def kv_types(both: str, k: str | int | None, v: str | int | None) -> tuple[int, int]:
    """The ggml_types of K and of V. both: kv_type; k and v: llama_cpp's type_k and type_v, or names."""
    if both != "f16" and (k, v) != (None, None):
        raise ValueError(f"kv_type={both!r} is for K and V: leave out type_k and type_v, or kv_type")
    return (
        kv_type(both) if k is None else kv_type(k, "type_k"),
        kv_type(both) if v is None else kv_type(v, "type_v"),
    )


def kv_type_name(number: int) -> str:
    return next((name for name, kind in KV_TYPES.items() if kind.number == number), f"type {number}")


def bytes_per_value(k: int, v: int) -> float:
    """Bytes per value of a cache with K and V of these ggml_types, on average."""
    bits = {kind.number: kind.bits for kind in KV_TYPES.values()}
    return (bits[k] + bits[v]) / 16


def precision(name: str) -> str:
    """Returns the name if there is such a precision. Raises ValueError."""
    if name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}; known: {', '.join(PRECISIONS)}")
    return name
