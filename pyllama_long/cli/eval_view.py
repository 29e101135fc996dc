"""Shows the progress of `eval`, and how much time is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Mapping, Sequence

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pyllama_long.evals.measure import Cell

LENGTHS = "1x,4x,16x,32x,100x"
MAX_MINUTES = 15  # minutes that lengths which the user did not request may take
_LINE_SECONDS = 10  # seconds between two lines of progress if there is no terminal


class View:
    """Shows the cell, the document, and how many of its tokens are read: as a bar if stderr is a terminal, else as
    lines. Also estimates the time.

    asked: samples or windows of each task, which a cell's documents are about as many as until they are counted.
    bounded: lengths with which everything would take more than MAX_MINUTES are left out, unless the user requests
    them.
    """

    def __init__(
        self, cells: Sequence[Cell], asked: Mapping[str, int] | None = None, bounded: bool = False
    ) -> None:
        self.cells, self.bounded, self.done = cells, bounded, -1
        self.allowed = {cell.length for cell in cells}
        self.console = Console(stderr=True, highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("", total=1)
        self.label, self.said, self.estimated = "", 0.0, False
        self._documents = dict(asked or {})
        self._left = 0  # documents of this cell
        self._known: dict[
            tuple[str, int] | int, list[float]
        ] = {}  # by plan and length, or length: seconds, documents

    def begin(self, cell: Cell, there: Collection[int] = ()) -> bool:
        """Whether the cell is measured. there: its documents that an earlier run has measured."""
        self.done += 1
        self.cell = cell
        name = "" if len({each.task for each in self.cells}) < 2 else f"{cell.task}, "
        self.label = f"{self.done + 1}/{len(self.cells)}: {name}{cell.rope}, {cell.plan}, {cell.length:,}"
        self.bar.update(self.task, description=self.label, completed=0, total=cell.length)
        self._left = max(0, self._documents.get(cell.task, 1) - len(there))
        if cell.length in self.allowed:
            known = f" ({len(there)} documents from the file)" if there else ""
            self.line(f"{self.label}{known}{self.remaining()}")
        return cell.length in self.allowed

    def document(self, i: int, n: int) -> None:
        """The i-th document of n begins."""
        self._documents[self.cell.task], self._left = n, n - i
        text = f"{self.label}, document {i + 1}/{n}{self.remaining()}"
        self.bar.update(self.task, description=text, completed=0)
        if time.monotonic() - self.said >= _LINE_SECONDS:
            self.line(text)

    def finished(self, i: int, n: int, seconds: float) -> None:
        """It took so long."""
        self._left = n - i - 1
        for key in ((self.cell.plan, self.cell.length), self.cell.length):
            known = self._known.setdefault(key, [0.0, 0.0])
            known[0] += seconds
            known[1] += 1
        if not self.estimated:
            self.estimated = True
            self.estimate()

    def progress(self, done: int, total: int) -> None:
        self.bar.update(self.task, completed=done, total=total)
        if time.monotonic() - self.said >= _LINE_SECONDS:
            self.line(f"{self.label}, {done:,}/{total:,} tokens{self.remaining()}")

    def line(self, text: str) -> None:
        if not self.console.is_terminal:
            self.said = time.monotonic()
            self.console.print(text, markup=False, soft_wrap=True)

    def remaining(self) -> str:
        """The time that is left, as the end of a line."""
        return f", about {duration(self._seconds(self.allowed))} left" if self._known else ""

    def _seconds(self, lengths: Collection[int]) -> float:
        """An estimate for what is left of these lengths."""
        found = self._left * self._each(self.cell)
        for cell in self.cells[self.done + 1 :]:
            if cell.length in lengths:
                found += self._documents.get(cell.task, 1) * self._each(cell)
        return found

    def _each(self, cell: Cell) -> float:
        """Seconds per document of a cell: as those of the same plan and length, or length, took; else in proportion to
        the nearest length."""
        for key in ((cell.plan, cell.length), cell.length):
            if key in self._known:
                seconds, n = self._known[key]
                return seconds / n
        nearest = min(
            (key for key in self._known if isinstance(key, int)), key=lambda n: abs(n - cell.length)
        )
        seconds, n = self._known[nearest]
        return seconds / n * cell.length / nearest

    def estimate(self) -> None:
        """Called after the first document: reports how long everything takes, and leaves out lengths that take too
        long."""
        within: set[int] = set()
        for length in sorted(self.allowed):
            total = self._seconds({*within, length})
            if not self.bounded or total <= 60 * MAX_MINUTES or length == self.cell.length:
                within.add(length)
        total = self._seconds(self.allowed)
        self.console.print(
            f"about {duration(total)} in all, or more: long texts take longer per token", soft_wrap=True
        )
        dropped = sorted(self.allowed - within)
        if not dropped:
            return
        self.allowed = within
        named = ", ".join(f"{length:,}" for length in dropped)
        if self.console.is_terminal and sys.stdin.isatty():
            self.bar.stop()
            if typer.confirm(f"that is over {MAX_MINUTES} minutes: measure {named} tokens too?", err=True):
                self.allowed = {*within, *dropped}
            self.bar.start()
        else:
            self.console.print(
                f"over {MAX_MINUTES} minutes: {named} tokens are left out; --lengths {LENGTHS} takes all",
                soft_wrap=True,
            )


def duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
