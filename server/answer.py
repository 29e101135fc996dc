"""Reading an answer as it comes: reasoning, text and tool calls."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from pyllama_long.server import reading
from pyllama_long.server.calls import Format
from pyllama_long.server.reading import Call, Input, NotACall, Unfinished

_MARKS = ("<think>", "</think>")


@dataclass(frozen=True)
class Said:
    text: str
    reasoning: bool = False


@dataclass(frozen=True)
class Called:
    """The index-th call of an answer. arguments: JSON text; unfinished where the answer was cut."""

    index: int
    id: str
    name: str
    arguments: str


class AnswerParser:
    """form, names: tool calls are looked for, of functions with these names; None: not at all. schemas: of their
    arguments. thinks: the model may reason before it answers; thinking: the prompt has begun the reasoning already;
    marks: around it. forced: the answer has to be a call."""

    def __init__(
        self,
        form: Format | None = None,
        names: Collection[str] = (),
        thinks: bool = False,
        thinking: bool = False,
        marks: tuple[str, str] | None = None,
        schemas: Mapping[str, Mapping[str, Any]] | None = None,
        forced: bool = False,
    ) -> None:
        self._form = form
        self._schemas = {name: (schemas or {}).get(name) or {} for name in names}
        self._may_think, self.reasoning = thinks and not thinking, thinking
        self._open, self._close = marks or _MARKS
        self._forced = forced
        self._fresh = True  # nothing of the answer itself has come
        self._reasoned = thinking
        self._space: list[str] = []  # which is none of the text when a call follows
        self.n_calls = 0
        self.input = Input()
        self._out: list[Said | Called] = []
        self._cut = self._outside = False
        self._run = self._answer()

    def feed(self, text: str) -> list[Said | Called]:
        """What text completes."""
        self.input.text += text
        return self._step()

    def finish(self, cut: bool = False) -> list[Said | Called]:
        """What is left at the end. cut: the model would have written more."""
        self.input.ended, self._cut = True, cut
        if self._forced and self._outside:
            self.input.text = ""  # the beginning of a mark
        return self._step()

    def _step(self) -> list[Said | Called]:
        if self.input.text or self.input.ended:
            next(self._run, None)
        out, self._out = self._out, []
        return out

    def _answer(self) -> Generator[None, None, None]:
        source = self.input
        if self._may_think:
            yield from source.space()
            if (yield from source.follows(self._open)):
                source.skip(len(self._open))
                self.reasoning = self._reasoned = True
            else:  # the space before it is of the text
                source.text = "".join(source.taken) + source.text
            self._may_think = False
            source.taken.clear()
        if self.reasoning:
            yield from source.until((self._close,), self._reason)
            self.reasoning = False
        if self._form is None:
            while not source.ended:
                self._say(source.skip(len(source.text)))
                source.taken.clear()
                yield
            self._say(source.skip(len(source.text)), last=True)
            return
        if self._form.starts and not self._reasoned:
            yield from source.space()
            before = "".join(source.taken)
            if source.text.startswith(self._form.starts):
                source.taken.clear()
                yield from self._call("")
            else:
                source.text = before + source.text
        elif self._form.starts:
            yield from source.space()
            if source.text.startswith(self._form.starts):
                source.taken.clear()
                yield from self._call("")
        while True:
            source.taken.clear()
            if self._forced and source.ended:
                source.text = ""  # of an end mark
            self._outside = True
            mark = yield from source.until(reading.MARKS + (reading.ENDS if self.n_calls else ()), self._say)
            self._outside = False
            if not mark:
                self._say("", last=True)
                return
            if mark in reading.MARKS:
                source.taken[:] = [mark]
                yield from self._call(mark)

    def _call(self, mark: str) -> Generator[None, None, None]:
        source = self.input
        try:
            calls = yield from reading.read(source, mark, self._schemas)
            if not all(call.name in self._schemas for call in calls):
                raise NotACall
        except Unfinished as unfinished:
            call = unfinished.call
            if (self._cut or self._forced) and (mark or self._forced or call is not None):
                if call is not None and call.name in self._schemas:
                    self._emit(call)
                    source.text = ""
                elif not mark and not self._forced:
                    self._say("".join(source.taken))
            else:
                self._say("".join(source.taken))
        except NotACall:
            if self._forced and source.ended:
                source.text = ""
            else:
                self._say("".join(source.taken))
        else:
            for call in calls:
                self._emit(call)
        source.taken.clear()

    def _emit(self, call: Call) -> None:
        self._space.clear()
        self._fresh = False
        self._out.append(Called(self.n_calls, f"call_{uuid.uuid4().hex[:24]}", call.name, call.arguments))
        self.n_calls += 1

    def _reason(self, text: str) -> None:
        self.input.taken.clear()
        if text:
            self._out.append(Said(text, reasoning=True))

    def _say(self, text: str, last: bool = False) -> None:
        """Space at the end of a text waits: before a call it is none of it."""
        self.input.taken.clear()
        if self._fresh and self._reasoned and not self._space:
            text = text.lstrip("\n")
        kept = text if last or self._form is None else text.rstrip()
        if kept.strip() or (last and self._space and not self.n_calls) or (kept and self._form is None):
            whole = "".join(self._space) + kept
            self._space = []
            if self.n_calls:
                whole = whole.lstrip("\n")
            self._fresh = False
            if whole:
                self._out.append(Said(whole))
            text = text[len(kept) :]
        if last and not self.n_calls and text and not kept.strip():
            self._out.append(Said(text))
        elif text:
            self._space.append(text)
