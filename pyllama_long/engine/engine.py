"""The engine: many requests at the same time on one model."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path

from pyllama_long._native import llama_cpp
from pyllama_long.arrays import FloatArray, as_ids
from pyllama_long.engine.config import EngineConfig, Request
from pyllama_long.engine.context import Context
from pyllama_long.engine.fingerprint import fingerprint
from pyllama_long.engine.handle import Handle
from pyllama_long.engine.job import Job
from pyllama_long.engine.loop import Loop
from pyllama_long.engine.sessions import Sessions
from pyllama_long.engine.stats import EngineStats
from pyllama_long.engine.store import Store
from pyllama_long.errors import ContextOverflow


class Engine:
    """Opens a model and starts the thread that runs it. All methods may be called from any thread.

    on_progress: called while the model is loaded, with (percent, 100).
    n_ctx: cells, in tokens; n_train: trained length; name, metadata, chat_template: of the model file;
    token_bos, token_eos, token_eot: -1 where the model has none; plan, rope, lora: what runs; model: for its
    vocabulary; keeps_checkpoints: whether its memory cannot go back, so that requests with `marks` gain.

    Raises ModelError, PlanError, RopeError. `close` it, or use it in a `with`; it also ends with the process.
    """

    def __init__(
        self, config: EngineConfig, *, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        self.config = config
        folder = None if config.cache_dir is None else Path(config.cache_dir)
        self._context = context = Context(config, on_progress)
        try:
            model = fingerprint(context)
            store = Store(model, config.cache_ram, config.cache_disk, folder, config.limits)
            self._loop = Loop(config, context, store)
        except BaseException:
            context.close()
            raise
        self.sessions = Sessions(self._loop, context, store, model, folder)
        self._numbers = itertools.count()
        self.n_ctx, self.n_vocab, self.n_train = context.n_ctx(), context.n_vocab, context.n_train
        self.metadata = context.metadata
        self.name = self.metadata.get("general.name") or Path(config.model_path).stem
        self.chat_template = self.metadata.get("tokenizer.chat_template")
        native = context.model
        self.token_bos, self.token_eos, self.token_eot = (
            native.token_bos(),
            native.token_eos(),
            native.token_eot(),
        )
        self.add_bos = bool(llama_cpp.llama_vocab_get_add_bos(native.vocab))
        self.plan, self.rope, self.model = context.plan, context.rope, context.model
        self.lora, self.keeps_checkpoints = context.lora, context.keeps
        self.layers, self._explained = context.layers(), context.explain()
        self._finalizer = weakref.finalize(self, self._loop.close, 0.0)

    def submit(self, request: Request) -> Handle:
        """Starts a request, or lets it wait. Raises ContextOverflow when it can never fit, QueueFull,
        EngineClosed, and ValueError for tokens, a grammar or sampling that cannot be used."""
        self._loop.check_open()
        with self._context.using():
            job = Job(next(self._numbers), request, self._context, self._loop.wake)
        try:
            self._loop.submit(job)
        except BaseException:
            job.close()
            raise
        return job.handle

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Token ids of UTF-8 text; special: names of control tokens in it become those tokens."""
        with self._context.using():
            return self._context.model.tokenize(text, add_bos, special)

    def using(self) -> AbstractContextManager[None]:
        """Keeps the model from being freed within the block, even if another thread closes the engine. Raises
        EngineClosed."""
        return self._context.using()

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes:
        with self._context.using():
            return self._context.model.detokenize(list(tokens), special)

    def token_text(self, token: int) -> str:
        """The name of a token, control tokens included; empty for -1."""
        if token < 0:
            return ""
        with self._context.using():
            return self._context.model.piece(token, True).decode(errors="replace")

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        with self._context.using():
            return self._context.model.end_tokens

    def embed(self, inputs: Sequence[Sequence[int]]) -> list[FloatArray]:
        """A vector [n_embd] for each list of tokens: the model's own pooling, or the mean over the tokens; not
        normalized. Raises ValueError, ContextOverflow, DecodeError, EngineClosed, QueueFull."""
        return self.start_embedding(inputs).result()

    def start_embedding(self, inputs: Sequence[Sequence[int]]) -> Future[list[FloatArray]]:
        """`embed` without waiting: cancelling the future that it returns ends the work within a step. Waiting lists
        count as waiting requests. Raises ValueError, ContextOverflow, EngineClosed and QueueFull."""
        if not self.config.embedding:
            raise ValueError("this engine makes no embeddings: give embedding=True")
        checked = [as_ids(tokens) for tokens in inputs]
        for ids in checked:
            if len(ids) == 0:
                raise ValueError("an input is empty: give at least one token")
            if len(ids) > self.n_ctx:
                raise ContextOverflow(len(ids), self.n_ctx)
            if ids.min() < 0 or ids.max() >= self.n_vocab:
                raise ValueError(f"a token is outside the vocabulary of {self.n_vocab}")
        return self._loop.embed(checked)

    def stats(self) -> EngineStats:
        return self._loop.stats()

    @property
    def last_step(self) -> float:
        """When the engine's thread last began a step, by time.monotonic; now, while it has nothing to do."""
        return self._loop.last_step

    @property
    def has_work(self) -> bool:
        """Whether a request, an embedding or a call waits for the engine's thread."""
        return self._loop.has_work

    @property
    def failure(self) -> str | None:
        """Why the engine has failed; None while it runs and after `close`."""
        return self._loop.failure

    def explain(self) -> str:
        """Lengths, plan and RoPE policy with reasons, cache and kernels, as text."""
        return self._explained

    def close(self, drain_s: float = 0.0, users_s: float | None = None) -> None:
        """Takes no more requests and goes on for up to drain_s seconds. Then ends those that are left with
        EngineClosed, and writes idle sequences to disk if there is a cache_disk. May be called twice. users_s: how
        long to wait for threads that still tokenize; after that, the last of them frees the model."""
        self._finalizer.detach()
        self._loop.close(drain_s, users_s)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
