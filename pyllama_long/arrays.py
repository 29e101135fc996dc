"""Arrays of tokens and of logits."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

IntArray: TypeAlias = npt.NDArray[np.int32]
FloatArray: TypeAlias = npt.NDArray[np.float32]

# fewest tokens of a prompt to evaluate at once: fewer may run in the kernel for decode, which rounds differently
MIN_PREFILL = 9


def common_prefix(a: IntArray, b: IntArray, begin: int = 0) -> int:
    """The length of the common prefix of two texts that agree at least up to `begin`."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[begin:n] != b[begin:n])
    return begin + int(different[0]) if len(different) else n


def are_numbers(rows: FloatArray) -> bool:
    """Whether rows of logits [n, n_vocab], or one, have no NaN and no +infinity; a part of a row may be -inf."""
    return bool(np.isfinite(rows.max(axis=-1)).all())


def as_ids(tokens: npt.ArrayLike) -> IntArray:
    """Token ids as an array [n]; raises ValueError when they are not whole numbers."""
    ids = np.asarray(tokens)
    if ids.size == 0:
        return np.empty(0, np.int32)
    if (
        ids.ndim != 1
        or ids.dtype.kind not in "iu"
        or abs(int(ids.max())) > 2**31 - 1
        or int(ids.min()) < -(2**31)
    ):
        raise ValueError("tokens must be a flat list of whole numbers")
    return ids.astype(np.int32)
