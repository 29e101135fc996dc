"""LongNet's dilated attention (arXiv 2307.02486) as a matrix, from its definition in docs/plans.md.

It computes the same as the plan dilated(segments=..., rates=...) with weight=count and align=segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from train_demo.errors import TrainError

Branches = tuple[tuple[int, ...], tuple[int, ...]]  # segments, rates


def parse(text: str) -> Branches:
    """Reads SEGMENTS:RATES, as 128,256:1,2."""
    try:
        segments, rates = (tuple(int(n) for n in half.split(",")) for half in text.split(":"))
    except ValueError:
        raise TrainError(f"--dilated {text!r}: write segments and rates, as 128,256,512:1,2,4") from None
    return segments, rates


def check(segments: Sequence[int], rates: Sequence[int], n_ctx: int) -> None:
    """Raises TrainError for branches that are not a valid plan, with which a row may read nothing, or that are longer
    than n_ctx tokens."""
    if len(segments) != len(rates):
        raise TrainError(f"dilated attention: {len(segments)} segments but {len(rates)} rates")
    if any(a >= b for a, b in pairwise(segments)):
        raise TrainError("dilated attention: segments must ascend")
    if any(not 1 <= r <= w for w, r in zip(segments, rates, strict=True)):
        raise TrainError("dilated attention: a rate is from 1 to its segment")
    if segments and segments[-1] > n_ctx:
        raise TrainError("dilated attention: a segment beyond n_ctx is never seen whole")
    if rates and 1 not in rates:
        raise TrainError("dilated attention: one rate must be 1, or some rows would read nothing")


def log_counts(
    segments: Sequence[int], rates: Sequence[int], n_head: int, n_head_kv: int, n: int
) -> NDArray[np.float32]:
    """[n_head, n, n]: ln of how many branches let row p of head h read key t, -inf where none does.

    Heads are numbered across kv heads, as in docs/plans.md.
    """
    number = np.arange(n_head).reshape(-1, n_head_kv).T.reshape(-1)  # of each head
    place = np.arange(n)
    row, key = place[:, None], place
    counts = np.zeros((n_head, n, n), np.int32)
    for w, r in zip(segments, rates, strict=True):
        inside = (row // w == key // w) & (key <= row)
        for h in range(n_head):
            chosen = place % w % r == number[h] % r
            counts[h] += inside & chosen[:, None] & chosen
    with np.errstate(divide="ignore"):
        return np.log(counts).astype(np.float32)
