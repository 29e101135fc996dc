"""Models and contexts through llama.cpp's own C API, as a caller of plain `llama_decode` sees them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import make_random_gguf
import numpy as np
import numpy.typing as npt

from pyllama_long import _native, log
from pyllama_long._native import llama_cpp as C
from pyllama_long.context_options import KV_TYPES
from pyllama_long.plan import AttentionPlan
from pyllama_long.rope import RopePolicy

Logits = npt.NDArray[np.float64]


def kv_types(text: str) -> tuple[int, int]:
    k, _, v = text.partition("/")
    return KV_TYPES[k].number, KV_TYPES[v or k].number


class Context:
    """A llama_context; plan=None: upstream's attention."""

    def __init__(
        self,
        model: Model,
        n_ctx: int,
        plan: str | None = "exact",
        rope: str = "native",
        *,
        kv_type: str = "f16",  # of both, or K/V
        n_seq: int = 1,
        unified: bool = True,
        flash: bool = True,
        n_ubatch: int = 512,
        n_threads: int = 2,
        yarn: float = 0.0,  # a factor of upstream's own YaRN
        linear: float = 0.0,  # a factor of upstream's own linear scaling
        base: float = 0.0,  # upstream's own base of RoPE
        precision: str = "f32",  # structural errors would hide behind the rounding of bf16
        swa_full: bool = True,  # windows have a cell for each token, not only for those that they see
        watch: tuple[Any, Any] | None = None,  # a callback for each node of a graph, and what it is given
    ) -> None:
        self.model = model
        config = None
        if plan is not None:
            policy = RopePolicy.parse(rope, n_train=model.n_train, n_ctx=n_ctx)
            parsed = AttentionPlan.parse(plan, n_train=model.n_train)
            config = _native.c_config(parsed, policy, precision=precision)
        _native.configure_next(config)
        params = C.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, n_ubatch, n_ubatch
        params.n_threads = params.n_threads_batch = n_threads
        params.flash_attn_type = int(flash)
        params.type_k, params.type_v = kv_types(kv_type)
        params.n_seq_max, params.kv_unified, params.swa_full = n_seq, unified, swa_full
        if watch:
            params.cb_eval, params.cb_eval_user_data = watch
        if yarn:
            params.rope_scaling_type = C.LLAMA_ROPE_SCALING_TYPE_YARN
            params.rope_freq_scale = 1 / yarn
            params.yarn_orig_ctx = model.n_train
        if linear:
            params.rope_freq_scale = 1 / linear
        params.rope_freq_base = base
        log.forget()
        self.ptr: Any = C.llama_init_from_model(model.ptr, params)
        if not self.ptr:
            raise RuntimeError(log.complaint() or "no context")
        self.n_ubatch = n_ubatch

    def close(self) -> None:
        if self.ptr:
            C.llama_free(self.ptr)
        self.ptr = None

    @property
    def memory(self) -> Any:
        return C.llama_get_memory(self.ptr)

    def clear(self) -> None:
        C.llama_memory_clear(self.memory, True)

    def decode(self, tokens: Sequence[int], pos: int = 0, seq: int = 0) -> Logits:
        """Logits [n, n_vocab] of all tokens at positions pos .. of one sequence."""
        parts = [tokens[i : i + self.n_ubatch] for i in range(0, len(tokens), self.n_ubatch)]
        outs, at = [], pos
        for part in parts:
            outs.append(self.decode_rows([(t, at + i, seq) for i, t in enumerate(part)]))
            at += len(part)
        return np.concatenate(outs)

    def decode_rows(self, rows: Sequence[tuple[int, int, int]], logits: bool = True) -> Logits:
        """One llama_decode of (token, position, sequence) rows."""
        batch = C.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, pos, seq) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, pos, 1, seq
            batch.logits[i] = logits or i == len(rows) - 1
        code = C.llama_decode(self.ptr, batch)
        C.llama_batch_free(batch)
        assert code == 0, f"llama_decode gave {code}"
        shape = (len(rows) if logits else 1, self.model.n_vocab)
        return np.array(np.ctypeslib.as_array(C.llama_get_logits(self.ptr), shape), np.float64)

    def layers(self) -> list[tuple[int, str]]:
        return _native.layers(self.ptr)


class Model:
    def __init__(self, path: Path, arch: str = "") -> None:
        self.arch = arch
        C.llama_backend_init()
        log.install(verbose=False)
        log.forget()
        self.ptr = C.llama_model_load_from_file(str(path).encode(), C.llama_model_default_params())
        assert self.ptr, log.complaint()
        self._read()

    @classmethod
    def of(cls, pointer: Any) -> Model:
        """A llama_model that the caller has, and frees."""
        model = cls.__new__(cls)
        model.arch, model.ptr = "", pointer
        model._read()
        return model

    def _read(self) -> None:
        # Upstream multiplies it whenever a context of the model has YaRN.
        self.n_train = C.llama_model_n_ctx_train(self.ptr)
        self.n_vocab = C.llama_vocab_n_tokens(C.llama_model_get_vocab(self.ptr))

    @staticmethod
    @contextmanager
    def random(folder: Path, arch: str, label: str = "", **options: Any) -> Iterator[Model]:
        """A model with random weights, in a file in a folder. options: of make_random_gguf.write."""
        path = folder / f"{label or arch}.gguf"
        make_random_gguf.write(path, arch, **options)
        model = Model(path, label or arch)
        try:
            yield model
        finally:
            model.close()

    def close(self) -> None:
        C.llama_model_free(self.ptr)

    @contextmanager
    def context(self, *args: Any, **named: Any) -> Iterator[Context]:
        context = Context(self, *args, **named)
        try:
            yield context
        finally:
            context.close()

    def tokens(self, n: int, seed: int = 0) -> list[int]:
        """n random ordinary tokens."""
        return [int(t) for t in np.random.default_rng(seed).integers(260, self.n_vocab, n)]

    def tokenize(self, text: str) -> list[int]:
        raw = text.encode()
        ids = np.empty(len(raw) + 16, np.int32)
        pointer = ids.ctypes.data_as(C.llama_token_p)
        n = C.llama_tokenize(
            C.llama_model_get_vocab(self.ptr), raw, len(raw), pointer, len(ids), False, False
        )
        return [int(t) for t in ids[:n]]


def nll(logits: Logits, tokens: Sequence[int]) -> npt.NDArray[np.float64]:
    """Negative log likelihood [n - 1] of tokens[1:] under logits [n, n_vocab]."""
    top = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    n = len(tokens)
    return np.asarray(log_sum[: n - 1] - logits[np.arange(n - 1), tokens[1:]])
