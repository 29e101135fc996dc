"""Answers that consist of messages: to channels as gpt-oss writes them (harmony), where `analysis` is reasoning, and
`final` is text, like `commentary` without a recipient; or to recipients as Muse does. A message to a function is a
call."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pyllama_long.json_values import json_text

from . import reading
from .calls import Addressed, Format
from .collector import Collector
from .grammar import Rules
from .incoming import Call, Input, NotACall, Unfinished, Waiting

# the channel that a prompt ends in; none: the head of a message comes next
Channel = Literal["none", "analysis", "final"]

_START, _CHANNEL, _CONSTRAIN, _MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
_CLOSES = ("<|end|>", "<|return|>", "<|call|>", "<|eom|>", "<|eot|>")
MARKS = (_START, _CHANNEL, _CONSTRAIN, _MESSAGE, *_CLOSES)
_NEXT = (f"{_START}assistant", *(f"{_CHANNEL}{name}" for name in ("analysis", "commentary", "final")))
_ENDS = (*_CLOSES, *_NEXT)  # ends of a message's text, including those where the model forgets to close it
_WORD = re.compile(r"[\w.\-:/\[\]]{0,256}")
_EVERYBODY = ("", "assistant", "user", "all")


@dataclass(frozen=True)
class Style:
    """The heads of messages, and what ends reasoning. json: may be in the head of a message whose text is JSON."""

    thought: str
    close: str
    final: str
    json: str


_HARMONY = Style(f"{_CHANNEL}analysis{_MESSAGE}", "<|end|>", f"{_CHANNEL}final", f"{_CONSTRAIN}json")
_RECIPIENTS = Style(f" to=self{_MESSAGE}", "<|eom|>", " to=user", "")


class Flow(Protocol):
    """What reads texts and takes the pieces. cut: the answer ended before the model had finished."""

    input: Input
    collector: Collector
    reasoning: bool
    cut: bool
    schemas: dict[str, Any]
    form: Format

    def thought(self, ends: tuple[str, ...], part: bool = False) -> Waiting: ...

    def content(self, ends: tuple[str, ...] = ()) -> Waiting: ...


@dataclass
class _Head:
    """The head of a message. plain: there is none, the model writes text directly."""

    channel: str = ""
    recipient: str = ""
    plain: bool = False


def style_of(template: str) -> Style | None:
    """The style of a template whose model writes messages."""
    if _HARMONY.thought in template:
        return _HARMONY
    return _RECIPIENTS if "<atem:function_calls>" in template else None


def names(template: str) -> tuple[str, ...]:
    """Marks of messages, which llama.cpp turns into tokens in any text, although it does not treat them as control
    tokens."""
    return MARKS if style_of(template) is not None else ()


def of_prompt(text: str, thinking: bool) -> Channel:
    if thinking:
        return "analysis"
    tail = text[-64:].rstrip()
    return "none" if tail.endswith((f"{_START}assistant", *_CLOSES)) else "final"


def read(flow: Flow, begun: Channel) -> Waiting:
    """Reads all messages of an answer, beginning with the rest of the one that the prompt has begun."""
    source, head = flow.input, None
    if begun != "none":
        head = _Head(begun)
    while not source.ended or source.text:
        if head is None:
            head = yield from _head(source)
        if head is None:
            break
        name = head.recipient.removeprefix("functions.")
        flow.reasoning = False
        if name in flow.schemas and not isinstance(flow.form, Addressed):
            mark = yield from _call(flow, name)
        elif head.channel == "analysis" or name not in (
            *_EVERYBODY,
            *flow.schemas,
        ):  # for a tool that does not exist here
            flow.reasoning = flow.collector.reasoned = True
            mark = yield from flow.thought(_ENDS, part=True)
            flow.reasoning = False
        else:
            flow.collector.part()
            mark = yield from flow.content(_ENDS)
        if mark in _NEXT:
            source.text = mark + source.text
        source.taken.clear()
        head = None
    source.text = ""


def _head(source: Input) -> Waiting:
    """Reads a message's head; None if the answer ends before its text."""
    head, some = _Head(), False
    while True:
        yield from source.space()
        before = "".join(source.taken)
        source.taken.clear()
        mark = yield from source.follows(*MARKS, "to=")
        if not mark and source.ended and any(m.startswith(source.text) for m in (*MARKS, "to=")):
            return None
        source.skip(len(mark))
        if mark == _MESSAGE:
            break
        if mark in _CLOSES:
            head, some = _Head(), False
        elif mark == _CONSTRAIN:
            yield from _word(source)
        elif mark == _START:
            yield from _word(source)  # the role
            head, some = _Head(), True
        elif mark == _CHANNEL:
            head.channel, some = (yield from _word(source)), True
        elif mark:
            head.recipient, some = (yield from _word(source)), True
        elif not some:
            head, source.text = _Head(plain=True), before + source.text
            break
        elif not (yield from _word(source)):  # the type of the text, without its mark
            break
    source.taken.clear()
    return head


def _word(source: Input) -> Waiting:
    while True:
        match = _WORD.match(source.text)
        n = 0 if match is None else match.end()
        source.looked += n + 1
        if n < len(source.text) or source.ended:
            return source.skip(n)
        yield


def _call(flow: Flow, name: str) -> Waiting:
    """Reads a message whose recipient is already known: everything that follows is its arguments."""
    source, mark = flow.input, ""
    source.taken.clear()
    try:
        value = yield from source.value()
        flow.collector.call(Call(name, json_text(reading.parsed(value))))
        return (yield from source.until(_ENDS, lambda _: None))
    except Unfinished:
        pass
    except NotACall:
        rest: list[str] = []
        begun = "".join(source.taken)
        mark = yield from source.until(_ENDS, rest.append)
        source.taken[:] = [begun, *rest]
    text = "".join(source.taken).strip()
    if text or not flow.cut:
        flow.collector.call(Call(name, text or "{}"))
    return mark


# ---- grammars ----------------------------------------------------------------------------------------------


def rule(rules: Rules, style: Style, begun: Channel, final: str, calls: str, told: bool) -> str:
    """The rule of a constrained answer: after any reasoning, a final message that contains `final`, or `calls`, which
    has a head of its own unless calls are written as text; either may be ""."""
    start, close = rules.literal(f"{_START}assistant"), rules.literal(style.close)
    json = f'(" "? {rules.literal(style.json)})?' if style.json else ""
    head = f"({rules.literal(style.final)} {json} {rules.literal(_MESSAGE)})"
    if told and calls:
        final, calls = " | ".join(f"({root})" for root in (final, calls) if root), ""
    roots = [f"{head} ({final})"] if final else []
    roots += [f"({calls})"] if calls else []
    thought = f"{rules.literal(style.thought)} {rules.until(style.close)} {start}"
    whole = f"({thought})* ({' | '.join(roots)})"
    if begun == "analysis":
        return f"{rules.until(style.close)} {start} {whole}"
    if begun == "final":
        return " | ".join(
            [*([f"({final})"] if final else []), *([f"{close} {start} {calls}"] if calls else [])]
        )
    return whole


def call_rule(rules: Rules, name: str, arguments: str) -> str:
    """One call, with its recipient in either place."""
    json_head = f'" "? {rules.literal(f"{_CONSTRAIN}json{_MESSAGE}")}'
    of = rules.literal(f"{_CHANNEL}commentary to=functions.{name}")
    to = f"{rules.literal(f' to=functions.{name}')} {rules.literal(f'{_CHANNEL}commentary')}"
    return f"({of} | {to}) {json_head} {arguments}"
