"""A llama_cpp.Llama that evaluates long texts: opened, its tokens and their logits, its tail, its saved states."""

from __future__ import annotations

import os
import random
import warnings
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial
from operator import index
from typing import Any, NoReturn

import numpy as np

from pyllama_long import _native, context_options, explain, keywords, last_turn, log, marks, meter
from pyllama_long._native import llama_cpp
from pyllama_long.arrays import FloatArray, IntArray, as_ids, common_prefix
from pyllama_long.checkpoints import Limits
from pyllama_long.errors import NotNumbers
from pyllama_long.model import Model
from pyllama_long.opened import Opened, Wanted, open_model
from pyllama_long.plan import AttentionPlan
from pyllama_long.rope import RopePolicy
from pyllama_long.sequence import Progress, TokenSequence
from pyllama_long.turns import Turns, alone, looking

_ALL_ROWS_BYTES = 1 << 30  # the largest table of all logits that logits_all may keep


def _are_finite(vectors: Any) -> bool:
    """Whether nested lists contain only finite numbers."""
    if vectors and isinstance(vectors[0], list):
        return all(map(_are_finite, vectors))
    return bool(np.isfinite(vectors).all())


class _Closed:
    """Replaces the model, the context and the sequence after `close`, so that nothing freed can be reached."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError("this LongLlama is closed")

    def __setattr__(self, name: str, value: object) -> None:
        raise RuntimeError("this LongLlama is closed")


class Evaluator(llama_cpp.Llama):
    """What LongLlama is without writing: see there. opened: the model and its context."""

    opened: Opened
    _model: Model
    _batch: Any
    sequence: TokenSequence

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        n_ctx: int = 0,
        attention: str | AttentionPlan = "auto",
        rope: str | RopePolicy = "auto",
        kv_type: str = "f16",
        progress: Progress | None = None,
        precision: str = "auto",
        checkpoints: int = 64,
        checkpoint_every: int = 2048,
        checkpoint_ram: int = 2 << 30,
        **llama_kwargs: Any,
    ) -> None:
        self._stack, self.turns = ExitStack(), Turns()
        texts = {"attention": str(attention), "rope": str(rope), "kv_type": kv_type, "precision": precision}
        self.model_path = os.fspath(model_path)
        kept = {
            "checkpoints": checkpoints,
            "checkpoint_every": checkpoint_every,
            "checkpoint_ram": checkpoint_ram,
        }
        self._arguments = {"model_path": self.model_path, "n_ctx": n_ctx, **texts, **kept, **llama_kwargs}
        self._limits = Limits(checkpoints, checkpoint_every, checkpoint_ram)
        o = keywords.options(llama_kwargs)
        if not 0 <= (n_ctx := index(n_ctx)) < 2**31:
            raise ValueError(f"n_ctx is {n_ctx}: give a number of tokens, or 0 for the trained length")
        kv = context_options.kv_types(kv_type, o.type_k, o.type_v)
        adapters = [(o.lora_path, o.lora_scale)] if o.lora_path else []
        wanted = Wanted(attention, rope, n_ctx, kv, context_options.precision(precision), adapters)
        opened = open_model(model_path, o, wanted)
        self._stack.enter_context(closing(opened))
        self._take(opened, o)
        self.progress, self.cache, self.sampled_row = progress, None, -1
        self._sampler: Any = None
        self._tail_is_found = False  # whether it was found by a completion, not set by the caller
        self._chat: tuple[Sequence[Any], str | None] | None = None
        self._keep_all_rows(o.logits_all)

    # ---- loading -------------------------------------------------------------------------------------------

    def _take(self, opened: Opened, o: Any) -> None:
        """Sets attributes from the opened model, ours and llama_cpp's."""
        self.opened, self._model, self._ctx = opened, opened.model, opened.context
        self.plan, self.rope, self.precision = opened.plan, opened.rope, opened.precision
        self.plan_reason, self.rope_reason = opened.plan_reason, opened.rope_reason
        self.upstream = opened.upstream
        self.metadata, self.n_train, self.lora = opened.metadata, opened.n_train, list(opened.lora)
        self.model_params, self.context_params = opened.model.params, opened.params
        self.n_batch, self.n_threads = self.context_params.n_batch, self.context_params.n_threads
        self.n_threads_batch = self.context_params.n_threads_batch
        self._n_ctx, self._n_vocab = opened.n_ctx(), self.n_vocab()
        self.sequence = TokenSequence(
            self._ctx.ctx,
            self.model,
            self._n_ctx,
            self.n_batch,
            self.rope,
            self.turns.outside,
            self._limits,
            partial(marks.of_tokens, self._model),
            self.plan.page,
            self.context_params.n_ubatch,
        )
        self.sequence.blocked = "only the vocabulary is loaded (vocab_only)" if o.vocab_only else ""
        self._batch = self.sequence.batch
        self.verbose, self.numa, self.tensor_split = o.verbose, o.numa, o.tensor_split
        self.kv_overrides, self.draft_model, self.spm_infill = o.kv_overrides, o.draft_model, o.spm_infill
        self.lora_base, self.lora_scale, self.lora_path = o.lora_base, o.lora_scale, o.lora_path
        self.tokenizer_ = o.tokenizer or _native.LlamaTokenizer(self)
        self.set_seed(o.seed or llama_cpp.LLAMA_DEFAULT_SEED)
        self.last_n_tokens_size = keywords.window(o.last_n_tokens_size, self._n_ctx)
        self._token_nl, self._token_eos = self.token_nl(), self.token_eos()
        self._is_recurrent = llama_cpp.llama_model_is_recurrent(self.model)
        self._is_hybrid = llama_cpp.llama_model_is_hybrid(self.model)

    def _keep_all_rows(self, logits_all: bool) -> None:
        self._logits_all, self._rows = logits_all, None
        size = 4 * self._n_ctx * self._n_vocab
        if logits_all and size <= _ALL_ROWS_BYTES:
            self._rows = np.zeros((self._n_ctx, self._n_vocab), np.float32)
        elif logits_all:
            warnings.warn(
                f"logits_all would keep {size / 2**30:.0f} GiB of logits: only the last row is kept; "
                "logprobs do not need it",
                stacklevel=3,
            )
        self.store_rows = None if self._rows is None else self._store_rows

    def _store_rows(self, first: int, rows: FloatArray) -> None:
        assert self._rows is not None
        self._rows[first : first + len(rows)] = rows

    def close(self) -> None:
        """Frees the model. Calls raise RuntimeError afterwards; running calls of other threads do so within one
        chunk."""
        if "_stack" not in self.__dict__ or isinstance(self.__dict__.get("_ctx"), _Closed):
            return
        if self.turns.forked:
            return  # it belongs to another process; freeing it would wait for threads that do not exist here
        with self.turns.end(self._block):
            self._block()  # open streams have the sequence too
            self.turns.begin()
            self._stack.close()
            closed: Any = _Closed()
            self.opened = self._model = self._ctx = self.sequence = self._batch = closed

    def _block(self) -> None:
        if isinstance(self.__dict__.get("sequence"), TokenSequence):
            self.sequence.block("this LongLlama is closed")

    # ---- evaluating ----------------------------------------------------------------------------------------

    def start(self) -> int:
        """Begins a call: resets `cancel` and ends streams that are still open. Returns the call's number."""
        self.sequence.cancelled.clear()
        return self.turns.begin()

    def check_turn(self, turn: int) -> None:
        """Raises RuntimeError when a later call has begun."""
        self._ctx.ctx  # noqa: B018  closed: says so
        self.turns.check(turn)

    def cancel(self) -> None:
        """Stops the running call within one chunk: it raises Cancelled. From any thread."""
        self.sequence.cancelled.set()

    @alone
    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluates tokens after the first `n_tokens`, n_batch at a time. Tokens that the cache already holds are not
        evaluated again."""
        self.start()
        ids = as_ids(tokens)
        if self.n_tokens == 0:
            self._forget_tail()
            self.sequence.admit(ids, len(ids))
        self.sequence.extend(self.sequence.reuse(ids), 1, self.progress, self.store_rows)

    @alone
    def reset(self) -> None:
        """Starts a new text. The cache stays and is reused by a prompt that begins in the same way."""
        self.sequence.length = 0

    def set_seed(self, seed: int) -> None:
        """Determines the next calls that are made without a seed."""
        try:
            self._seed = index(seed)
        except TypeError:
            raise TypeError(f"seed is {seed!r}: give a whole number") from None

    def seed_call(self, seed: int | None) -> None:
        """Sets the seed of a call; without one, the next that follows from the model's, as in llama_cpp."""
        self.set_seed(seed if seed is not None else random.Random(self._seed).randint(0, 2**32))

    @property
    def n_tokens(self) -> int:
        """Tokens of the current text."""
        return self.sequence.length

    @n_tokens.setter
    @alone
    def n_tokens(self, n: int) -> None:
        # Handlers of images and sound fill the cache themselves and then set how far.
        self.sequence.count(index(n))

    def n_ctx(self) -> int:
        self._ctx.ctx  # noqa: B018  closed: says so
        return self._n_ctx

    @looking
    def pooling_type(self) -> Any:
        return super().pooling_type()

    @property
    def input_ids(self) -> IntArray:  # type: ignore[override]
        return self.sequence.ids

    @property
    @looking
    def scores(self) -> FloatArray:  # type: ignore[override]
        """Logits: [n_ctx, n_vocab] with logits_all if that is small; else the last row [1, n_vocab], if any."""
        if self._rows is not None:
            return self._rows
        if not 0 < self.sequence.live == self.sequence.length:
            return np.empty((0, self._n_vocab), np.float32)
        return np.array([self.sequence.row()])

    @property
    def _scores(self) -> FloatArray:
        return self.scores if self._rows is None else self._rows[: self.n_tokens]

    @property
    def eval_logits(self) -> deque[list[float]]:
        return deque(self._scores.tolist(), maxlen=self._n_ctx if self._logits_all else 1)

    @staticmethod
    def longest_token_prefix(a: Sequence[int], b: Sequence[int]) -> int:
        return common_prefix(np.asarray(a), np.asarray(b))

    # ---- embeddings ----------------------------------------------------------------------------------------

    @alone
    def embed(
        self,
        input: str | list[str],
        normalize: bool = False,
        truncate: bool = False,
        return_count: bool = False,
    ) -> Any:
        """As Llama.embed, but a text of more than n_batch tokens raises ValueError; truncate=True cuts it. Raises
        NotNumbers when the model gives NaN."""
        if not truncate and self.context_params.embeddings:
            for text in [input] if isinstance(input, str) else input:
                self._check_fits_a_batch(text.encode())
        found = super().embed(input, normalize, truncate, return_count)
        if not _are_finite(found[0] if return_count else found):
            raise NotNumbers("embeddings")
        return found

    def _check_fits_a_batch(self, text: bytes) -> None:
        if len(text) + 2 <= self.n_batch:  # no tokenizer gives more tokens than bytes, besides BOS and EOS
            return
        n = len(self.tokenize(text))
        if n > self.n_batch:
            raise ValueError(
                f"a text has {n} tokens, and {self.n_batch} can be embedded at once: load the model with n_ctx, "
                f"n_batch and n_ubatch of {n} or more, or cut it with embed(..., truncate=True)"
            )

    # ---- attention -----------------------------------------------------------------------------------------

    @alone
    def set_tail(self, pos: int | None) -> None:
        """Puts tokens at positions >= pos into the tail phase of the plan; None: only tokens that are evaluated
        alone. This holds until it is set again, here or by a completion."""
        if pos is not None and not 0 <= index(pos) <= self._n_ctx:
            raise ValueError(f"the tail cannot begin at {pos}: give 0 to {self._n_ctx}, or None")
        self._tail_is_found = False
        _native.set_tail(self.ctx, 0, pos)

    def mark_tail(self) -> None:
        """Lets the tail begin at the next token."""
        self.set_tail(self.n_tokens)

    def place_tail(self, tokens: Sequence[int], text: str | None, tail: str | None) -> None:
        """Finds the tail of a prompt, or of the chat that it was made from, if the plan treats it differently."""
        if self.plan.prefill == self.plan.tail and tail is None:
            return
        if self._chat is not None:
            self.set_tail(last_turn.of_chat(self._model, tokens, *self._chat))
        else:
            self.set_tail(last_turn.of_prompt(self._model, tokens, text, tail))
        self._tail_is_found = True

    def place_marks(self, tokens: Sequence[int]) -> None:
        """Finds where the messages begin of the chat that a prompt was made from."""
        found = np.empty(0, np.int32)
        if self._chat is not None and self.sequence.keeps:
            contents = [last_turn.content(message) for message in self._chat[0]]
            found = marks.of_messages(self._model, as_ids(tokens), contents)
        self.sequence.messages = found

    def _forget_tail(self) -> None:
        """Forgets the tail and the messages of an earlier completion when a new text begins."""
        self.sequence.messages = np.empty(0, np.int32)
        if self._tail_is_found:
            self.set_tail(None)

    @looking
    def attention_stats(self, reset: bool = False) -> dict[str, float]:
        """keys_read, keys_visible (what exact attention would have read), their quotient share_of_keys, and tokens;
        error, the relative error of attention at checked_rows queries that a plan with `check=`, `delta=` or `error=`
        checks (0 where none was); all since loading or the last reset."""
        stats, measured = _native.stats(self.ctx), meter.read(self.ctx)
        if reset:
            _native.stats_reset(self.ctx)
        return {
            "share_of_keys": stats.keys_read / stats.keys_visible if stats.keys_visible else 1.0,
            "keys_read": stats.keys_read,
            "keys_visible": stats.keys_visible,
            "tokens": stats.n_tokens,
            "error": measured.error,
            "checked_rows": measured.rows,
        }

    @looking
    def attention_errors(self) -> meter.Meter:
        """The measured error of the plan by layer and head, since loading or the last reset (meter.py)."""
        return meter.read(self.ctx)

    @looking
    def explain(self) -> str:
        """What runs and why: lengths, plan, RoPE policy, cache, kernels, and layers that upstream
        computes."""
        return explain.explain(self.opened, self.sequence.explain(), self.sequence.factor)

    # ---- state ---------------------------------------------------------------------------------------------

    def set_cache(self, cache: Any) -> None:
        """Sets a cache of saved states, such as LlamaRAMCache. LlamaDiskCache is refused: it unpickles files, which
        can run code."""
        if isinstance(cache, _native.LlamaDiskCache):
            raise ValueError(
                "LlamaDiskCache keeps pickles, which can run code when they are read: use LlamaRAMCache"
            )
        self.cache = cache

    @looking
    def save_state(self) -> llama_cpp.LlamaState:
        """The current text and its cache, with its checkpoints and the logits that logits_all keeps."""
        size = llama_cpp.llama_state_get_size(self.ctx)
        data = np.empty(size, np.uint8)
        n = llama_cpp.llama_state_get_data(self.ctx, _native.byte_pointer(data), size)
        n_rows = 0 if self._rows is None else self.n_tokens
        kept = [one for one in self.sequence.checkpoints if one[0] <= self.n_tokens]
        state = llama_cpp.LlamaState(
            input_ids=self.input_ids[: self.n_tokens].copy(),
            scores=np.empty((0, self._n_vocab), np.float32) if not n_rows else self._scores.copy(),
            n_tokens=self.n_tokens,
            llama_state=data[:n].tobytes(),
            llama_state_size=n + sum(len(one[1]) for one in kept),
            seed=self._seed,
        )
        state.__dict__["foreign"], state.__dict__["checkpoints"] = self.sequence.foreign, kept
        return state

    @alone
    def load_state(self, state: llama_cpp.LlamaState) -> None:
        """Restores a text that `save_state` returned. Raises RuntimeError if it does not fit this context, which then
        keeps its text."""
        ids = as_ids(state.input_ids)[: index(state.n_tokens)]
        if len(ids) != state.n_tokens or len(ids) > self._n_ctx:
            raise RuntimeError(
                f"this state does not fit the context: {state.n_tokens} tokens, {len(ids)} of them there, in a "
                f"window of {self._n_ctx}"
            )
        self.sequence.check(ids, 0)
        data = np.frombuffer(state.llama_state, np.uint8)
        log.forget()
        n = llama_cpp.llama_state_set_data(self.ctx, _native.byte_pointer(data), len(data))
        if not n or n != len(data):
            self.sequence.lose()
            raise RuntimeError(f"this state does not fit the context: {log.complaint()}")
        self.sequence.restore(ids, getattr(state, "foreign", (0, 0)), getattr(state, "checkpoints", ()))
        if self._rows is not None:
            self._rows[: len(ids)] = np.nan
            self._rows[: len(state.scores)] = state.scores
        self.set_seed(state.seed)

    def __getstate__(self) -> dict[str, Any]:
        return dict(self._arguments)
