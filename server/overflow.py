"""Conversations that do not fit the context: refused, or shortened in a way that the response reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pyllama_long.engine import Request, Sampling

from . import errors, lanes
from .pieces import TextPiece
from .prompt import Prompt
from .run import Prepared, submit
from .schemas.common import OverflowMode, OverflowReport
from .schemas.conversation import Message
from .state import Loaded, RequestContext
from .template import content_text

_MIN_ANSWER = 16  # tokens
_HEADING = 32  # tokens that a note takes besides its contents
_SUMMARY_SHARE = 8  # a summary takes at most one part in this many of the context
_CONDENSE = "Condense this part of a conversation to its facts, names, numbers and decisions:\n\n"
_SUMMARY = "Summary of the earlier conversation:\n"
_RETRIEVED = "Earlier messages that may matter here:\n"


@dataclass(frozen=True)
class Fitted:
    """messages: what the prompt was made of. report: None when nothing was left out."""

    messages: Sequence[Message]
    prompt: Prompt
    report: OverflowReport | None = None


def turns(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """The system messages at the beginning, and the turns: a user's message and what follows it."""
    n = 0
    while n < len(messages) and messages[n].role in ("system", "developer"):
        n += 1
    found: list[list[Message]] = []
    for message in messages[n:]:
        if (message.role == "user" and (not found or found[-1][-1].role != "user")) or not found:
            found.append([])
        found[-1].append(message)
    return list(messages[:n]), found


async def fit(
    context: RequestContext,
    messages: Sequence[Message],
    make: Callable[[Sequence[Message]], Prompt],
    mode: OverflowMode,
    max_tokens: int | None,
) -> Fitted:
    """Makes the prompt of a conversation, without its oldest turns if that is necessary and the mode allows it.
    Raises ApiError when it does not fit, and when the server's time limit is over."""
    whole = await lanes.run(make, messages)
    n_ctx = context.loaded.engine.n_ctx
    # There must be room for the answer, but most of the context is left to the prompt.
    limit = n_ctx - max(_MIN_ANSWER, min(max_tokens or n_ctx, n_ctx // 4))
    if len(whole.tokens) <= limit or (mode == "error" and len(whole.tokens) < n_ctx):
        return Fitted(messages, whole)
    refused = errors.overflow(len(whole.tokens), n_ctx)
    if mode == "error":
        raise refused
    system, found = turns(messages)
    fixed = _Conversation(system, found[:1], found[1:], whole, make, refused)
    shortest = await lanes.run(fixed.shortest)
    if shortest > limit:  # what must stay leaves less room for the answer
        if len(whole.tokens) < n_ctx:
            return Fitted(messages, whole)
        limit = n_ctx - _MIN_ANSWER
    if shortest > limit:
        raise refused
    if mode == "shift":
        return await lanes.run(lambda: fixed.shifted(limit, mode="shift"))
    room = limit - shortest - _HEADING
    if mode == "summarize":
        return await _summarized(context, fixed, limit, room)
    return await lanes.run(_retrieved, context, fixed, limit, room)


@dataclass(frozen=True)
class _Conversation:
    """A conversation that is too long: what always stays, and the turns whose oldest may be dropped."""

    system: list[Message]
    first: list[list[Message]]
    later: list[list[Message]]
    whole: Prompt
    make: Callable[[Sequence[Message]], Prompt]
    refused: errors.ApiError

    def without(self, n: int, note: str = "") -> list[Message]:
        """The conversation without its n oldest turns after the first; note: added to the system message."""
        system = self.system
        if note:
            told = "\n\n".join([*(content_text(m) for m in system), note])
            system = [Message(role="system", content=told)]
        kept = [*self.first, *self.later[n:]]
        return [*system, *(message for turn in kept for message in turn)]

    def dropped(self, n: int) -> list[Message]:
        return [message for turn in self.later[:n] for message in turn]

    def shortest(self) -> int:
        """The tokens of the conversation without all turns that may be dropped."""
        if len(self.later) < 2:
            return len(self.whole.tokens)
        return len(self.make(self.without(len(self.later) - 1)).tokens)

    def least(self, limit: int, note: str = "") -> tuple[int, Prompt]:
        """The fewest turns to drop, by bisection. Raises `refused` when the last turn is too long itself."""
        low, high = 1, len(self.later) - 1
        best: tuple[int, Prompt] | None = None
        while low <= high:
            lanes.check()
            n = (low + high) // 2
            prompt = self.make(self.without(n, note))
            if len(prompt.tokens) <= limit:
                best, high = (n, prompt), n - 1
            else:
                low = n + 1
        if best is None:
            raise self.refused
        return best

    def fitted(self, n: int, prompt: Prompt, note: str, **report: Any) -> Fitted:
        told = OverflowReport(
            dropped_messages=len(self.dropped(n)),
            dropped_tokens=max(0, len(self.whole.tokens) - len(prompt.tokens)),
            **report,
        )
        return Fitted(self.without(n, note), prompt, told)

    def shifted(self, limit: int, **report: Any) -> Fitted:
        n, prompt = self.least(limit)
        return self.fitted(n, prompt, "", **report)


async def _summarized(context: RequestContext, conversation: _Conversation, limit: int, room: int) -> Fitted:
    """Lets the model summarize the oldest turns, part by part if they are long; they are only dropped if there is no
    room for a summary."""
    loaded = context.loaded
    n_ctx = loaded.engine.n_ctx
    most = min(max(_MIN_ANSWER, n_ctx // _SUMMARY_SHARE), room)
    if most < _MIN_ANSWER:
        return await lanes.run(lambda: conversation.shifted(limit, mode="summarize", summary=""))
    n, _ = await lanes.run(conversation.least, limit - most - _HEADING)
    text = _written(conversation.dropped(n))
    written = []
    for part in await lanes.run(_parts, loaded, text, n_ctx // 2):
        task = [Message(role="user", content=f"{_CONDENSE}{part}")]
        prompt = await lanes.run(conversation.make, task)
        request = Request(
            tokens=prompt.tokens,
            max_tokens=max(_MIN_ANSWER, most // 2),
            sampling=Sampling(temperature=0.0),
            salt=context.salt,
            special=prompt.special,
        )
        written.append(await _answer(context, request, prompt))
    summary = "\n".join(written).strip()
    summary = await lanes.run(_end_of, loaded, summary, most)
    note = f"{_SUMMARY}{summary}"
    n, prompt = await lanes.run(conversation.least, limit, note)
    return conversation.fitted(n, prompt, note, mode="summarize", summary=summary)


async def _answer(context: RequestContext, request: Request, prompt: Prompt) -> str:
    """The model's text, or its reasoning if it wrote nothing else. Raises ApiError, also when it was cancelled or is
    late."""
    state, prepared = context.state, Prepared([request], prompt.parser, spent_s=context.spent_s())
    run = await submit(context.loaded.engine, prepared, state.metrics, state.settings.request_timeout_s)
    async with aclosing(run.pieces()) as pieces:
        said = [piece async for _, piece in pieces if isinstance(piece, TextPiece)]
    texts = ["".join(piece.text for piece in said if piece.reasoning is thought) for thought in (False, True)]
    return texts[0] if texts[0].strip() else texts[1]


def _retrieved(context: RequestContext, conversation: _Conversation, limit: int, room: int) -> Fitted:
    """Moves the oldest turns to the store, and brings back those that match the last message, as long as there is
    room."""
    engine = context.loaded.engine
    room = max(0, min(engine.n_ctx // 4 - _HEADING, room))
    n, _ = conversation.least(limit - room - _HEADING if room else limit)
    old = [(message.role, content_text(message)) for message in conversation.dropped(n)]
    question = content_text(conversation.later[-1][0])
    taken: list[str] = []
    for text in context.state.store.search(context.salt, old, question):
        lanes.check()
        candidate = "\n\n".join([*taken, text])
        if len(engine.tokenize(candidate.encode(), False, False)) > room:
            break
        taken.append(text)
    while taken:
        lanes.check()
        note = _RETRIEVED + "\n\n".join(taken)
        prompt = conversation.make(conversation.without(n, note))
        if len(prompt.tokens) <= limit:
            return conversation.fitted(n, prompt, note, mode="retrieve", retrieved_messages=len(taken))
        taken.pop()
    return conversation.shifted(limit, mode="retrieve", retrieved_messages=0)


def _written(messages: Sequence[Message]) -> str:
    return "\n\n".join(f"{message.role}: {content_text(message)}" for message in messages)


def _parts(loaded: Loaded, text: str, most: int) -> list[str]:
    """Splits a text into parts of about `most` tokens."""
    n_tokens = len(loaded.engine.tokenize(text.encode(), False, False))
    n_parts = -(-n_tokens // max(1, most))
    size = max(1, -(-len(text) // max(1, n_parts)))
    return [text[i : i + size] for i in range(0, len(text), size)]


def _end_of(loaded: Loaded, text: str, most: int) -> str:
    """The last tokens of a text, `most` of them: what was said last counts most."""
    tokens = loaded.engine.tokenize(text.encode(), False, False)
    if len(tokens) <= most:
        return text
    return loaded.engine.detokenize(tokens[-most:]).decode(errors="ignore").strip()
