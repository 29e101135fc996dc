"""LongLlama: llama_cpp.Llama for long contexts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from operator import index
from typing import Any, TypeVar

from pyllama_long import chat_options, completion
from pyllama_long._native import llama_cpp
from pyllama_long.arrays import as_ids
from pyllama_long.chat_formats import chat_formats
from pyllama_long.evaluator import Evaluator
from pyllama_long.generate import Sampler, generate
from pyllama_long.opened import Opened
from pyllama_long.turns import alone

_COMPLETION = inspect.signature(llama_cpp.Llama.create_completion)
_SAMPLE = inspect.signature(llama_cpp.Llama.sample)
_GENERATE = inspect.signature(llama_cpp.Llama.generate)
_CHAT = inspect.signature(llama_cpp.Llama.create_chat_completion)
_F = TypeVar("_F", bound=Callable[..., Any])


def _shown_as(signature: inspect.Signature, *more: str) -> Callable[[_F], _F]:
    """Gives a method llama_cpp's signature and some more keywords, for `inspect`."""
    keywords = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in more]

    def mark(function: _F) -> _F:
        shown = signature.replace(parameters=[*signature.parameters.values(), *keywords])
        function.__signature__ = shown  # type: ignore[attr-defined]
        return function

    return mark


def _completion_options(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of create_completion by name, defaults included, without self and the prompt."""
    bound = _COMPLETION.bind(*args, **kwargs)
    bound.apply_defaults()
    return {key: value for key, value in bound.arguments.items() if key not in ("self", "prompt")}


class LongLlama(Evaluator):
    """A drop-in for llama_cpp.Llama that reads contexts far beyond the trained length.

    model_path: a GGUF file, or a GGUFFile, whose header is not read again.
    n_ctx: context window in tokens, 0 = the trained length.
    attention: an attention plan, as text or AttentionPlan, or `upstream` for llama.cpp's own attention.
    rope: a RoPE policy, as text or RopePolicy.
    kv_type: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0 or q5_1. type_k and type_v take these names too.
    progress: called with (tokens done, tokens in all) after each chunk of a prompt.
    precision: of attention. auto: the fastest that the processor has (bf16 products with float32 sums with AMX,
    AVX512-BF16 or Arm v8.6); f32: float32 throughout, and no key is skipped.
    checkpoints: most of a text whose memory cannot go back (recurrent states, sliding windows), 0 for none.
    checkpoint_every: tokens between two of them at most. checkpoint_ram: bytes of all. The other arguments are those
    of Llama; unknown ones are ignored with a warning.

    Besides llama_cpp's attributes: plan, rope, precision, n_train (trained length in tokens).

    Raises ModelError (a ValueError) for files that cannot be loaded, PlanError and RopeError (ValueErrors)
    for text that cannot be read. Calls raise ContextOverflow (a ValueError) when a prompt does not fit: nothing is
    ever cut, except by embed(truncate=True). One call runs at a time; others wait, including those of other threads.
    An unfinished stream ends when the next call begins. Callbacks may read from the model but not call it.
    """

    def _take(self, opened: Opened, o: Any) -> None:
        super()._take(opened, o)
        self.chat_format, self.chat_handler = o.chat_format, o.chat_handler
        bos, eos = self.token_bos(), self.token_eos()
        self._chat_handlers = chat_formats(opened.model, self.metadata, eos, bos)
        if self.chat_format is None and self.chat_handler is None:
            self.chat_format = "llama-2"
            if "chat_template.default" in self._chat_handlers:
                self.chat_format = "chat_template.default"

    @alone
    def sample(self, *args: Any, **kwargs: Any) -> int:
        bound = _SAMPLE.bind(self, *args, **kwargs)
        options = {key: value for key, value in bound.arguments.items() if key not in ("self", "idx")}
        idx = bound.arguments.get("idx")
        if not self.sequence.live and self.n_tokens:
            self.sequence.extend(self.sequence.last())
        with closing(Sampler(self, **options)) as sampler:
            return sampler.sample(-1 if idx is None else index(idx) - self.n_tokens)

    @_shown_as(_GENERATE)
    @alone
    def generate(self, *args: Any, **kwargs: Any) -> Generator[int, Sequence[int] | None, None]:
        bound = _GENERATE.bind(self, *args, **kwargs)
        options = {key: value for key, value in bound.arguments.items() if key != "self"}
        ids = as_ids(options.pop("tokens"))
        if options.get("reset", True):
            self._forget_tail()
        return self.turns.steps(generate(self, ids, turn=self.start(), **options))

    # ---- completions ---------------------------------------------------------------------------------------

    @_shown_as(_COMPLETION, "tail")
    def create_completion(
        self, prompt: str | list[int], *args: Any, tail: str | None = None, **kwargs: Any
    ) -> Any:
        """As Llama.create_completion. tail: the end of the prompt that is read in the plan's tail phase; by default
        the last 256 tokens, or the text after the last blank line if that is shorter."""
        options = _completion_options(self, prompt, *args, **kwargs)
        stream = options.pop("stream")
        with self.turns.use():
            run = completion.prepare(self, prompt, tail, options)
            return run.stream() if stream else run.answer()

    def prepare_completion(
        self, prompt: str | list[int], *args: Any, tail: str | None = None, **kwargs: Any
    ) -> completion.Completion:
        """As create_completion, but nothing is evaluated until `stream` or `answer` of the result is called, once.
        Its `usage` also counts tokens while it streams."""
        options = _completion_options(self, prompt, *args, **kwargs)
        del options["stream"]
        with self.turns.use():
            return completion.prepare(self, prompt, tail, options)

    @_shown_as(_COMPLETION, "tail")
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.create_completion(*args, **kwargs)

    @_shown_as(_CHAT, "tail")
    def create_chat_completion(
        self, messages: list[Any], *args: Any, tail: str | None = None, **kwargs: Any
    ) -> Any:
        """As Llama.create_chat_completion. tail: the text of the prompt at which the plan's tail phase begins; by
        default the last user message, or its end if it is long."""
        options = chat_options.settled(_CHAT.bind(None, messages, *args, **kwargs).arguments)
        del options["self"]
        with self.turns.use():
            self._chat = messages, tail
            try:
                return super().create_chat_completion(**options)
            finally:
                self._chat = None
