"""One side in a process of its own: a context, its prefill and its decode; events go to stdout as JSON lines."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from context_bench.fill import fill
from context_bench.forecast import Line
from context_bench.job import OURS, BenchError, Job
from context_bench.nodes import Nodes, windowed
from pyllama_long import _native, keywords, log
from pyllama_long._native import llama_cpp as C
from pyllama_long.context_options import kv_type
from pyllama_long.model import Model
from pyllama_long.opened import Opened, Wanted, open_model, settle
from pyllama_long.params import context_params
from pyllama_long.plan import AttentionPlan

CHEAP = "sinks(4)+window(508)"  # fills caches that cannot be copied
BLOCK = 512  # tokens that are computed and copied to fill a cache
WARM_UP = 16
GROUPS = 8  # groups of decoded tokens, for the median
SHOW_EVERY = 0.5  # seconds
MIN_SHARE = 0.8  # share of the processor time that all threads would use at full speed


def say(event: str, /, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)


def run(job: Job) -> None:
    with ExitStack() as stack:
        Side(job, stack).measure()


def peak_rss_mib() -> float:
    """The most that this process held. Linux's ru_maxrss begins with what the parent held, VmHWM does not."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 1024)


class Side:
    def __init__(self, job: Job, stack: ExitStack) -> None:
        self.job = job
        self.nodes = Nodes()
        opened = stack.enter_context(closing(self._open()))
        self.opened, self.config = opened, opened.config()
        self.cheap = _native.c_config(AttentionPlan.parse(CHEAP), opened.rope)
        self.ctx = opened.ctx
        self.memory = C.llama_get_memory(self.ctx)
        self.batch = _native.Batch(job.chunk)
        n_vocab = opened.model.n_vocab()
        random = np.random.default_rng(0)
        self.tokens = random.integers(min(300, n_vocab // 2), n_vocab, job.n_ctx).astype(np.int32)
        self.prefill_line, self.decode_line, self.shown = Line(), Line(), 0.0
        self.wall = self.processor = 0.0  # seconds since the last row

    def _open(self) -> Opened:
        job, kind = self.job, kv_type(self.job.kv_type)
        threads = {"n_threads": job.threads, "n_threads_batch": job.threads}
        o = keywords.options({"n_batch": job.chunk, "n_ubatch": job.chunk, **threads})

        def for_blocks(_model: Model, n_ctx: int, _plan: AttentionPlan) -> C.llama_context_params:
            params = context_params(o, n_ctx, kind, kind)
            params.swa_full = False  # windows keep what they see, as upstream's own programs have it
            if job.at:
                params.n_seq_max, params.kv_unified = 2, True  # fill() passes blocks through the second one
            if job.attention:
                params.cb_eval = self.nodes.callback
            return params

        ours = Wanted(job.plan, job.rope, job.n_ctx, (kind, kind))
        wanted = ours if job.side == OURS else replace(ours, attention="upstream", rope="auto")
        opened = open_model(job.model, o, wanted, for_blocks)
        settle(
            opened.model, opened.n_train, job.n_ctx, ours, o
        )  # upstream runs first, and a mistake is told before
        return opened

    def measure(self) -> None:
        if self.job.attention:
            self.attention()
            return
        self.decode(0, WARM_UP)
        self.decode(WARM_UP, 1)
        if self.job.side == OURS:
            self.tell_refused()
        C.llama_memory_clear(self.memory, False)
        if self.job.at:
            for depth in self.job.depths:
                self.at(depth)
        else:
            self.ladder()

    # ---- the two ways of measuring -------------------------------------------------------------------------

    def ladder(self) -> None:
        done, seconds = 0, 0.0
        for depth in self.job.depths:
            for start, n in self.chunks(done, depth):
                last = self.decode(start, n)
                seconds += last
                self.prefill_line.add(start + n / 2, last / n)
                self.show(start + n)
            self.row(depth, depth, depth / seconds, n / last, self.decode_speed(depth))
            self.cut(depth)
            done = depth

    def at(self, depth: int) -> None:
        n = min(self.job.chunk, depth)
        took: list[float] = []
        while len(took) < 3 and sum(took) < 30:
            if not took or not C.llama_memory_seq_rm(self.memory, 0, depth - n, -1):
                self.reach(depth - n)
            took.append(self.decode(depth - n, n))
        speed = n / statistics.median(took)
        self.row(depth, n, speed, speed, self.decode_speed(depth))

    def reach(self, depth: int) -> None:
        """Makes sequence 0 hold depth tokens, and the cache nothing else."""
        C.llama_memory_clear(self.memory, False)
        done = min(BLOCK, depth)
        for start, n in self.chunks(0, done):
            self.decode(start, n)
        if depth > done and not (done := fill(self.ctx, depth)):
            _native.configure(self.ctx, self.cheap)
            for start, n in self.chunks(0, depth):
                self.decode(start, n)
            _native.configure(self.ctx, self.config)
            return
        for start, n in self.chunks(done, depth):
            self.decode(start, n)

    def attention(self) -> None:
        """The time of each layer's attention, for a chunk up to a depth and for a token after it."""
        for depth in self.job.depths:
            n = min(self.job.chunk, depth)
            self.reach(depth - n)
            with self.nodes:
                self.decode(depth - n, n)
            chunk = self.nodes.seconds
            self.decode(depth, 1)
            with self.nodes:
                for i in range(self.job.decode_tokens):
                    self.decode(depth + 1 + i, 1)
            tokens = np.median(np.reshape(self.nodes.seconds, (self.job.decode_tokens, -1)), axis=0)
            layers = windowed(self.opened, len(chunk))
            for kind in ("full", "window"):
                mine = [i for i, window in enumerate(layers) if window == (kind == "window")]
                if mine:
                    ms = {"prefill_ms": chunk, "decode_ms": tokens}
                    means = {
                        name: float(f"{1e3 * np.mean([t[i] for i in mine]):.4g}") for name, t in ms.items()
                    }
                    say("attention", side=self.job.side, depth=depth, kind=kind, layers=len(mine), **means)

    # ---- pieces --------------------------------------------------------------------------------------------

    def chunks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """(first position, tokens) of the chunks; the last is full when there are tokens enough."""
        chunk = self.job.chunk
        while start < stop:
            n = (stop - start) % chunk or chunk
            yield start, n
            start += n

    def decode(self, start: int, n: int) -> float:
        """Seconds for n tokens from position `start` on, in one batch."""
        self.batch.put(self.tokens[start : start + n], start, 1)
        log.forget()
        used, begin = time.process_time(), time.perf_counter()
        code = C.llama_decode(self.ctx, self.batch.batch)
        C.llama_synchronize(self.ctx)
        seconds = time.perf_counter() - begin
        self.wall, self.processor = self.wall + seconds, self.processor + time.process_time() - used
        if code:
            raise BenchError(f"llama_decode gave {code} at position {start}: {log.complaint()}")
        return seconds

    def decode_speed(self, depth: int) -> float:
        """Tokens per second of single tokens after `depth`: the median over groups of them."""
        self.decode(depth, 1)  # the graph of one token is built
        speeds, at = [], depth + 1
        for group in np.array_split(np.arange(self.job.decode_tokens), min(GROUPS, self.job.decode_tokens)):
            speeds.append(len(group) / sum(self.decode(at + i, 1) for i in range(len(group))))
            at += len(group)
        speed = statistics.median(speeds)
        self.decode_line.add(depth, 1 / speed)
        return speed

    def cut(self, depth: int) -> None:
        """Removes the tokens from `depth` on from the cache."""
        if not C.llama_memory_seq_rm(self.memory, 0, depth, -1):
            raise BenchError("this model's memory cannot be cut back: its state is not kept per token")

    # ---- reports -------------------------------------------------------------------------------------------

    def show(self, done: int) -> None:
        if time.monotonic() - self.shown < SHOW_EVERY:
            return
        self.shown = time.monotonic()
        left = self.prefill_line.sum(done, self.job.depths[-1])
        decodes = (self.decode_line.at(depth) for depth in self.job.depths if depth >= done)
        left += sum(decodes) * (self.job.decode_tokens + 1)
        say("progress", done=done, left=left)

    def row(self, depth: int, tokens: int, speed: float, last: float, decode: float) -> None:
        speeds = {"prefill_tps": speed, "last_chunk_tps": last, "decode_tps": decode}
        counts = {"prefill_tokens": tokens, "decode_tokens": self.job.decode_tokens}
        rounded = {name: float(f"{value:.5g}") for name, value in speeds.items()}
        self.tell_share(depth)
        kv_mib = round(int(_native.lib.plong_llama_memory(self.ctx)) / 2**20, 2)
        memory = {"kv_mib": kv_mib, "peak_rss_mib": round(peak_rss_mib(), 1)}
        say("row", side=self.job.side, depth=depth, **memory, **rounded, **counts)

    def tell_share(self, depth: int) -> None:
        """Threads wait for each other, so a processor that is also used by other programs slows them by more than its
        share."""
        share = self.processor / (self.wall * self.job.threads)
        if share < MIN_SHARE:
            wanted = f"{share:.0%} of the time of {self.job.threads} threads"
            say(
                "note",
                text=f"at {depth:,} there was only {wanted}: other programs run, or the cores are fewer",
            )
        self.wall = self.processor = 0.0

    def tell_refused(self) -> None:
        reasons: dict[str, list[str]] = {}
        for layer, reason in _native.layers(self.ctx):
            if reason:
                reasons.setdefault(reason, []).append(str(layer))
        for reason, layers in reasons.items():
            say("note", text=f"upstream's attention in layers {', '.join(layers)}: {reason}")
