"""The tokens whose keys a context holds for sequence 0: evaluating them in chunks, rewinding, reusing a
prefix."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import numpy as np

from pyllama_long import _native, log
from pyllama_long._native import Batch, float_view, llama_cpp
from pyllama_long.arrays import MIN_PREFILL, FloatArray, IntArray, are_numbers, common_prefix
from pyllama_long.checkpoints import Bytes, Limits, SmallState, spare
from pyllama_long.errors import Cancelled, ContextOverflow, DecodeError, NotNumbers
from pyllama_long.rope import RopePolicy

Progress: TypeAlias = Callable[[int, int], None]
Checkpoint: TypeAlias = tuple[int, Bytes]
_NO_CHECKPOINTS = Limits(most=0)


class TokenSequence:
    """ids[:held] are the tokens whose keys are in the cache, ids[:length] those that the caller counts.

    length < held after a rewind: the rest stays until something else is written there, and is reused when
    the same tokens come again. length > held if the memory cannot go back, or has lost tokens: these are read again
    before the next ones, from the last checkpoint on. Changes made by others through the raw context are detected by
    its token counters and by where its memory begins and ends.

    checkpoints: (n, data) of the memory after ids[:n], in order.
    """

    def __init__(
        self,
        ctx: Any,
        model: Any,
        n_ctx: int,
        n_batch: int,
        rope: RopePolicy,
        outside: Callable[[], AbstractContextManager[None]] = nullcontext,
        limits: Limits = _NO_CHECKPOINTS,
        marks: Callable[[IntArray], IntArray] | None = None,
        page: int = 1,
        n_ubatch: int = 0,
    ) -> None:
        """outside: the context manager in which `progress` is called. limits: of checkpoints. marks: finds where
        messages begin in a text. page: of the plan (AttentionPlan.page), at multiples
        of which llama.cpp must cut too, every n_ubatch tokens."""
        self._page, self._step = page, n_batch
        if 1 < page <= n_ubatch < n_batch and n_ubatch % page:
            self._step = n_ubatch - n_ubatch % page
        self.ctx, self.n_ctx, self.n_batch, self.rope, self._outside = ctx, n_ctx, n_batch, rope, outside
        self.ids: IntArray = np.zeros(n_ctx, np.int32)
        self.length = self.held = 0
        self.live = 0  # the context has logits for the token at ids[live - 1]; 0: for none
        self.n_rows = 0  # the number of tokens up to it that have logits
        self.foreign = (0, 0)  # positions whose cached contents were put there by others and are not in ids
        self.batch = Batch(n_batch)
        self.cancelled = threading.Event()
        self.blocked = ""  # why nothing can be evaluated
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._memory = llama_cpp.llama_get_memory(ctx)
        self._small, self._limits, self._marks = SmallState(ctx, model), limits, marks
        self.checkpoints: list[Checkpoint] = []
        self.messages: IntArray = np.empty(
            0, np.int32
        )  # where messages begin in the next prompt, if that is known
        self._count = self._decoded()

    def _decoded(self) -> int:
        llama_cpp.llama_synchronize(self.ctx)
        perf = llama_cpp.llama_perf_context(self.ctx)
        return int(perf.n_p_eval + perf.n_eval)

    def block(self, why: str) -> None:
        """Nothing can be evaluated or sampled any more."""
        self.blocked, self.live = why, 0

    def count(self, n: int) -> None:
        """Sets the length of the text to n tokens: fewer than before, as many as the cache holds, or what the caller
        has put there itself. Raises ValueError."""
        if not 0 <= n <= self.n_ctx:
            raise ValueError(f"n_tokens is {n}: give 0 to {self.n_ctx}, the context window")
        if n > self.length and (n > self.held or not self.sync()):
            first, last = self.foreign
            self.foreign = (min(self.length, first) if last else self.length, n)
            self.held, self.live, self._count = n, 0, self._decoded()
        self.length = n

    def restore(
        self, ids: IntArray, foreign: tuple[int, int] = (0, 0), checkpoints: Sequence[Checkpoint] = ()
    ) -> None:
        """Notes that the cache was filled from outside with these tokens [n], and perhaps more after them. checkpoints:
        that were made of this text."""
        n = len(ids)
        self.ids[:n], self.live, self.foreign = ids, 0, foreign
        self.checkpoints = [] if not self.keeps else [one for one in checkpoints if one[0] <= n]
        self._count = self._decoded()
        self.held = n if self._memory is None else self._end()
        self._go_back(n)
        self.length = n

    def lose(self) -> None:
        """Empties the cache, whose contents cannot be relied on; tokens that are needed are read again."""
        if self._memory is not None:
            llama_cpp.llama_memory_clear(self._memory, True)
        self.held = self.live = 0
        self.checkpoints = []

    def _end(self) -> int:
        return int(llama_cpp.llama_memory_seq_pos_max(self._memory, 0)) + 1

    def sync(self) -> bool:
        """Whether the cache still holds what was evaluated here; `held` shrinks to what can be relied on."""
        if self.blocked:
            raise RuntimeError(self.blocked)
        if self._memory is None:
            return True
        end = self._end()
        mine = self._count == self._decoded() and end == self.held
        if mine and end and not self._small.window and not self._small.fixed:
            mine = llama_cpp.llama_memory_seq_pos_min(self._memory, 0) == 0
        if not mine:
            self.held, self.live, self.checkpoints = min(self.length, end), 0, []
        return mine

    def begin(self, tokens: IntArray, room: int) -> None:
        """Begins a new text with these tokens, which may need room for more."""
        if not self.sync():
            self.keep(0)
        self.length = 0
        self.admit(tokens, len(tokens) + room)

    def admit(self, tokens: IntArray, n: int) -> None:
        """Chooses the factor of a dynamic RoPE policy for a text that begins with these tokens and may take n.

        For a larger factor, the keys that will be reused are rotated. For a smaller one they are dropped if there are
        few, or if the text fits into the trained length, so that it is computed as the model was trained; otherwise
        the text keeps the larger factor.
        """
        if not self.rope.dynamic or not self.sync():
            return
        wanted, known = self.rope.factor_for(n, self.n_ctx), self.match(tokens)
        fewer = wanted < self.factor
        if known == 0 or (fewer and (wanted == 1.0 or known < len(tokens) // 2)):
            self.keep(0)
        elif fewer:
            return
        self._set_factor(wanted)

    @property
    def factor(self) -> float:
        """The factor of a dynamic RoPE policy that the cached keys have."""
        return _native.rope_factor(self.ctx, 0)

    def _set_factor(self, factor: float) -> None:
        if factor != self.factor:
            _native.set_rope_factor(self.ctx, 0, factor)
            self.checkpoints = []

    def match(self, tokens: IntArray, begin: int = 0) -> int:
        """How many of the tokens the cache holds from position begin on."""
        return common_prefix(self.ids[begin : max(begin, self.held)], tokens)

    def reuse(self, tokens: IntArray) -> IntArray:
        """Continues ids[:length] with those tokens that the cache holds. Returns those that are left to evaluate: at
        least MIN_PREFILL of them, unless the logits of the last one are there."""
        self.check(tokens, self.length)
        self.sync()
        begin = self.length
        n = self.match(tokens, begin)
        if not (n == len(tokens) and begin + n == self.live == self.held):
            end = begin + min(n, max(0, len(tokens) - MIN_PREFILL))
            n = self._readable(begin + n, max(begin, end - end % self._page)) - begin
        self.length = begin + n
        return tokens[n:]

    def last(self) -> IntArray:
        """Rewinds a text that has no logits by a few tokens and returns them. Raises ValueError when it is empty."""
        if self.length == 0:
            raise ValueError("nothing to continue from: give at least one token")
        begin = self._readable(self.length, max(0, self.length - MIN_PREFILL))
        if begin == self.length:
            raise DecodeError("there are no logits: evaluate a token after what came from elsewhere")
        tokens: IntArray = self.ids[begin : self.length].copy()
        self.length = begin
        return tokens

    def _readable(self, end: int, begin: int) -> int:
        """The first place from `begin` on after which all of ids[:end] are known tokens."""
        first, last = self.foreign
        return min(last, end) if max(first, begin) < min(last, end) else begin

    def keep(self, n: int) -> int:
        """Rewinds to n tokens and drops the rest from the cache. Returns n, or how many are left if the memory cannot
        go back to it (recurrent states, or a sliding window that has moved on): those of a checkpoint, or none."""
        self.length = self._go_back(n)
        return self.length

    def _go_back(self, n: int) -> int:
        """Drops all but n tokens from the cache. Returns how many it then holds: n, or fewer if it held fewer or cannot
        go back to n."""
        self.checkpoints = [one for one in self.checkpoints if one[0] <= n]
        if self._memory is not None and n < max(self.held, self._end()):
            can = n > 0 and self._small.can_go_back(0, n)
            if not can or not llama_cpp.llama_memory_seq_rm(self._memory, 0, n, -1):
                n = self._to_checkpoint()
        self.held = n = min(n, self.held)
        self.live = self.live if self.live == n else 0
        return n

    def _to_checkpoint(self) -> int:
        """Goes back to the last checkpoint, or empties the cache. Returns how many tokens it then holds."""
        while self.checkpoints:
            n, data = self.checkpoints[-1]
            if self._small.go_back(0, data, n):
                return n
            self.checkpoints.pop()
        if not llama_cpp.llama_memory_seq_rm(self._memory, 0, -1, -1):
            llama_cpp.llama_memory_clear(self._memory, True)
        return 0

    @property
    def keeps(self) -> bool:
        """Whether checkpoints are made."""
        return self._small.exists and self._limits.most > 0 and self._limits.n_bytes > 0

    def explain(self) -> str:
        """Which checkpoints are made."""
        return self._small.explain(self._limits)

    def _keep(self, least: int = 0) -> None:
        """Makes a checkpoint of the text as it is now, unless there is one near, or less than `least` tokens before."""
        last = self.checkpoints[-1][0] if self.checkpoints else 0
        if not self.keeps or self.foreign[1] or self.length - last < max(least, self._limits.near):
            return
        data = self._small.read(0)
        if data is None:
            return
        found = self.checkpoints
        found.append((self.length, data))
        while len(found) > self._limits.most or sum(len(one[1]) for one in found) > self._limits.n_bytes:
            found.pop(spare([one[0] for one in found]))

    def extend(
        self,
        tokens: IntArray,
        n_logits: int = 1,
        progress: Progress | None = None,
        visit: Callable[[int, FloatArray], None] | None = None,
        chunk: int = 0,
    ) -> None:
        """Evaluates tokens [n] after ids[:length], in chunks.

        The last n_logits tokens get logits. visit(first, rows): called for each chunk with all its logits
        [chunk, n_vocab], first is the position of row 0. Raises ValueError, ContextOverflow, Cancelled,
        DecodeError; what was evaluated before that stays.
        """
        n = len(tokens)
        self.check(tokens, self.length)
        self.sync()
        if self._memory is not None and not self.length == self.held == self._end():
            self._settle(progress)
        begin, total, step = self.length, self.length + n, min(chunk or self._step, self._step)
        step = max(step, min(self._page, self.n_batch))
        cuts = self._places(tokens)
        if self.rope.dynamic:
            self._set_factor(max(self.factor, self.rope.factor_for(total, self.n_ctx)))
        try:
            while self.length < total:
                if self.blocked:
                    raise RuntimeError(self.blocked)
                if self.cancelled.is_set():
                    raise Cancelled(f"cancelled after {self.length} of {total} tokens")
                i = self.length - begin
                cut = next((place for place in cuts if place >= self.length + MIN_PREFILL), total)
                size = min(step, cut - self.length)
                if cut < total and 0 < cut - self.length - size < MIN_PREFILL < size // 2:
                    size -= MIN_PREFILL
                if size < total - self.length:
                    beyond = (self.length + size) % self._page
                    size -= beyond if beyond < size else 0
                part = tokens[i : i + size]
                wanted = len(part) if visit else min(len(part), max(0, n_logits - (n - i - len(part))))
                self._decode(part, wanted)
                self._keep(0 if self.length == cut < total else self._limits.every)
                if visit:
                    visit(self.length - len(part), self.rows(len(part)))
                if progress:
                    with self._outside():
                        progress(self.length, total)
        finally:
            self._count = self._decoded()

    def _places(self, tokens: IntArray) -> list[int]:
        """Where checkpoints are to be made while these tokens are read after ids[:length], which may have ended a
        turn."""
        if not self.keeps or len(tokens) < self._limits.near:
            return []
        self._keep()
        marks = self.messages
        if self._marks is not None:
            marks = np.union1d(marks, self._marks(np.concatenate([self.ids[: self.length], tokens])))
        return self._limits.places(self.length + len(tokens), marks, self.length, self._page)

    def check(self, tokens: IntArray, begin: int) -> None:
        """Raises ValueError for tokens that the model does not have, ContextOverflow if they do not fit after
        `begin`."""
        if len(tokens) and not (tokens.min() >= 0 and tokens.max() < self.n_vocab):
            bad = np.flatnonzero((tokens < 0) | (tokens >= self.n_vocab))
            raise ValueError(
                f"token {tokens[bad[0]]} at index {bad[0]} is outside the vocabulary of {self.n_vocab}"
            )
        if begin + len(tokens) > self.n_ctx:
            raise ContextOverflow(begin + len(tokens), self.n_ctx)

    def _settle(self, progress: Progress | None) -> None:
        """Makes the cache hold ids[:length], no less and no more."""
        n = self.length
        at = self._go_back(n)
        if self._readable(n, at) != at:
            raise DecodeError(
                f"the cache holds {at} of {n} tokens, and what is lost came from elsewhere: call reset() and "
                "start over"
            )
        self.length = at
        if at < n:
            self.extend(self.ids[at:n].copy(), 0, progress)

    def _decode(self, part: IntArray, n_logits: int) -> None:
        begin, end = self.length, self.length + len(part)
        self.ids[begin:end] = part
        self.foreign = (self.foreign[0], min(self.foreign[1], begin))
        if self.foreign[0] >= self.foreign[1]:
            self.foreign = (0, 0)
        self.batch.put(part, begin, n_logits)
        self.live, self.n_rows = 0, n_logits
        log.forget()
        code = llama_cpp.llama_decode(self.ctx, self.batch.batch)
        if code != 0:
            stored = llama_cpp.llama_memory_seq_pos_max(self._memory, 0) + 1 if self._memory else begin
            self.held = min(max(stored, begin), end)
            if code == 2:
                raise Cancelled(f"cancelled at token {begin}")
            why = {1: "no room in the KV cache", -1: "the batch is not valid"}.get(code, f"code {code}")
            raise DecodeError(f"cannot evaluate tokens {begin} to {end}: {why}; {log.complaint()}")
        self.length = self.held = end
        if n_logits:
            self.live = end
            rows = self.row()[None] if n_logits == 1 else self.rows(n_logits)
            if not are_numbers(rows):
                self.length = begin
                self.lose()
                raise NotNumbers

    def row(self, i: int = -1) -> FloatArray:
        """Logits [n_vocab] of the i-th output of the last evaluation, -1 the last; valid until the next one."""
        self.check_row(i)
        return float_view(llama_cpp.llama_get_logits_ith(self.ctx, i), self.n_vocab)

    def check_row(self, i: int) -> None:
        """Raises DecodeError when there is no i-th output from the end (-1: the last) of the text."""
        if self.blocked:
            raise RuntimeError(self.blocked)
        if not 0 < self.live == self.length:
            raise DecodeError("there are no logits: evaluate tokens first")
        if not -self.n_rows <= i < 0:
            raise DecodeError(
                f"there are no logits {-i} tokens before the end, only for the last {self.n_rows}"
            )

    def rows(self, n: int) -> FloatArray:
        """Logits [n, n_vocab] of the last evaluation's n outputs; valid until the next evaluation."""
        return float_view(llama_cpp.llama_get_logits(self.ctx), n * self.n_vocab).reshape(n, self.n_vocab)
