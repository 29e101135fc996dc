"""What a request's handle gives, in this order: Queued?, Started, Progress*, PromptScores?, Text*, Finished.

Started and Progress come twice if reused keys were broken and the prompt is read again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Queued:
    """The request has to wait; position 0 is the next one to be admitted."""

    position: int


@dataclass(frozen=True)
class Started:
    """Prompt tokens, and how many of them were in the cache."""

    n_prompt: int
    n_cached: int


@dataclass(frozen=True)
class Progress:
    """After each chunk of a prompt: processed of total tokens, cached ones included; seconds since Started."""

    processed: int
    total: int
    cached: int
    seconds: float


@dataclass(frozen=True)
class TokenInfo:
    """A token and its bytes, which may be a part of a character. top: (token, bytes, log-probability) of the
    likeliest ones. Without logprobs, and for the first token of a prompt, logprob is None."""

    id: int
    text_bytes: bytes
    logprob: float | None = None
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True)
class PromptScores:
    """One per prompt token."""

    tokens: tuple[TokenInfo, ...]


@dataclass(frozen=True)
class Text:
    """Whole characters that no stop string can take back, and the tokens that they come from."""

    text: str
    tokens: tuple[TokenInfo, ...]


@dataclass(frozen=True)
class Usage:
    """Tokens of the prompt, those of them that were cached, tokens generated (without an end-of-text token);
    seconds of reading the prompt and of writing; keys read as a share of what exact attention reads;
    the relative error of attention that the plan's checks have measured for all requests so far, or None."""

    n_prompt: int
    n_cached: int
    n_completion: int
    prefill_s: float
    decode_s: float
    keys_read_share: float
    attention_error: float | None


@dataclass(frozen=True)
class Finished:
    """stop: the model or a stop string ended the answer; length: max_tokens, or no room for more; cancelled:
    by `Handle.cancel`."""

    reason: Literal["stop", "length", "cancelled"]
    stop_string: str | None
    usage: Usage


Event: TypeAlias = Queued | Started | Progress | PromptScores | Text | Finished
