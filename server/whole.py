"""Collects whole answers, all pieces of each choice, for requests without a stream."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastapi import Request as HttpRequest

from pyllama_long.engine import events

from .connection import while_connected
from .pieces import CallPiece, Done, Scored, TextPiece, Tokens
from .run import Run


@dataclass
class Whole:
    """All of one choice's pieces. said: the tokens of the text."""

    text: str = ""
    reasoning: str = ""
    calls: list[CallPiece] = field(default_factory=list)
    tokens: list[events.TokenInfo] = field(default_factory=list)
    said: list[events.TokenInfo] = field(default_factory=list)
    prompt: tuple[events.TokenInfo, ...] = ()
    done: Done | None = None


async def collect(http: HttpRequest, run: Run) -> list[Whole]:
    """Collects the whole answers; cancels them if the client disconnects."""

    async def read() -> list[Whole]:
        wholes = [Whole() for _ in run.handles]
        # tokens that wait for the text that they belong to
        waiting: list[list[events.TokenInfo]] = [[] for _ in wholes]
        async for i, piece in run.pieces():
            whole = wholes[i]
            if isinstance(piece, TextPiece) and piece.reasoning:
                whole.reasoning += piece.text
                waiting[i].clear()
            elif isinstance(piece, TextPiece):
                whole.text += piece.text
                whole.said += waiting[i]
                waiting[i].clear()
            elif isinstance(piece, CallPiece):
                whole.calls.append(piece)
                waiting[i].clear()
            elif isinstance(piece, Tokens):
                whole.tokens += piece.tokens
                waiting[i] += piece.tokens
            elif isinstance(piece, Scored):
                whole.prompt = piece.tokens
            elif isinstance(piece, Done):
                whole.done = piece
                if not whole.calls:
                    whole.said += waiting[i]
        return wholes

    return await while_connected(http, read())
