"""Shared by tests of reading answers: tools, and ways to split an answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pyllama_long.grammar import Lark, compile_lark, tokenizer
from pyllama_long.model import Model
from pyllama_long.server.answer import AnswerParser
from pyllama_long.server.pieces import CallPiece, TextPiece

Read = tuple[str, str, list[tuple[str, Any]]]


@dataclass
class Found:
    said: str
    thought: str
    called: list[CallPiece]

    @staticmethod
    def of(pieces: list[TextPiece | CallPiece]) -> Found:
        said = "".join(p.text for p in pieces if isinstance(p, TextPiece) and not p.reasoning)
        thought = "".join(p.text for p in pieces if isinstance(p, TextPiece) and p.reasoning)
        called = [p for p in pieces if isinstance(p, CallPiece)]
        assert [p.index for p in called] == list(range(len(called)))
        return Found(said, thought, called)

    def is_whole(self, call: CallPiece) -> bool:
        try:
            json.loads(call.arguments)
        except ValueError:
            return False
        return True


def looks(parser: AnswerParser, text: str, longest: int = 1024) -> float:
    """Reads an answer in pieces of three characters, of which at most `longest` may wait; how often each character is
    looked at."""
    for i in range(0, len(text), 3):
        parser.feed(text[i : i + 3])
        assert len(parser.input.text) < longest
    parser.finish()
    return parser.input.looked / len(text)


def read(parser: AnswerParser, text: str, size: int) -> Read:
    """What a parser reads from a text that arrives in pieces of a size: text, reasoning, calls."""
    pieces = [p for i in range(0, len(text), size) for p in parser.feed(text[i : i + size])] + parser.finish()
    found = Found.of(pieces)
    return found.said, found.thought, [(p.name, json.loads(p.arguments)) for p in found.called]


def split_everywhere(make: Callable[[], AnswerParser], text: str) -> None:
    """Checks that an answer in two pieces, split at every place, reads the same."""
    whole = read(make(), text, len(text))
    for at in range(1, len(text)):
        parser = make()
        found = Found.of(parser.feed(text[:at]) + parser.feed(text[at:]) + parser.finish())
        assert (found.said, found.thought) == whole[:2], at
        assert [(p.name, json.loads(p.arguments)) for p in found.called] == whole[2], at


def cut_everywhere(make: Callable[[], AnswerParser], text: str) -> Iterator[Found]:
    """What is read from an answer that max_tokens cuts, at every place."""
    for at in range(len(text)):
        parser = make()
        yield Found.of(parser.feed(text[:at]) + parser.finish(cut=True))


def is_taken(model: Model, lark: Lark, *texts: str) -> str:
    """The first of the texts that a grammar accepts as a whole; "" for none."""
    matcher = compile_lark(tokenizer(model), lark)
    for text in texts:
        tokens = model.tokenize(text.encode(), False, True)
        if matcher.validate_tokens(tokens) == len(tokens):
            if matcher.consume_tokens(tokens) and matcher.is_accepting():
                return text
            matcher.reset()
    return ""
