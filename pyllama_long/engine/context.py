"""The model and the llama_context of an engine: what its thread does with sequences of cells."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import numpy as np

from pyllama_long import _native, explain, keywords, log, meter
from pyllama_long._native import Batch, Candidates, float_view, llama_cpp
from pyllama_long.arrays import MIN_PREFILL, FloatArray
from pyllama_long.checkpoints import Bytes, SmallState
from pyllama_long.context_options import kv_type, precision
from pyllama_long.engine.config import EngineConfig
from pyllama_long.errors import EngineClosed
from pyllama_long.logprobs import rows_at_once
from pyllama_long.model import Model
from pyllama_long.opened import Wanted, open_model
from pyllama_long.params import context_params
from pyllama_long.plan import AttentionPlan
from pyllama_long.users import Users

_MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ


class Context:
    """Opens a model for many sequences in shared cells. Raises ModelError, PlanError, RopeError.

    Everything but the attributes and `explain` belongs to one thread at a time. n_seq: the most sequences at a time;
    batch: rows of the next `decode`.
    """

    def __init__(self, config: EngineConfig, on_progress: Callable[[int, int], None] | None = None) -> None:
        self._stack = ExitStack()
        self._users, self._pid = Users(EngineClosed), os.getpid()
        try:
            self._open(config, on_progress)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, config: EngineConfig, on_progress: Callable[[int, int], None] | None) -> None:
        threads = {"n_threads": config.n_threads or None, "n_threads_batch": config.n_threads or None}
        # lets one prompt be read while all others write
        n_batch = max(config.n_batch, config.n_parallel + MIN_PREFILL)
        o = keywords.options({"n_batch": n_batch, **threads})
        kind = kv_type(config.kv_type)
        adapters = [(os.fspath(path), scale) for path, scale in config.lora]
        wanted = Wanted(
            config.attention, config.rope, config.n_ctx, (kind, kind), precision(config.precision), adapters
        )

        def for_many(model: Model, n_ctx: int, plan: AttentionPlan) -> llama_cpp.llama_context_params:
            self.whole_only = bool(
                llama_cpp.llama_model_is_recurrent(model.model)
                or llama_cpp.llama_model_is_hybrid(model.model)
            )
            self.n_seq = min(_MAX_SEQUENCES, self._sequences(config.n_parallel))
            if plan.page > 1:  # a page must fit beside the streams
                o.n_batch = max(o.n_batch, config.n_parallel + MIN_PREFILL + plan.page)
            # llama.cpp rounds n_ctx up to 256, but cuts the batch to n_ctx before that. The batch must have room for an
            # output of every sequence.
            params = context_params(o, max(n_ctx, _MAX_SEQUENCES), kind, kind)
            self.n_batch = params.n_batch
            params.n_seq_max, params.kv_unified = self.n_seq, True
            params.n_batch = max(self.n_batch, self.n_seq)
            if config.embedding:  # a model that pools needs the whole text in one ubatch
                params.n_ubatch = params.n_batch
            return params

        self.opened = opened = open_model(config.model_path, o, wanted, for_many, on_progress)
        self._interrupt = _native.Interrupt(opened.ctx)
        self._stack.enter_context(closing(self._interrupt))
        self._stack.enter_context(closing(opened))
        self.model, self.metadata, self.n_train = opened.model, opened.metadata, opened.n_train
        self.plan, self.rope, self.lora = opened.plan, opened.rope, opened.lora
        self.ctx: Any = opened.ctx
        self._n_ctx = opened.n_ctx()
        self._memory = llama_cpp.llama_get_memory(self.ctx)
        self.generates = self._memory is not None and not llama_cpp.llama_model_has_encoder(self.model.model)
        self.small = SmallState(self.ctx, self.model.model)
        self.limits = config.limits
        self.n_vocab = self.model.n_vocab()
        # A ubatch must be finished if it cannot be undone, or if it has overwritten the cells of earlier tokens.
        self.can_stop = not self.whole_only and self._memory is not None
        self.n_ubatch = min(self.n_batch, opened.params.n_ubatch)
        if self.plan.page > 1:  # llama.cpp cuts a batch into ubatches anywhere
            self.n_batch = self.n_ubatch
        self.has_phases = self.plan.prefill != self.plan.tail
        self.batch, self.candidates = Batch(self.n_batch), Candidates(self.n_vocab)
        self.rows_at_once = rows_at_once(self.n_batch, self.n_vocab)
        self._eog: dict[int, bool] = {}

    def _sequences(self, n_parallel: int) -> int:
        # A recurrent state takes a fixed amount of memory for every possible sequence; cells do not.
        return n_parallel + min(n_parallel, 8) + 1 if self.whole_only else max(32, 4 * n_parallel)

    def n_ctx(self) -> int:
        """Cells."""
        return self._n_ctx

    @property
    def forked(self) -> bool:
        """Whether this is a child process, which has the model's memory but none of its threads."""
        return os.getpid() != self._pid

    def check_process(self) -> None:
        """Raises EngineClosed after a fork."""
        if self.forked:
            raise EngineClosed(
                "this engine was started before the process forked: start one in the child process"
            )

    @contextmanager
    def using(self) -> Iterator[None]:
        """For other threads that read the model: it is not freed within the block. Raises EngineClosed."""
        self.check_process()
        with self._users.use():
            yield

    def close(self, wait_s: float | None = None) -> None:
        """Waits until nobody is `using` the model, then frees it. After wait_s, the last user frees it instead."""
        self._users.end(self._stack.close, wait_s)

    def explain(self) -> str:
        return explain.explain(self.opened, self.small.explain(self.limits))

    def layers(self) -> list[tuple[int, str]]:
        """The layers with attention, and why llama.cpp computes each, or ""."""
        return _native.layers(self.ctx)

    def is_eog(self, token: int) -> bool:
        """Whether the token ends a text."""
        known = self._eog.get(token)
        if known is None:
            known = self._eog[token] = bool(llama_cpp.llama_vocab_is_eog(self.model.vocab, token))
        return known

    # ---- evaluating ----------------------------------------------------------------------------------------

    def decode(self, n: int) -> int:
        """Calls llama_decode on the first n rows of `batch` and returns its code, which is 2 after `stop`."""
        self.batch.batch.n_tokens = n
        log.forget()
        return int(llama_cpp.llama_decode(self.ctx, self.batch.batch))

    def stop(self, on: bool) -> None:
        """Sets whether a `decode` ends at once, with nothing done; from any thread. Only if one ubatch holds all of
        it, and can_stop."""
        self._interrupt.set(on)

    def logits(self, n: int) -> FloatArray:
        """Logits [n, n_vocab] of the n rows that were marked for output, in order; valid until the next `decode`."""
        return float_view(llama_cpp.llama_get_logits(self.ctx), n * self.n_vocab).reshape(n, self.n_vocab)

    def want_embeddings(self, on: bool) -> None:
        llama_cpp.llama_set_embeddings(self.ctx, on)

    def embedding(self, row: int) -> FloatArray:
        """[n_embd] of a row of the last `decode`; valid until the next one."""
        pointer = llama_cpp.llama_get_embeddings_ith(self.ctx, row)
        return float_view(pointer, llama_cpp.llama_model_n_embd(self.model.model))

    def pooled(self, seq: int) -> FloatArray:
        """[n_embd] of a sequence, where the model pools."""
        pointer = llama_cpp.llama_get_embeddings_seq(self.ctx, seq)
        return float_view(pointer, llama_cpp.llama_model_n_embd(self.model.model))

    def stats(self) -> tuple[int, int]:
        """Keys read, and keys that exact attention would have read, since loading."""
        stats = _native.stats(self.ctx)
        return stats.keys_read, stats.keys_visible

    def error(self) -> float | None:
        """The relative error of attention that the plan's checks have measured since loading; None if it has none."""
        return meter.error(self.ctx) if self.plan.checked else None

    # ---- sequences -----------------------------------------------------------------------------------------

    def reusable(self, seq: int, held: int, n: int) -> bool:
        """Whether the first n of the tokens that a sequence holds can be continued from."""
        if n == held:
            return True
        return not self.whole_only and self.small.can_go_back(seq, n)

    def fork(self, src: int, dst: int, n: int) -> None:
        llama_cpp.llama_memory_seq_cp(self._memory, src, dst, 0, n)

    def truncate(self, seq: int, n: int) -> bool:
        """Drops the tokens from n on. False if the memory cannot go back; it then holds nothing of the sequence."""
        if self._memory is None:
            return True
        if n and llama_cpp.llama_memory_seq_rm(self._memory, seq, n, -1):
            return True
        llama_cpp.llama_memory_seq_rm(self._memory, seq, -1, -1)
        return n == 0

    def go_back(self, seq: int, data: Bytes, n: int) -> bool:
        """Cuts a sequence after its first n tokens, of which data is the checkpoint. If False, it can only be emptied,
        or this be tried again with more room."""
        return self.small.go_back(seq, data, n)

    @property
    def keeps(self) -> bool:
        """Whether checkpoints are kept."""
        return self.small.exists and self.limits.most > 0 and self.limits.n_bytes > 0

    def clear(self) -> None:
        """Empties all cells."""
        if self._memory is not None:
            llama_cpp.llama_memory_clear(self._memory, True)
        for seq in range(self.n_seq):
            self.set_tail(seq, None)

    def length(self, seq: int) -> int:
        return int(llama_cpp.llama_memory_seq_pos_max(self._memory, seq)) + 1

    def set_tail(self, seq: int, pos: int | None) -> None:
        _native.set_tail(self.ctx, seq, pos)

    def set_factor(self, seq: int, factor: float) -> None:
        """Sets the factor of a dynamic RoPE policy. Raises RuntimeError when the sequence shares cells."""
        if self.rope.dynamic:
            _native.set_rope_factor(self.ctx, seq, factor)

    def state_size(self, seq: int) -> int:
        """Bytes of `state`."""
        return int(llama_cpp.llama_state_seq_get_size(self.ctx, seq))

    def state(self, seq: int) -> Bytes:
        """The contents of a sequence's cells."""
        size = self.state_size(seq)
        data = np.empty(size, np.uint8)
        n = llama_cpp.llama_state_seq_get_data(self.ctx, _native.byte_pointer(data), size, seq)
        if not 0 < n <= size:
            raise RuntimeError(f"the state of a sequence cannot be saved: {log.complaint()}")
        return data[:n]

    def set_state(self, seq: int, data: Bytes, n: int) -> bool:
        """Fills the cells of an empty sequence. If the data is not n tokens, returns False and leaves it empty.
        Raises RuntimeError when something remains there: the cells can then only be emptied as a whole."""
        log.forget()
        taken = llama_cpp.llama_state_seq_set_data(self.ctx, _native.byte_pointer(data), len(data), seq)
        if taken == len(data) and self.length(seq) == n:
            return True
        llama_cpp.llama_memory_seq_rm(self._memory, seq, -1, -1)
        if self.length(seq):  # a position of 2^31 - 1, which no range of llama.cpp's reaches
            raise RuntimeError("a saved state has positions that cannot be: all cells are emptied")
        return False
