"""Shows the progress of `eval`, and how long it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pyllama_long.evals.grid import Cell

LENGTHS = "1x,4x,16x,32x,100x"
MAX_MINUTES = 15  # minutes that lengths which the user did not request may take
_LINE_SECONDS = 10  # seconds between two lines of progress if there is no terminal


class View:
    """Shows the cell, the document, and how many of its tokens are read: as a bar if stderr is a terminal, else as
    lines. Also estimates the time.

    bounded: lengths with which everything would take more than MAX_MINUTES are left out, unless the user requests
    them.
    """

    def __init__(self, cells: Sequence[Cell], bounded: bool = False) -> None:
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
        self.label, self.said, self.began, self.estimated = "", 0.0, 0.0, False

    def begin(self, cell: Cell) -> bool:
        """Whether the cell is measured."""
        if self.began and not self.estimated:  # the cells have one document each
            self.estimated = True
            self.estimate(time.monotonic() - self.began, 1)
        self.done += 1
        self.cell = cell
        self.label = f"{self.done + 1}/{len(self.cells)}: {cell.rope}, {cell.plan}, {cell.length:,}"
        self.bar.update(self.task, description=self.label, completed=0, total=cell.length)
        if cell.length in self.allowed:
            self.line(self.label)
        return cell.length in self.allowed

    def document(self, i: int, n: int) -> None:
        self.bar.update(self.task, description=f"{self.label}, document {i + 1}/{n}", completed=0)
        now = time.monotonic()
        if i == 0:
            self.began = now
        elif not self.estimated:
            self.estimated = True
            self.estimate(now - self.began, n)
        if now - self.said >= _LINE_SECONDS:
            self.line(f"{self.label}, document {i + 1}/{n}")

    def progress(self, done: int, total: int) -> None:
        self.bar.update(self.task, completed=done, total=total)
        if time.monotonic() - self.said >= _LINE_SECONDS:
            self.line(f"{self.label}, {done:,}/{total:,} tokens")

    def line(self, text: str) -> None:
        if not self.console.is_terminal:
            self.said = time.monotonic()
            self.console.print(text, markup=False, soft_wrap=True)

    def estimate(self, seconds: float, n: int) -> None:
        """Called after the first of n documents of the first cell: reports how long everything takes, and leaves out
        what takes too long."""
        per_token = seconds / self.cell.length
        left, total = self.cells[self.done :], 0.0
        for length in sorted({cell.length for cell in left}):
            total += sum(cell.length == length for cell in left) * n * length * per_token
            if self.bounded and total > 60 * MAX_MINUTES and length != self.cell.length:
                self.allowed.discard(length)
        self.console.print(
            f"about {duration(total)} in all, or more: long texts take longer per token", soft_wrap=True
        )
        dropped = sorted({cell.length for cell in left} - self.allowed)
        if not dropped:
            return
        named = ", ".join(f"{length:,}" for length in dropped)
        if self.console.is_terminal and sys.stdin.isatty():
            self.bar.stop()
            if typer.confirm(f"that is over {MAX_MINUTES} minutes: measure {named} tokens too?", err=True):
                self.allowed.update(dropped)
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
