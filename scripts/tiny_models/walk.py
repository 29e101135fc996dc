"""What one context computes of a model, through plain llama_decode: the same steps whatever computes attention."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import saved_state
from raw_model import Context, Logits, Model

from pyllama_long._native import llama_cpp as C
from tiny_models.library import Counts, Library

CHUNK = 96  # n_ubatch
PROMPT = 300  # beyond the windows, and beyond the cells of a window's cache
LEARNED = 180  # where positions are learned, there are 256
SHORT = 40  # prompt of the second sequence
STEPS = 5  # tokens that are evaluated one by one
N_CTX = 512  # of a sequence


@dataclass
class Walk:
    """Logits per step of the walk; attention nodes of the graph of a chunk and of a token, upstream's and ours."""

    logits: dict[str, Logits] = field(default_factory=dict)
    chunk: tuple[int, int] = (0, 0)
    token: tuple[int, int] = (0, 0)
    layers: list[tuple[int, str]] = field(default_factory=list)
    cut: bool = False  # whether the memory can remove a tail


class Walker:
    """One context of a model. plan=None: upstream's attention. unified: one cache for both sequences."""

    def __init__(
        self, library: Library, model: Model, plan: str | None, flash: bool, unified: bool, prompt: int
    ) -> None:
        self.counts = Counts()
        watch = (library.count, ctypes.cast(ctypes.pointer(self.counts), ctypes.c_void_p))
        self.model, self.prompt = model, prompt
        options: dict[str, Any] = {"flash": flash, "unified": unified, "swa_full": False, "watch": watch}
        self.ctx = Context(
            model, N_CTX * (2 - unified), plan, n_seq=2, n_ubatch=CHUNK, n_threads=1, **options
        )
        self.out = Walk()
        self.tokens = [int(t) for t in np.random.default_rng(1).integers(0, model.n_vocab, 2 * N_CTX)]

    def walk(self) -> Walk:
        """Raises RuntimeError if a step fails."""
        try:
            if C.llama_model_has_encoder(self.model.ptr):
                self.encode()
            if self.causal():
                self.steps()
            else:
                self.whole()
            self.out.layers = self.ctx.layers()
            return self.out
        finally:
            self.ctx.close()

    def causal(self) -> bool:
        """Whether the model makes text from left to right: then it has a memory."""
        return bool(self.ctx.memory)

    def whole(self) -> None:
        self.out.logits["whole"] = self.ctx.decode(self.tokens[:CHUNK])
        self.out.chunk = self.out.token = self.counted()

    def encode(self) -> None:
        batch = C.llama_batch_init(SHORT, 0, 1)
        batch.n_tokens = SHORT
        for i in range(SHORT):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = self.tokens[i], i, 1, 0
            batch.logits[i] = False
        code = C.llama_encode(self.ctx.ptr, batch)
        C.llama_batch_free(batch)
        if code:
            raise RuntimeError(f"llama_encode gave {code}")
        self.counted()

    def steps(self) -> None:
        out, ctx, tokens = self.out.logits, self.ctx, self.tokens
        parts = []
        for start in range(0, self.prompt, CHUNK):
            parts.append(ctx.decode(tokens[start : min(start + CHUNK, self.prompt)], start))
            self.out.chunk = self.counted() if start == 0 else self.out.chunk
        out["prompt"] = np.concatenate(parts)
        self.counted()
        end = self.one_by_one("decode", self.prompt)
        self.out.token = tuple(n // STEPS for n in self.counted())  # type: ignore[assignment]
        parts = []
        for start in range(0, SHORT, SHORT // 2):  # the first goes on while the second reads its prompt
            rows = [(tokens[end], end, 0)]
            rows += [(tokens[N_CTX + i], i, 1) for i in range(start, start + SHORT // 2)]
            parts.append(ctx.decode_rows(rows))
            end += 1
        out["two sequences"] = np.concatenate(parts)
        self.out.cut = bool(C.llama_memory_seq_rm(ctx.memory, 0, end - 3, -1))
        if self.out.cut:
            end = self.one_by_one("removed tail", end - 3, shift=7)
        state = saved_state.save(ctx, 0)
        ctx.clear()
        if not saved_state.restore(ctx, state, 0):
            raise RuntimeError("the saved state was not taken back")
        self.one_by_one("restored state", end)

    def one_by_one(self, name: str, start: int, shift: int = 0) -> int:
        """Evaluates STEPS tokens of the first sequence from a position on, and returns the position after them."""
        parts = [self.ctx.decode([self.tokens[i + shift]], i) for i in range(start, start + STEPS)]
        self.out.logits[name] = np.concatenate(parts)
        return start + STEPS

    def counted(self) -> tuple[int, int]:
        """Attention nodes since the last call: upstream's and ours."""
        found = self.counts.upstream, self.counts.ours
        self.counts.upstream = self.counts.ours = 0
        return found


def walk(library: Library, pointer: Any, plan: str | None, flash: bool = True, unified: bool = True) -> Walk:
    """The walk of a model through a new context."""
    prompt = LEARNED if "learned" in library.kind(pointer) else PROMPT
    return Walker(library, Model.of(pointer), plan, flash, unified, prompt).walk()
