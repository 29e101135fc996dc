"""The input of a chat: a terminal with history and several lines per message, or a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

__all__ = ["Input", "PipedInput", "TerminalInput", "open_input"]


class Input(Protocol):
    def read(self) -> str:
        """The next message; EOFError at the end, KeyboardInterrupt when the line was thrown away."""
        ...


class PipedInput:
    """Reads lines of stdin; a line that ends in a backslash continues on the next."""

    def read(self) -> str:
        lines: list[str] = []
        while True:
            line = sys.stdin.readline()
            if not line and not lines:
                raise EOFError
            line = line.rstrip("\r\n")
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])


class TerminalInput:
    """Enter sends, Alt-Enter begins a new line; pasted lines stay together; the history is kept in a file."""

    def __init__(self, history: Path, commands: Sequence[str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory, History, InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

        keys = KeyBindings()

        @keys.add("enter")
        def _send(event: KeyPressEvent) -> None:
            event.current_buffer.validate_and_handle()

        @keys.add("escape", "enter")
        @keys.add("c-j")
        def _newline(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        kept: History
        try:
            history.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            history.touch(mode=0o600)
            os.stat(history)
            kept = FileHistory(str(history))
        except OSError:  # the home is not writable: the history only lasts as long as the program
            kept = InMemoryHistory()
        self.session: PromptSession[str] = PromptSession(
            history=kept,
            multiline=True,
            key_bindings=keys,
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
            prompt_continuation=". ",
        )

    def read(self) -> str:
        return self.session.prompt("> ")


def open_input(history: Path, commands: Sequence[str]) -> Input:
    if sys.stdin.isatty() and sys.stdout.isatty():
        return TerminalInput(history, commands)
    return PipedInput()
