"""The pieces of an answer: progress of the prompt, tokens, reasoning, text, calls, and the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from pyllama_long.engine import events


@dataclass(frozen=True)
class Reading:
    """How many prompt tokens have been read, including cached ones."""

    total: int
    cached: int
    processed: int
    seconds: float


@dataclass(frozen=True)
class Scored:
    """The prompt's tokens with log-probabilities."""

    tokens: tuple[events.TokenInfo, ...]


@dataclass(frozen=True)
class Tokens:
    """Tokens whose text is in the next pieces."""

    tokens: tuple[events.TokenInfo, ...]


@dataclass(frozen=True)
class TextPiece:
    text: str
    reasoning: bool = False


@dataclass(frozen=True)
class CallPiece:
    """The index-th call of an answer. arguments: JSON text, unfinished if the answer was cut."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Done:
    """reason: of OpenAI's finish reasons. stop_string: the one that ended the answer."""

    reason: str
    stop_string: str | None
    usage: events.Usage
    reasoning_tokens: int


Piece: TypeAlias = Reading | Scored | Tokens | TextPiece | CallPiece | Done
