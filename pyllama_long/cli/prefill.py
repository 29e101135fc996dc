"""Shows how much of a prompt has been read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Prefill:
    """The progress callback of a prompt: shows a bar if the console is a terminal, and computes the rate of
    reading."""

    _SHOWN_FROM = 512  # tokens; shorter prompts are over before a bar can be read

    def __init__(self, console: Console, label: str = "reading") -> None:
        self.console, self.label = console, label
        self.bar: Progress | None = None
        self.chunk, self.before, self.done = 0, -1, 0
        self.started = self.finished = time.perf_counter()

    @contextmanager
    def reading(self, chunk: int) -> Iterator[None]:
        """Wraps one prompt, which is read `chunk` tokens at a time: starts the clock, and always removes the bar at
        the end."""
        self.chunk, self.before, self.done = chunk, -1, 0
        self.started = self.finished = time.perf_counter()
        try:
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    @property
    def new(self) -> int:
        """Tokens of the prompt that were not already in the cache."""
        return max(0, self.done - max(0, self.before))

    @property
    def rate(self) -> float:
        """New tokens per second."""
        return self.new / max(self.finished - self.started, 1e-9)

    def __call__(self, done: int, total: int) -> None:
        if self.before < 0:
            self.before = max(0, done - self.chunk)
        self.done, self.finished = done, time.perf_counter()
        if self.bar is None and done < total and total >= self._SHOWN_FROM and self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} tokens, {task.fields[rate]:,.0f}/s"),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
            )
            self.task = self.bar.add_task(self.label, total=total, rate=0.0)
            self.bar.start()
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=total, rate=self.rate)
            if done >= total:
                self.stop()
