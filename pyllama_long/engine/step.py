"""One batch: a token of every running stream, and as much of the prompts as there is time for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import TypeAlias

import numpy as np

from pyllama_long import log
from pyllama_long.arrays import FloatArray, are_numbers
from pyllama_long.engine.batching import Batching
from pyllama_long.engine.context import Context
from pyllama_long.engine.job import RESERVE, Job
from pyllama_long.engine.prefix import BLOCK, MIN_PREFILL
from pyllama_long.errors import DecodeError, NotNumbers
from pyllama_long.grammar import Constraint

_GROW = RESERVE // 4  # more cells that an answer without max_tokens reserves at a time
_SMALL = 64  # tokens: about as many as a matrix product handles at once
_MAX_PASSED = 3  # the most steps in a row without the oldest prompt
_OWED_STEPS = 2  # chunks that streams may wait for when prompts are short
_STOPPED = 2  # llama_decode's code
_REST = 0.1  # share of a step below which no further prompt is added
# share of a step's time after an ended one: this one cannot be ended, so newcomers wait for all of it
_AFTER_STOP = 0.05
_MIN_AFTER_STOP = 32  # prompt tokens in it at least, so that a slow model progresses too
Interruptible: TypeAlias = Callable[[bool], AbstractContextManager[Callable[[], bool]]]
logger = logging.getLogger("pyllama_long.engine")


class Step:
    """writers: streams, each with one row of the batch; parts: (request, n) of prompts, in the rows after them."""

    def __init__(self, batching: Batching, context: Context) -> None:
        self._batching, self._context = batching, context
        self._sampling = self._decoding = 0.0
        self._reserve()
        self._writers = [job for job in batching.running if job.writing]
        self._parts = self._choose()

    def _reserve(self) -> None:
        """Reserves cells for streams without max_tokens, and ends them where there is no room."""
        for job in [job for job in self._batching.running if job.writing]:
            assert job.held is not None
            if job.held.n < job.reserved:
                continue
            n = min(_GROW, job.n + job.limit - job.reserved)
            if not job.open_ended or n <= 0 or not self._extend(job, n):
                self._batching.finish(job, "length")

    def _extend(self, job: Job, n: int) -> bool:
        """Reserves n more cells for a request without max_tokens; False when there is no room."""
        batching, held = self._batching, job.held
        assert held is not None
        if batching.pool.available() - batching.committed < n:
            return False
        job.reserved += n
        job.factor = max(held.factor, self._context.rope.factor_for(job.reserved, self._context.n_ctx()))
        return job.factor == held.factor or batching.pool.set_factor(held, job.factor)

    def _choose(self) -> list[tuple[Job, int]]:
        """Chooses the prompt tokens of this step. Prompts that can be read to the end go first, the shortest ahead,
        and without others, so that their first tokens do not wait for longer prompts; streams wait a little for them.
        After _MAX_PASSED such steps, the oldest prompt gets its share of one. Otherwise the shortest may take half
        of the time, and the oldest gets the rest."""
        batching, pace, streams, depth = self._batching, self._batching.pace, len(self._writers), self._depth
        readers = [job for job in batching.running if not job.writing]
        if not readers:
            return []
        oldest, rows = readers[0], self._context.n_batch - streams
        readers.sort(key=lambda job: (pace.seconds(depth(job), job.unread), job.unread))
        parts: dict[Job, int] = {}
        if batching.passed < _MAX_PASSED and not pace.owes(streams, _OWED_STEPS):
            parts = self._ending(readers, rows)
        if not parts:
            if pace.owes(streams):
                return []
            part = _AFTER_STOP if batching.was_stopped else 1.0
            share, order = 1.0, dict.fromkeys([readers[0], oldest, *readers])
            for job in order:
                whole = pace.tokens(depth(job), streams, self._context.n_batch, part)
                if batching.was_stopped:
                    whole = max(whole, _MIN_AFTER_STOP)
                half = 0.5 if job is readers[0] is not oldest else share
                n = self._part(job, int(half * whole), rows - sum(parts.values()))
                if n:
                    parts[job], share = n, share - n / whole
                if share < _REST:
                    break
        batching.passed = 0 if oldest in parts else batching.passed + 1
        return list(parts.items())

    def _ending(self, readers: list[Job], rows: int) -> dict[Job, int]:
        """The shortest prompts that can be read to the end in one step, in about twice the time of the first one."""
        parts: dict[Job, int] = {}
        for job in readers:
            n = sum(parts.values())
            most = self._batching.pace.tokens(self._depth(job), len(self._writers), self._context.n_batch)
            most = max(_SMALL, 2 * readers[0].unread) - n if parts else max(most, _SMALL)
            if self._part(job, min(most, job.unread), rows - n) < job.unread:
                break
            parts[job] = job.unread
        return parts

    @staticmethod
    def _depth(job: Job) -> int:
        assert job.held is not None
        return job.held.n

    def _part(self, job: Job, room: int, rows: int) -> int:
        """About `room` tokens of a prompt, at most `rows`, up to the next place for a checkpoint. Never fewer than
        MIN_PREFILL while there are more, so that its answer does not depend on what else is evaluated."""
        most = min(rows, self._context.rows_at_once) if job.scores_prompt else rows
        unread = job.goal - self._depth(job)
        if room <= 0 or most < min(unread, MIN_PREFILL):
            return 0
        n = max(room, MIN_PREFILL)
        if unread - n < MIN_PREFILL:
            n = unread
        if n > most:
            n = most if unread - most >= MIN_PREFILL or most < 2 * MIN_PREFILL else most - MIN_PREFILL
        return self._whole_pages(job, min(n, unread), most)

    def _whole_pages(self, job: Job, n: int, most: int) -> int:
        """n, or fewer that end with a page of the plan, unless the prompt ends there; if none does, those up to the end
        of the page or of the prompt."""
        page, left = self._context.plan.page, job.n - self._depth(job)
        beyond = (self._depth(job) + n) % page
        if beyond == 0 or n == left:
            return n
        if n > beyond:
            return n - beyond
        whole = n + page - beyond
        whole = left if left - whole < MIN_PREFILL else whole
        if whole <= most:
            return whole
        # later, when fewer others write; at once, if rows are limited by something else
        return n if job.scores_prompt else 0

    # ---- evaluating ----------------------------------------------------------------------------------------

    def run(self, masks: ThreadPoolExecutor, interruptible: Interruptible) -> None:
        """masks: the thread that computes grammars' masks. interruptible: what an evaluation runs within that a new
        request may end; it gives a function that tells whether one did."""
        while self._writers or self._parts:
            n, n_out = self._fill()
            if self._batching.pool.make_room(n):
                before = self._context.stats()
                begin = time.perf_counter()
                prepared = self._prepare_masks(masks)
                with interruptible(self._may_stop(n)) as stopped:
                    code = self._context.decode(n)
                if prepared is not None:
                    prepared.result()
                self._decoding += time.perf_counter() - begin
                if code == _STOPPED and stopped():
                    return
                if code == 0:
                    self._done(n_out, before)
                    return
                if code != 1:
                    self._failed(code)
                    return
            self._shrink()

    def _may_stop(self, n: int) -> bool:
        """Whether a new request may end this step early, so that it is evaluated again later."""
        goes_on = any(n < job.unread for job, n in self._parts)
        return goes_on and self._context.can_stop and n <= self._context.n_ubatch

    def _prepare_masks(self, masks: ThreadPoolExecutor) -> Future[None] | None:
        """Computes the tokens that grammars allow next, on another thread, while the batch is evaluated."""
        found = [job.sampler.constraint for job in self._writers]
        constraints = [constraint for constraint in found if constraint is not None]
        return masks.submit(_prepare, constraints) if constraints else None

    def _fill(self) -> tuple[int, int]:
        """Writes the batch. Returns its rows, and how many of them have logits."""
        batch, writers = self._context.batch, self._writers
        at = len(writers)
        batch.token[:at] = [job.last for job in writers]
        batch.pos[:at] = [job.held.n for job in writers]  # type: ignore[union-attr]
        batch.seq[:at] = [job.held.seq for job in writers]  # type: ignore[union-attr]
        batch.logits[:at] = 1
        n_out = at
        for job, n in self._parts:
            assert job.held is not None
            begin, end = job.held.n, at + n
            batch.token[at:end] = job.ids[begin : begin + n]
            batch.pos[at:end] = np.arange(begin, begin + n)
            batch.seq[at:end], batch.logits[at:end] = job.held.seq, job.scores_prompt
            ends = begin + n == job.n
            if ends:
                batch.logits[end - 1] = 1
            n_out += n if job.scores_prompt else int(ends)
            at = end
        return at, n_out

    def _shrink(self) -> None:
        """Drops an idle sequence or makes the batch smaller, after the cache had no room for it."""
        batching, idle = self._batching, self._batching.pool.idle
        if idle:
            batching.pool.evict(idle[0])
        elif self._parts:
            job, n = self._parts.pop()
            half = n // 2
            half -= (self._depth(job) + half) % self._context.plan.page
            if half > 0:
                self._parts.append((job, half))
            elif not self._writers and not self._parts:
                self._parts = []
                batching.fail(job, DecodeError("there is no room in the KV cache for this prompt"))
        else:
            job = self._writers.pop()
            batching.finish(job, "length") if job.open_ended else batching.fail(
                job, DecodeError("there is no room in the KV cache for more of this answer")
            )

    def _failed(self, code: int) -> None:
        why = {2: "aborted", -1: "the batch is not valid"}.get(code, f"code {code}")
        error = f"llama.cpp could not evaluate a batch: {why}; {log.complaint()}"
        for job in [*self._writers, *(job for job, _ in self._parts)]:
            self._batching.fail(job, DecodeError(error))

    # ---- after decoding ------------------------------------------------------------------------------------

    def _done(self, n_out: int, before: tuple[int, int]) -> None:
        pool = self._batching.pool
        parts = [(self._depth(job), n) for job, n in self._parts]
        self._count_keys(before)
        for job in self._writers:
            assert job.held is not None
            job.held.ids[job.held.n] = job.last
            pool.grown(job.held, 1)
            if job.held.n % BLOCK == 0:
                pool.keep(job.held, self._context.limits.every)
        for job, n in self._parts:
            assert job.held is not None
            goal = job.goal
            pool.grown(job.held, n)
            if job.held.n == goal < job.n:
                pool.keep(job.held)
        rows = self._context.logits(n_out) if n_out else None
        out = at = 0
        for job in self._writers:
            assert rows is not None
            self._sample(job, at, rows[out])
            at, out = at + 1, out + 1
        for job, n in self._parts:
            at += n
            out = self._read(job, n, at, out, rows)
        self._count_time(len(self._writers), parts)

    def _read(self, job: Job, n: int, at: int, out: int, rows: FloatArray | None) -> int:
        """Handles a chunk of n prompt tokens whose last row is at - 1; returns the first row of logits after it."""
        job.read()
        ends = job.unread == 0
        if job.scores_prompt:
            assert rows is not None
            scored = rows[out : out + n]
            out += n
            if not self._guarded(job, lambda: self._score(job, scored)):
                return out
        elif ends:
            out += 1
        if ends:
            assert rows is not None
            self._sample(job, at - 1, rows[out - 1])
        return out

    def _guarded(self, job: Job, work: Callable[[], None]) -> bool:
        """Does work for one request, and says whether it still runs; an error ends only this request."""
        try:
            work()
        except DecodeError as error:
            self._batching.fail(job, error)
        except Exception as error:
            logger.exception("a request failed")
            reason = DecodeError(f"the request met an error: {error}")
            if job in self._batching.running:
                self._batching.fail(job, reason)
            else:
                job.handle.fail(reason)
                if job.held is None or job.held.busy:  # its cells were not given back
                    raise
        return job in self._batching.running

    @staticmethod
    def _score(job: Job, scored: FloatArray) -> None:
        if not are_numbers(scored):
            raise NotNumbers
        job.score(scored)

    def _sample(self, job: Job, row: int, logits: FloatArray) -> None:
        """Samples the next token of a stream from row `row` of the batch, or ends one that is to write nothing."""
        if are_numbers(logits):
            if job.limit == 0:
                self._batching.finish(job, "length")
                return
            self._guarded(job, lambda: self._next(job, row, logits))
            return
        if job.n_cached:
            # The reused keys may be broken, and every text that shares them would fail in the same way.
            self._batching.pool.distrust(job.ids[: job.n_cached], job.salt)
            if not job.writing:
                self._batching.read_again(job)
                return
        self._batching.fail(job, NotNumbers())

    def _next(self, job: Job, row: int, logits: FloatArray) -> None:
        begin, context, batching = time.perf_counter(), self._context, self._batching
        token = job.sampler.sample(context.ctx, row, logits, context.candidates)
        self._sampling += time.perf_counter() - begin
        if context.is_eog(token):
            batching.finish(job, "stop")
            return
        full = job.push(token, logits)
        if job.sampler.ended:
            batching.finish(job, "stop")
        elif full:
            batching.finish(job, "length")
        else:
            job.send()

    def _count_keys(self, before: tuple[int, int]) -> None:
        """Reads the meter, and divides the keys that the batch read among its requests, in proportion to how many
        their rows could see."""
        read, visible = (now - then for now, then in zip(self._context.stats(), before, strict=True))
        share = read / visible if visible else 1.0
        error = self._context.error()
        self._batching.counters.attention_error = error or 0.0
        for job, n in [*((job, 1) for job in self._writers), *self._parts]:
            assert job.held is not None
            seen = n * (job.held.n + (n + 1) / 2)
            job.keys_visible += seen
            job.keys_read += seen * share
            job.attention_error = error

    def _count_time(self, streams: int, parts: list[tuple[int, int]]) -> None:
        counters, whole = self._batching.counters, time.perf_counter() - self._batching.step_began
        n_prompt = sum(n for _, n in parts)
        self._batching.pace.measured(streams, parts, whole)
        counters.steps += 1
        counters.mix("step_ms", 1000 * whole)
        counters.mix("overhead_ms", 1000 * (whole - self._decoding - self._sampling))
        if n_prompt:
            counters.mix("prefill_tokens_per_s", n_prompt / whole)
        else:
            counters.mix("decode_tokens_per_s", streams / whole)


def _prepare(constraints: list[Constraint]) -> None:
    for constraint in constraints:
        with suppress(DecodeError):  # the request ends when its next token is chosen
            constraint.prepare()
