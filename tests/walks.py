"""Random walks of a LongLlama over every kind of memory, each step compared with a fresh evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_random_gguf
import numpy as np

from pyllama_long import LongLlama
from pyllama_long._native import llama_cpp
from pyllama_long.errors import Cancelled

N_CTX = 1024
WINDOW = {"sliding_window": 64}
MANY = {"checkpoint_every": 64}
# Architecture, its shape, and options of LongLlama.
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "full": ("llama", {}, {}),
    "dynamic": ("llama", {"n_ctx_train": 256}, {"rope": "dynamic-ntk"}),
    "window": ("gemma3", {}, {}),
    "small window": ("gemma3", {}, {"swa_full": False, **MANY}),
    "recurrent": ("mamba", {}, MANY),
    "hybrid": ("lfm2", {}, {**MANY, "checkpoints": 5}),
    "hybrid with a window": ("lfm2", WINDOW, {"swa_full": False, **MANY}),
    "quantized": ("llama", {}, {"kv_type": "q8_0"}),
}


class Walk:
    """A model of one kind, and another one that evaluates each text from its beginning."""

    def __init__(self, path: Path, kind: str) -> None:
        arch, shape, options = KINDS[kind]
        make_random_gguf.write(
            path, arch, type="f32", seed=5, **{"n_layer": 3, "n_embd": 64, "n_head": 2, **shape}
        )
        options = {"rope": "native", "n_ctx": N_CTX, "n_batch": 64, "precision": "f32", **options}
        self.llm, self.fresh = LongLlama(path, **options), LongLlama(path, **options)
        self.dynamic = self.llm.rope.dynamic

    def close(self) -> None:
        self.llm.close()
        self.fresh.close()

    def tokens(self, n: int, seed: int) -> list[int]:
        return [int(t) for t in np.random.default_rng(seed).integers(260, 512, n)]

    def start_over(self, tokens: list[int]) -> None:
        self.llm.reset()
        self.llm.eval(tokens)

    def logits(self, tokens: list[int]) -> Any:
        """The logits of the last token, from an empty cache."""
        self.fresh.reset()
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.fresh.ctx), True)
        self.fresh.eval(tokens)
        return self.fresh.scores[-1]

    def compare(self, what: str) -> None:
        text = self.llm.input_ids[: self.llm.n_tokens].tolist()
        if self.dynamic and self.llm.sequence.factor != 1.0:
            return  # keys that were read with another factor differ from those of a fresh evaluation
        off = np.abs(self.llm.scores[-1] - self.logits(text)).max()
        assert off < self.tolerance, f"{what}: off by {off:.2g} after {len(text)} tokens"

    @property
    def tolerance(self) -> float:
        return 0.3 if self.llm.context_params.type_k == 8 else 0.05

    def greedy(self, prompt: list[int], n: int) -> list[int]:
        stream, found = self.llm.generate(prompt, temp=0.0), []
        for token in stream:
            found.append(token)
            if len(found) == n:
                break
        return found

    def answer(self, prompt: list[int], fresh: bool = True) -> str:
        if fresh:
            self.llm.reset()
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.llm.ctx), True)
        return str(self.llm(prompt, max_tokens=8, temperature=0)["choices"][0]["text"])

    def run(self, seed: int, n: int) -> None:
        """n random steps."""
        rng, llm, states, texts = np.random.default_rng(seed), self.llm, [], [self.tokens(200, 99)]
        memory = llama_cpp.llama_get_memory(llm.ctx)

        def some(most: int = 150) -> list[int]:
            return [int(t) for t in rng.integers(260, 512, int(rng.integers(1, most)))]

        def old() -> list[int]:
            text = texts[int(rng.integers(len(texts)))]
            return text[: int(rng.integers(1, len(text) + 1))]

        def more() -> None:
            llm.eval(some())

        def older_prefix() -> None:
            self.start_over(old() + some())

        def back() -> None:
            llm.n_tokens = int(rng.integers(0, llm.n_tokens + 1))
            llm.eval(some(20))

        def save() -> None:
            states.append(llm.save_state())
            llm.eval(some(20))

        def load() -> None:
            if states:
                llm.load_state(states[int(rng.integers(len(states)))])
            llm.eval(some(20))

        def load_and_generate() -> None:
            if states and states[-1].n_tokens:
                llm.load_state(states[-1])
                next(llm.generate([], reset=False))
            else:
                more()

        def save_after_going_back() -> None:
            llm.n_tokens = int(rng.integers(0, llm.n_tokens + 1))
            states.append(llm.save_state())
            self.start_over(some())

        def complete() -> None:
            prompt = old() + some(30)
            llm.create_completion(prompt, max_tokens=5, temperature=0)
            llm.n_tokens = len(prompt)
            llm.eval(some(5))

        def generate_with_others() -> None:
            stream = llm.generate(old() + some(10), temp=0)
            next(stream)
            stream.send(some(5))
            stream.close()
            llm.eval(some(3))

        def cancel() -> None:
            llm.progress = lambda _done, _total: llm.cancel()
            try:
                llm.eval(some() + [300] * 65)
            except Cancelled:
                pass
            finally:
                llm.progress = None
            llm.eval(some(5))

        def raw_clear() -> None:
            llama_cpp.llama_memory_clear(memory, True)
            more()

        def raw_cut() -> None:
            llama_cpp.llama_memory_seq_rm(memory, 0, int(rng.integers(0, llm.n_tokens + 1)), -1)
            more()

        def raw_cut_before() -> None:
            llama_cpp.llama_memory_seq_rm(memory, 0, 0, int(rng.integers(1, llm.n_tokens + 2)))
            older_prefix()

        def raw_decode() -> None:
            ids = some(20)
            array = (llama_cpp.llama_token * len(ids))(*ids)
            llama_cpp.llama_decode(llm.ctx, llama_cpp.llama_batch_get_one(array, len(ids)))
            older_prefix()

        steps: list[Callable[[], None]] = [
            *(more, older_prefix, older_prefix, back, save, load, load, load_and_generate),
            *(save_after_going_back, complete, generate_with_others, cancel),
            *(raw_clear, raw_cut, raw_cut_before, raw_decode),
        ]
        self.start_over(some())
        for i in range(n):
            if llm.n_tokens > N_CTX - 400:
                self.start_over(old())
            step = steps[int(rng.integers(len(steps)))]
            step()
            self.compare(f"seed {seed}, step {i}, {step.__name__}")
            texts.append(llm.input_ids[: llm.n_tokens].tolist())
