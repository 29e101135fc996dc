"""The RoPE scaling that a GGUF carries, and the length that it reaches.

llama.cpp reads `{arch}.rope.scaling.type` (linear if it is missing), `.factor` or the older `rope.scale_linear`, and
`.original_context_length`. With a factor of 1, or the type none, nothing is scaled. context_length is the length
after scaling, unless the file says that it is also the length before; then the factor extends it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["TENSORS", "Scaling", "read_scaling"]

# Tensors that scale frequencies, and the policy that they amount to.
TENSORS = {"rope_factors_long.weight": "longrope", "rope_freqs.weight": "llama3"}
_TYPES = ("none", "linear", "yarn", "longrope")
_MAX = 2**31 - 1


@dataclass(frozen=True)
class Scaling:
    """name: linear, yarn, llama3, longrope, or "" for none. n_train: the length that the model knows with it, in
    tokens; 0 when unknown."""

    name: str
    n_train: int


def read_scaling(values: Mapping[str, object], arch: str, n_train: int, tensors: str | None) -> Scaling:
    """Reads a GGUF's keys, whose values may be text. n_train: its context_length. tensors: the value of TENSORS whose
    key the file has, or None. Raises ValueError, one line, for values that cannot be right."""
    prefix = f"{arch}.rope"
    name = str(values.get(f"{prefix}.scaling.type", "") or "linear")
    if name not in _TYPES:
        raise ValueError(f"{prefix}.scaling.type is {name!r}; known: {', '.join(_TYPES)}")
    factor = 0.0
    for key in (f"{prefix}.scaling.factor", f"{prefix}.scale_linear"):
        if key in values:
            factor = _number(key, values[key])
            break
    factor = factor or 1.0
    key = f"{prefix}.scaling.original_context_length"
    original = int(_number(key, values[key])) if key in values else 0
    if name == "none" or (factor == 1.0 and tensors is None):
        return Scaling("", n_train)
    if factor == 1.0:
        return Scaling(tensors or "", n_train)
    if tensors == "longrope":
        name = "longrope"
    if name == "yarn":  # llama.cpp counts from context_length if the original length is missing
        original = original or n_train
    if original >= n_train > 0:
        n_train = min(_MAX, max(n_train, int(original * factor)))
    return Scaling(name, n_train)


def _number(key: str, value: object) -> float:
    try:
        number = float(str(value)) if not isinstance(value, (int, float)) else float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number <= _MAX:
        raise ValueError(f"{key} is {value!r}")
    return number
