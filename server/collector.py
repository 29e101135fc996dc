"""Collects an answer's text, reasoning and calls as they are read, and corrects the space between them."""

from __future__ import annotations

import uuid

from .incoming import Call
from .pieces import CallPiece, TextPiece

_BETWEEN = "\n\n"  # between the messages of a model


class Collector:
    """Collects pieces until they are taken. waits: space at the end of a text is held back, since before a call it
    does not belong to the text. reasoned: there was reasoning before."""

    def __init__(self, waits: bool, reasoned: bool) -> None:
        self.n_calls, self.reasoned = 0, reasoned
        self._waits = waits
        self._fresh = True  # nothing of the answer itself has arrived
        self._parted = self._called = False
        self._thought = False
        self._space: list[str] = []
        self._found: list[TextPiece | CallPiece] = []

    def take(self) -> list[TextPiece | CallPiece]:
        found, self._found = self._found, []
        return found

    def part(self) -> None:
        """Notes that a new message begins."""
        self._space, self._parted = [], not self._fresh

    def think(self, text: str, part: bool = False) -> None:
        """part: the text begins a message."""
        if text:
            self._found.append(TextPiece((_BETWEEN if part and self._thought else "") + text, reasoning=True))
            self._thought = True

    def call(self, call: Call) -> None:
        self._space.clear()
        self._fresh, self._called = False, True
        self._found.append(
            CallPiece(self.n_calls, f"call_{uuid.uuid4().hex[:24]}", call.name, call.arguments)
        )
        self.n_calls += 1

    def say(self, text: str, last: bool = False) -> None:
        if self._fresh and self.reasoned and not self._space:
            text = text.lstrip("\n")
        kept = text if last or not self._waits else text.rstrip()
        if kept.strip() or (last and self._space and not self.n_calls) or (kept and not self._waits):
            whole = (_BETWEEN if self._parted else "") + "".join(self._space) + kept
            self._space, self._parted = [], False
            if self._called:
                whole = whole.lstrip("\n")
            self._fresh, self._called = False, self._called and not whole
            if whole:
                self._found.append(TextPiece(whole))
            text = text[len(kept) :]
        if last and not self.n_calls and text and not kept.strip():
            self._found.append(TextPiece(text))
        elif text:
            self._space.append(text)
