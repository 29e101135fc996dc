"""Finds the tail of a prompt: the last turn's tokens, which a plan may allow to read more than the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyllama_long.model import Model

DEFAULT_TOKENS = 256
TURN_TOKENS = 1024  # a last turn longer than this carries a document: only its end is the tail
MIN_TOKENS = 64


def of_prompt(model: Model, tokens: Sequence[int], text: str | None, tail: str | None) -> int:
    """Index of the first tail token. tail: a suffix of the prompt; None: the last 256 tokens, or the text
    after the last blank line when that is shorter. text: the prompt, None when it came as tokens. Raises
    ValueError."""
    if tail is None:
        return _default(model, tokens)
    if text is not None and not text.endswith(tail):
        raise ValueError(f"tail must be the end of the prompt; it is {_shown(tail)}")
    found = _last(model, tokens, tail)
    if found is None:
        raise ValueError(f"the prompt does not contain the tail {_shown(tail)}")
    return found


def of_chat(model: Model, tokens: Sequence[int], messages: Sequence[Any], tail: str | None) -> int:
    """Index of the first tail token of a rendered chat: the beginning of the last user message, or, if that is long,
    as for a prompt. tail: the end of the last user message, or any text of the prompt at which the tail begins."""
    if tail is not None:
        return of_prompt(model, tokens, None, tail)
    last = next((content(m) for m in reversed(messages) if m.get("role") == "user"), "").strip()
    start = _last(model, tokens, last) if last else None
    if start is None or len(tokens) - start > TURN_TOKENS:
        start = _default(model, tokens)
    return max(0, min(start, len(tokens) - MIN_TOKENS))


def _default(model: Model, tokens: Sequence[int]) -> int:
    start = max(0, len(tokens) - DEFAULT_TOKENS)
    pieces = [model.piece(token, True) for token in tokens[start:]]
    text = b"".join(pieces)
    blank = text.rstrip().rfind(b"\n\n")
    return start + _index(pieces, blank + 2) if blank >= 0 else start


def _last(model: Model, tokens: Sequence[int], text: str) -> int | None:
    """Index of the token in which the last occurrence of text begins."""
    wanted, size = text.encode(), DEFAULT_TOKENS
    if not wanted:
        return len(tokens)
    while True:
        start = max(0, len(tokens) - size)
        pieces = [model.piece(token, True) for token in tokens[start:]]
        at = b"".join(pieces).rfind(wanted)
        if at >= 0:
            return start + _index(pieces, at)
        if start == 0:
            return None
        size *= 4


def _index(pieces: Sequence[bytes], at: int) -> int:
    """Index of the piece that holds byte `at` of their concatenation."""
    end = 0
    for i, piece in enumerate(pieces):
        end += len(piece)
        if at < end:
            return i
    return len(pieces)


def content(message: Any) -> str:
    """The text of a message, the first one if it has parts."""
    given = message.get("content")
    if isinstance(given, list):
        given = next((part.get("text") for part in given if part.get("type") == "text"), "")
    return given or ""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
