"""Reading an answer as it comes: reasoning, text and tool calls."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pyllama_long.server.calls import Call, Format, NotACall

_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Said:
    text: str
    reasoning: bool = False


@dataclass(frozen=True)
class Called:
    """The index-th call of an answer. arguments: JSON text."""

    index: int
    id: str
    name: str
    arguments: str


class AnswerParser:
    """form, names: tool calls are looked for in that format, of functions with these names; None: not at all.
    thinks: the model may reason before it answers; thinking: the prompt has begun the reasoning already."""

    def __init__(
        self,
        form: Format | None = None,
        names: Collection[str] = (),
        thinks: bool = False,
        thinking: bool = False,
    ) -> None:
        self._form, self._names = form, set(names)
        self._may_think, self.reasoning = thinks and not thinking, thinking
        self._buffer = ""
        self._fresh = True  # nothing of the answer itself has come
        self._reasoned = thinking
        self.n_calls = 0

    def feed(self, text: str) -> list[Said | Called]:
        """What text completes."""
        self._buffer += text
        return list(self._steps(False))

    def finish(self) -> list[Said | Called]:
        """What is left at the end."""
        return list(self._steps(True))

    def _steps(self, last: bool) -> Iterator[Said | Called]:
        while self._buffer:
            before = self._buffer, self.reasoning, self._may_think
            if self._may_think:
                self._look_for_reasoning(last)
            if self.reasoning:
                yield from self._reason(last)
            elif not self._may_think:
                yield from self._answer(last)
            if (self._buffer, self.reasoning, self._may_think) == before:
                return

    def _look_for_reasoning(self, last: bool) -> None:
        start = self._buffer.lstrip()
        if start.startswith(_OPEN):
            self._buffer = start[len(_OPEN) :]
            self.reasoning = self._reasoned = True
            self._may_think = False
        elif last or not _OPEN.startswith(start):
            self._may_think = False

    def _reason(self, last: bool) -> Iterator[Said]:
        at = self._buffer.find(_CLOSE)
        if at >= 0:
            text, self._buffer = self._buffer[:at], self._buffer[at + len(_CLOSE) :].lstrip("\n")
            self.reasoning = False
        else:
            kept = 0 if last else _overlap(self._buffer, (_CLOSE,))
            cut = len(self._buffer) - kept
            text, self._buffer = self._buffer[:cut], self._buffer[cut:]
        if text:
            yield Said(text, reasoning=True)

    def _answer(self, last: bool) -> Iterator[Said | Called]:
        form = self._form
        if self._fresh and self._reasoned:
            self._buffer = self._buffer.lstrip("\n")
        if form is None:
            yield from self._say(len(self._buffer))
            return
        if self.n_calls and form.end:
            start = self._buffer.lstrip()
            if start.startswith(form.end):
                self._buffer = start[len(form.end) :]
            elif form.end.startswith(start) and not last:
                return
        marks = (*form.marks, *(form.starts if self._fresh else ()))
        found = [i for i in (self._buffer.find(mark) for mark in form.marks) if i >= 0]
        if self._fresh and self._buffer.lstrip().startswith(form.starts):
            found.append(0)
        at = min(found, default=-1)
        if at > 0:
            text = self._buffer[:at].rstrip()
            self._buffer = self._buffer[at:]
            if text:
                self._fresh = False
                yield Said(text)
        elif at == 0:
            yield from self._call(form, last)
        else:
            cut = len(self._buffer)
            if not last:  # space before a call is none of the text
                cut = len(self._buffer[: cut - _overlap(self._buffer, marks)].rstrip())
            yield from self._say(cut)

    def _call(self, form: Format, last: bool) -> Iterator[Said | Called]:
        try:
            found = form.take(self._buffer.lstrip())
            if found is None:
                if last:
                    raise NotACall
                return
            calls, rest = found
            if not all(self._known(call) for call in calls):
                raise NotACall
        except NotACall:
            # The mark itself is text; what follows it is looked at again.
            length = max((len(m) for m in form.marks if self._buffer.startswith(m)), default=1)
            yield from self._say(length)
            return
        self._buffer, self._fresh = rest, False
        for call in calls:
            yield Called(self.n_calls, f"call_{uuid.uuid4().hex[:24]}", call.name, call.arguments)
            self.n_calls += 1

    def _known(self, call: Call) -> bool:
        return call.name in self._names

    def _say(self, length: int) -> Iterator[Said]:
        text, self._buffer = self._buffer[:length], self._buffer[length:]
        if text:
            self._fresh = False
            # Between calls there is only space.
            if not (self.n_calls and not text.strip()):
                yield Said(text)


def _overlap(text: str, marks: Collection[str]) -> int:
    """Length of the longest end of text that begins one of the marks without being all of it."""
    most = min(len(text), max((len(mark) for mark in marks), default=1) - 1)
    for n in range(most, 0, -1):
        if any(mark.startswith(text[-n:]) for mark in marks):
            return n
    return 0
