"""Reads an answer as it streams in: reasoning, text and tool calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from . import channels, reading
from .calls import Format, Recipients
from .collector import Collector
from .incoming import Call, Input, NotACall, Unfinished, Waiting, overlap
from .pieces import CallPiece, TextPiece

_MARKS = ("<think>", "</think>")


class AnswerParser:
    """form, names: the format of tool calls and the functions that may be called; None: there are no calls. schemas:
    of their arguments. thinks: the model may reason before it answers; thinking: the prompt has already begun the
    reasoning; marks: around it. forced: the answer must be a call. channel: the model writes messages to channels,
    and the prompt ends in this one."""

    def __init__(
        self,
        form: Format | None = None,
        names: Collection[str] = (),
        thinks: bool = False,
        thinking: bool = False,
        marks: tuple[str, str] | None = None,
        schemas: Mapping[str, Mapping[str, Any]] | None = None,
        forced: bool = False,
        channel: channels.Channel | None = None,
    ) -> None:
        self.form = form if form is not None and (names or isinstance(form, Recipients)) else Format()
        self._calls = bool(names) and form is not None
        self._drops = form.drops if form is not None else ()
        self.schemas = {name: (schemas or {}).get(name) or {} for name in names}
        self._may_think, self.reasoning = thinks and not thinking, thinking
        self._open, self._close = marks or _MARKS
        self.forced, self.cut = forced, False
        self.input, self.collector = Input(), Collector(self._calls, thinking)
        self._ends: tuple[str, ...] = ()  # of what is read
        self._run = self._answer() if channel is None else channels.read(self, channel)

    @property
    def n_calls(self) -> int:
        return self.collector.n_calls

    def feed(self, text: str) -> list[TextPiece | CallPiece]:
        """Takes more text and returns the pieces that it completes."""
        self.input.text += text
        return self._step()

    def finish(self, cut: bool = False) -> list[TextPiece | CallPiece]:
        """Returns the remaining pieces at the end. cut: the model would have written more."""
        self.input.ended, self.cut = True, cut
        begun = overlap(self.input.text, self._ends) if cut else 0
        if begun > 1 and not set("<[>").isdisjoint(self.input.text[-begun:]):  # words are likelier text
            self.input.text = self.input.text[:-begun]
        return self._step()

    def _step(self) -> list[TextPiece | CallPiece]:
        if self.input.text or self.input.ended:
            next(self._run, None)
        return self.collector.take()

    def _answer(self) -> Waiting:
        source = self.input
        if self._may_think:
            yield from source.space()
            if (yield from source.follows(self._open)):
                source.skip(len(self._open))
                self.reasoning = self.collector.reasoned = True
            else:  # the space before it belongs to the text
                source.text = "".join(source.taken) + source.text
            self._may_think = False
            source.taken.clear()
        if self.reasoning:
            yield from self.thought((self._close,))
            self.reasoning = False
        yield from self.content()

    def thought(self, ends: tuple[str, ...], part: bool = False) -> Waiting:
        """Reads reasoning up to one of the ends, which is returned; "" at the end of the answer. part: it is a
        message of its own, which may follow other reasoning."""
        first, self._ends = part, ends

        def think(text: str) -> None:
            nonlocal first
            self.input.taken.clear()
            self.collector.think(text, first)
            first = first and not text

        return (yield from self.input.until(ends, think))

    def content(self, ends: tuple[str, ...] = ()) -> Waiting:
        """Reads text with calls in it, up to one of the ends, which is returned; "" at the end of the answer."""
        source, form = self.input, self.form
        if self._calls and form.starts:
            yield from source.space()
            before = "".join(source.taken)
            if source.text.startswith(form.starts):
                yield from self._call("")
            else:
                source.text = before + source.text
        if isinstance(form, Recipients):  # the prompt has begun the first
            yield from self._call(form.marks[0], begun=True)
        begins = (*reading.MARKS, *form.marks) if self._calls else ()
        while True:
            source.taken.clear()
            closing = (*self._drops, *(reading.ENDS if self.n_calls else ()))
            self._ends = (*begins, *closing, *ends)
            mark = yield from source.until((*begins, *closing, *ends), self._say)
            self._ends = ()
            if mark in begins:
                yield from self._call(mark)
            elif mark not in closing:
                if not mark:
                    self._say("", last=True)
                return mark

    def _call(self, mark: str, begun: bool = False) -> Waiting:
        """Reads a call after its mark. begun: the prompt has written the mark."""
        source = self.input
        source.taken[:] = [] if begun else [mark]
        try:
            calls = yield from reading.read(source, mark, self.schemas, self.form)
            if not all(call.name in self.schemas for call in calls):
                raise NotACall
        except Unfinished as unfinished:
            self._end_within(mark, unfinished.calls)
        except NotACall:
            if source.ended and (self.forced or (self.cut and mark)):
                source.text = ""  # too little has arrived to decide
            else:
                self._say("".join(source.taken))
        else:
            self._emit(calls)
        source.taken.clear()

    def _end_within(self, mark: str, calls: list[Call]) -> None:
        """Handles an answer that ended within a call, of which this much is known."""
        known = bool(calls) and all(call.name in self.schemas for call in calls)
        if not (self.cut or self.forced) or not (mark or self.forced or calls):
            self._say("".join(self.input.taken))
        elif known:
            self._emit(calls)
            self.input.text = ""
        elif mark or self.forced:
            self.input.text = ""
        else:
            self._say("".join(self.input.taken))

    def _emit(self, calls: list[Call]) -> None:
        for call in calls:
            self.collector.call(call)

    def _say(self, text: str, last: bool = False) -> None:
        self.input.taken.clear()
        if not self.forced:  # if forced, the only text is between calls
            self.collector.say(text, last)


__all__ = ["AnswerParser", "CallPiece", "TextPiece"]
