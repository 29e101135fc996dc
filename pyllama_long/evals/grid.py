"""The policies, plans and lengths to compare, and one cell of that table: opening a model and measuring it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from pyllama_long import lengths
from pyllama_long.errors import DecodeError
from pyllama_long.evals import EvalError
from pyllama_long.rope import RopeError, RopePolicy

if TYPE_CHECKING:
    from pyllama_long.llama import LongLlama

__all__ = ["POLICIES", "Cell", "Row", "cells", "parse_lengths", "policies", "run"]

# `--rope all`; policies that this version does not know are left out.
POLICIES = (
    "native",
    "native+logn",
    "linear",
    "ntk",
    "yarn",
    "dynamic-ntk",
    "dynamic-yarn",
    "dca",
    "dca+logn",
    "dca+yarn",
    "self-extend",
    "self-extend+logn",
    "rerope",
    "rerope+logn",
)
Row: TypeAlias = dict[str, Any]
_MAX_TOKENS = 1 << 28


@dataclass(frozen=True)
class Cell:
    """rope and plan as the user wrote them; length in tokens."""

    rope: str
    plan: str
    length: int


def parse_lengths(text: str, n_train: int) -> tuple[int, ...]:
    """`1x,4x,8192,16k` in tokens, ascending; n_train: the trained length, 0 when unknown. Raises EvalError."""
    found = set()
    for piece in text.split(","):
        try:
            found.add(max(1, lengths.in_tokens(lengths.parse(piece, most=_MAX_TOKENS), n_train, _MAX_TOKENS)))
        except lengths.LengthError as error:
            raise EvalError(str(error)) from None
    return tuple(sorted(found))


def policies(asked: Iterable[str], n_train: int, at: Sequence[int]) -> tuple[str, ...]:
    """The requested policies; `all` means POLICIES. Raises RopeError for one that cannot be read."""
    found: list[str] = []
    for text in asked:
        if text.strip() == "all":
            found += [policy for policy in POLICIES if _is_known(policy, n_train, at[0])]
        else:
            for length in at:
                RopePolicy.parse(text, n_train=n_train or None, n_ctx=length)
            found.append(text)
    return tuple(dict.fromkeys(found))


def _is_known(text: str, n_train: int, length: int) -> bool:
    try:
        RopePolicy.parse(text, n_train=n_train or None, n_ctx=length)
    except RopeError:
        return False
    return True


def cells(ropes: Iterable[str], plans: Sequence[str], at: Sequence[int]) -> list[Cell]:
    return [Cell(rope, plan, length) for rope in ropes for plan in plans for length in at]


def run(
    cell: Cell, open_model: Callable[[Cell], LongLlama], measure: Callable[[LongLlama, int], list[Row]]
) -> list[Row]:
    """The rows of one cell: what `measure` returns for each depth, and what ran. If the model, the policy or the
    length is refused: one row with the reason as `error`.
    """
    start = {"rope": cell.rope, "plan": cell.plan, "length": cell.length}
    empty = {"depth": None, "samples": 0, "accuracy": None, "share_of_keys": None, "seconds": None}
    try:
        with closing(open_model(cell)) as llm:
            began = time.perf_counter()
            measured = measure(llm, cell.length)
            ran: Row = {
                "share_of_keys": None if llm.upstream else llm.attention_stats()["share_of_keys"],
                "seconds": round(time.perf_counter() - began, 2),
                "rope_used": str(llm.rope),
                "plan_used": "upstream" if llm.upstream else str(llm.plan),
            }
    except (ValueError, DecodeError) as error:
        return [{**start, **empty, "error": " ".join(str(error).split())}]
    order = ("depth", "samples", "accuracy")
    return [
        {
            **start,
            **{key: row[key] for key in order},
            **ran,
            **{k: v for k, v in row.items() if k not in order},
        }
        for row in measured
    ]
