"""One request from its admission to its end: tokens, text, scores and what it used."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable

from pyllama_long import last_turn, logprobs, marks
from pyllama_long.arrays import MIN_PREFILL, FloatArray, as_ids
from pyllama_long.engine import prefix
from pyllama_long.engine.config import Request
from pyllama_long.engine.context import Context
from pyllama_long.engine.events import Finished, Progress, PromptScores, Started, TokenInfo, Usage
from pyllama_long.engine.events import Text as TextEvent
from pyllama_long.engine.fingerprint import salt_hash
from pyllama_long.engine.handle import Handle
from pyllama_long.engine.pool import LiveSequence
from pyllama_long.engine.sampler import Sampler
from pyllama_long.errors import ContextOverflow
from pyllama_long.text import Text, model_pieces

RESERVE = 256  # tokens of an answer without max_tokens that are reserved at once


class Job:
    """Made on the caller's thread, which checks everything that can be wrong with the request. Raises ValueError and
    ContextOverflow.

    reserved: the most cells that it may hold, including its prompt. unread: prompt tokens still to be evaluated.
    places: where checkpoints are made while the prompt is read, in order.
    """

    def __init__(
        self, number: int, request: Request, context: Context, on_cancel: Callable[[], None]
    ) -> None:
        if not context.generates:
            raise ValueError("this model only makes embeddings")
        self.number, self.request = number, request
        self.ids = as_ids(request.tokens)
        n, n_ctx = len(self.ids), context.n_ctx()
        if n == 0:
            raise ValueError("the prompt is empty: give at least one token")
        if self.ids.min() < 0 or self.ids.max() >= context.n_vocab:
            raise ValueError(f"a token of the prompt is outside the vocabulary of {context.n_vocab}")
        if n >= n_ctx:
            raise ContextOverflow(n, n_ctx)
        self.n, asked = n, request.max_tokens
        self.limit = min(n_ctx - n, n_ctx if asked is None else asked)
        self.open_ended = asked is None
        self.reserved = n + min(self.limit, RESERVE) if self.open_ended else n + self.limit
        self.factor = context.rope.factor_for(self.reserved, n_ctx)
        self.salt = salt_hash(request.salt)
        self.hashes = prefix.chain(self.ids, [], self.salt)
        self.tail_start = self._tail(context)
        model = context.model
        self.places: list[int] = []
        if context.keeps and not request.echo_logprobs:
            found = marks.of_tokens(model, self.ids) if request.marks is None else request.marks
            self.places = context.limits.places(n, found, page=context.plan.page)
        pieces = model_pieces(model, first=self.ids.tolist() == [model.token_bos()], special=request.special)
        self._pieces = pieces
        self.text = Text(pieces, [s.encode() for s in request.stop])
        self.scored = 0  # prompt tokens
        self._prompt_scores: list[TokenInfo] = []
        self._scores: list[logprobs.Logprob] = []
        self.sampler = Sampler(request.sampling, model)
        self.handle = Handle(f"req-{number}", request.salt, self.ids.tolist(), on_cancel)
        self.held: LiveSequence | None = None
        self.last = -1  # the token to evaluate next, once the prompt has been read
        self.n_cached = 0
        self.fresh = request.echo_logprobs  # reuses no keys
        self.queued = False
        self.wait_until: float | None = None  # by time.monotonic, for room to restore what it begins with
        self.passed = 0  # cells of the requests that overtook it while it waited for room
        self.made_at = time.monotonic()
        self.started_at = self.written_at = 0.0
        self.keys_read = self.keys_visible = 0.0
        self.attention_error: float | None = None  # of all requests until now
        self._lines = False  # a line break has been written

    def _tail(self, context: Context) -> int | None:
        if self.request.tail_start is not None or not context.has_phases:
            return self.request.tail_start
        return last_turn.of_prompt(context.model, self.ids.tolist(), None, None)

    @property
    def scores_prompt(self) -> bool:
        return self.request.echo_logprobs

    @property
    def writing(self) -> bool:
        """Whether the prompt has been read."""
        return self.last >= 0

    @property
    def unread(self) -> int:
        assert self.held is not None
        return self.n - self.held.n

    @property
    def goal(self) -> int:
        """Where the prompt is to be read up to next: the next place, or its end."""
        assert self.held is not None
        begin = self.held.n
        i = bisect_left(self.places, begin + MIN_PREFILL)
        return self.places[i] if i < len(self.places) else self.n

    # ---- what happens to it --------------------------------------------------------------------------------

    def start(self, held: LiveSequence) -> None:
        self.held, self.n_cached, self.started_at = held, held.n, time.monotonic()
        self.handle.put(Started(self.n, self.n_cached))

    def start_afresh(self) -> None:
        """Lets it wait again, and then begin without reused keys."""
        self.held, self.fresh, self.n_cached = None, True, 0
        self.keys_read = self.keys_visible = 0.0

    def read(self) -> None:
        """Reports that a chunk of the prompt has been evaluated."""
        assert self.held is not None
        seconds = time.monotonic() - self.started_at
        self.handle.put(Progress(self.held.n, self.n, self.n_cached, seconds))
        if self.held.n == self.n:
            self.written_at = time.monotonic()

    def score(self, rows: FloatArray) -> None:
        """Scores the next prompt tokens by their logits [n, n_vocab]."""
        k = self.request.logprobs or 0
        if not self._prompt_scores:
            self._prompt_scores.append(TokenInfo(int(self.ids[0]), self._piece(int(self.ids[0]))))
        after = self.ids[self.scored + 1 : self.scored + 1 + len(rows)]
        for row, token in zip(rows, after, strict=False):
            self._prompt_scores.append(self._info(logprobs.score(row, int(token), k)))
        self.scored += len(rows)
        if self.scored == self.n:
            self.handle.put(PromptScores(tuple(self._prompt_scores)))
            self._prompt_scores = []

    def push(self, token: int, logits: FloatArray) -> bool:
        """Takes a sampled token that is not an end-of-text token; True when it is the last one."""
        if self.request.logprobs is not None:
            self._scores.append(logprobs.score(logits, token, self.request.logprobs))
        assert self.held is not None
        self.last = token
        self.handle.tokens.append(token)
        return self.text.push(token) or len(self.text.tokens) >= self.limit or self._is_late(token)

    def _is_late(self, token: int) -> bool:
        limit = self.request.write_s
        if limit is None:
            return False
        self._lines = self._lines or b"\n" in self._piece(token)
        return self._lines and time.monotonic() - self.written_at > limit

    def send(self, last: bool = False) -> None:
        """Sends the text that is final."""
        for begin, end, text in self.text.take(last):
            tokens = self.text.tokens[begin:end]
            if self.request.logprobs is not None:
                infos = tuple(self._info(score) for score in self._scores[begin:end])
            else:
                infos = tuple([TokenInfo(token, self._piece(token)) for token in tokens])
            self.handle.put(TextEvent(text, infos))

    def finish(self, reason: str) -> None:
        """reason: stop, length or cancelled; a stop string that was found takes precedence over length."""
        stop = None
        if self.text.end is not None:
            rest = bytes(self.text.data[self.text.end :])
            stop = next((s for s in self.request.stop if s and rest.startswith(s.encode())), None)
            reason = "cancelled" if reason == "cancelled" else "stop"
        if reason != "cancelled":
            self.send(last=True)
        self.handle.put(Finished(reason, stop, self.usage()))  # type: ignore[arg-type]

    def usage(self) -> Usage:
        now = time.monotonic()
        read_until = self.written_at or now
        prefill = read_until - self.started_at if self.started_at else 0.0
        decode = now - self.written_at if self.written_at else 0.0
        share = self.keys_read / self.keys_visible if self.keys_visible else 1.0
        return Usage(
            self.n, self.n_cached, len(self.text.tokens), prefill, decode, share, self.attention_error
        )

    def close(self) -> None:
        self.sampler.close()

    # ---- tokens as clients see them ------------------------------------------------------------------------

    def _piece(self, token: int) -> bytes:
        return self._pieces([-1, token], 1)

    def _info(self, score: logprobs.Logprob) -> TokenInfo:
        top = tuple([(token, self._piece(token), value) for token, value in score.top or ()])
        return TokenInfo(score.token, self._piece(score.token), score.logprob, top)
