"""What every task of `eval` provides: its units, which are measured one by one, and the rows that they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from pyllama_long.llama import LongLlama

__all__ = ["Cell", "Found", "Row", "Task"]

Row: TypeAlias = dict[str, Any]  # of the table
Found: TypeAlias = dict[str, Any]  # what a unit gave, as JSON


@dataclass(frozen=True)
class Cell:
    """rope and plan as the user wrote them; length in tokens; task: its name."""

    rope: str
    plan: str
    length: int
    task: str = "needle"


class Task(Protocol):
    """A unit is a document with its questions, or a window of a text. Units of one length do not depend on how many
    there are, nor on plan and policy."""

    def count(self, llm: LongLlama, length: int) -> int:
        """How many units there are. Raises EvalError if the length is not possible."""

    def unit(self, llm: LongLlama, cell: Cell, i: int) -> Found:
        """Measures the i-th."""

    def figures(self, unit: Found) -> dict[str, list[float]]:
        """The figures of a unit in which plans and policies can be compared: a value for each of its questions."""

    def rows(self, found: Sequence[Found]) -> list[Row]:
        """The rows of a cell from what its units gave, with at least depth, samples and accuracy."""
