"""The part `topk` of a plan: blocks of keys that each kv head chooses by content.

    topk(64)                 the best 64 blocks
    topk(3%)                 the best 3% of the blocks before the window
    topk(mass=0.95)          the fewest blocks that together have 95% of what the blocks before the window have
    topk(10%, mass=0.95, least=16, block=32)

A query, or in a prefill the queries of 64 neighbouring positions, estimates which share of the softmax each block
gets, from 4-bit copies of its keys (about 14% of the memory of an f16 cache), as a mean over some of its rows and the
heads that share the keys. `block` is 16, 32 or 64 keys; n and the share are the most that are read, `least` the
fewest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyllama_long import notation
from pyllama_long.notation import ALL
from pyllama_long.plan_error import PlanError

__all__ = ["BLOCKS", "Topk", "read_topk"]

BLOCKS = (16, 32, 64)
_NAMES = ("mass", "least", "block")
_DIGITS = 6  # of a mass, after the point


@dataclass(frozen=True)
class Topk:
    """blocks, share: the most that are read (ALL and 1: no limit); least: the fewest; mass: no more blocks once these
    have it; block: keys of a block."""

    blocks: int = ALL
    share: float = 1.0
    mass: float = 1.0
    least: int = 0
    block: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.blocks <= ALL or not 0 <= self.least <= self.blocks:
            raise PlanError(f"topk: {self.blocks} blocks and least={self.least} do not go together")
        if not 0 < self.share <= 1 or not 0 < self.mass <= 1:
            raise PlanError("topk: a share is from 0% to 100%, and a mass from 0 to 1")
        if self.block not in BLOCKS:
            raise PlanError(f"topk: block={self.block} is not one of {', '.join(map(str, BLOCKS))}")

    def most(self, n: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many of n blocks are read at most."""
        share = np.ceil(self.share * n * (1 - 1e-6)).astype(np.int64)
        found: npt.NDArray[np.int64] = np.minimum(n, np.maximum(self.least, np.minimum(self.blocks, share)))
        return found

    def _limits(self) -> list[str]:
        """As they are written: 64, 3%."""
        values = [str(self.blocks)] if self.blocks != ALL else []
        return values + notation.percents(self.share)

    def __str__(self) -> str:
        values = self._limits()
        values += [f"mass={notation.show(self.mass)}"] if self.mass < 1 else []
        values += [f"least={self.least}"] if self.least else []
        values += [f"block={self.block}"] if self.block != 32 else []
        return f"topk({', '.join(values)})" if values else "topk(100%)"

    def explain(self) -> str:
        text = f"the best {' or '.join(self._limits()) or '100%'} of the blocks of {self.block} tokens before them"
        if self.mass < 1:
            text += f", as few as have {notation.show(self.mass)} of their share of the softmax"
        return text


def read_topk(call: notation.Call) -> Topk:
    """Raises PlanError."""
    unknown = [key for key in call.named if key not in _NAMES]
    if unknown or len(call.args) > 2:
        raise PlanError(
            f"topk: unknown {(unknown or call.args)[-1]!r}; write topk(64), topk(3%) or topk(mass=0.95), with "
            "least= and block= if wanted"
        )
    if not call.args and "mass" not in call.named:
        raise PlanError(
            "topk needs a number of blocks, a share or a mass: topk(64), topk(3%), topk(mass=0.95)"
        )
    found = notation.limits(call, "blocks", PlanError)
    if "mass" in call.named:
        found["mass"] = round(notation.number(call.named["mass"], "topk: mass", PlanError), _DIGITS)
    for key in ("least", "block"):
        if key in call.named:
            found[key] = notation.integer(call.named[key], f"topk: {key}", PlanError, low=0)
    return Topk(**found)  # type: ignore[arg-type]
