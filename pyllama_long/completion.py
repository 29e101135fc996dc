"""One text completion: from a prompt to responses or chunks with the fields that llama_cpp gives."""

from __future__ import annotations

import time
import uuid
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from operator import index
from typing import Any

from pyllama_long._native import LlamaTokenizer, llama_cpp
from pyllama_long.arrays import as_ids
from pyllama_long.errors import ContextOverflow, NotNumbers
from pyllama_long.evaluator import Evaluator
from pyllama_long.generate import as_processors, bias, generate
from pyllama_long.logprobs import Logprob, as_block, score, score_prompt
from pyllama_long.prompt import encode
from pyllama_long.text import Text, foreign_pieces, model_pieces


@dataclass
class Completion:
    """A request that has been checked; `stream` or `answer` runs it, once."""

    llama: Evaluator
    turn: int
    tokens: list[int]
    prompt: str | None  # None when it came as tokens
    text: Text
    max_tokens: int
    room: int  # tokens of the answer that were requested; 0: as many as there is room for
    logprobs: int | None
    echo: bool
    suffix: str  # appended to the answer; empty when the model fills in the middle itself
    model: str
    sampling: dict[str, Any]
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4()}")
    created: int = field(default_factory=lambda: int(time.time()))
    finish: str = "length"
    scores: list[Logprob] = field(default_factory=list)
    prompt_scores: list[Logprob] = field(default_factory=list)
    restored: Any = None  # the saved state that it began with

    def stream(self) -> Iterator[dict[str, Any]]:
        """Chunks; the last one has no text, only the reason of the end."""
        return self.llama.turns.steps(self._chunks())

    def _chunks(self) -> Generator[dict[str, Any], None, None]:
        offset = len(self._prompt_text()) if self.logprobs is not None else 0
        for last in self._steps():
            for begin, end, text in self.text.take(last):
                block = None
                if self.logprobs is not None:
                    block = self._block(self.scores[begin:end], offset)
                    offset += len(text)
                yield self._response(text, block)
        yield self._response("", None, self.finish)
        self._save()

    def answer(self) -> dict[str, Any]:
        """The whole response."""
        with self.llama.turns.use():
            for _ in self._steps():
                pass
            self._save()
        text = str(self.text) + self.suffix
        block = None
        if self.logprobs is not None:
            block = self._block(self.scores, len(self._prompt_text()))
            if self.echo:
                prompt = self._block(self.prompt_scores, 0, first_is_null=True)
                block = {key: values + block[key] for key, values in prompt.items()}
        if self.echo:
            text = self._prompt_text() + text
        return {**self._response(text, block, self.finish), "usage": self.usage}

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of the prompt, of the answer so far, and of both."""
        n_prompt, n = len(self.tokens), len(self.text.tokens)
        return {"prompt_tokens": n_prompt, "completion_tokens": n, "total_tokens": n_prompt + n}

    def _steps(self) -> Iterator[bool]:
        """Generates; yields False after each token that does not end the answer, and True once at the end."""
        llama = self.llama
        llama.check_turn(self.turn)
        self._restore()
        ids = as_ids(self.tokens)
        llama.sequence.begin(ids, self.room)
        if self.echo and self.logprobs is not None:
            self.prompt_scores = score_prompt(
                llama.sequence, ids, self.logprobs, llama.progress, llama.store_rows
            )
        tokens = generate(llama, ids, turn=self.turn, reset=False, **self.sampling)
        try:
            for token in tokens:
                if llama_cpp.llama_vocab_is_eog(llama.opened.model.vocab, token):
                    self.finish = "stop"
                    break
                if self.logprobs is not None:
                    self.scores.append(score(llama.sequence.row(llama.sampled_row), token, self.logprobs))
                if self.text.push(token):
                    self.finish = "stop"
                    break
                if len(self.text.tokens) >= self.max_tokens:
                    break
                yield False
            else:
                self.finish = "stop"  # ended by the stopping criteria
        except NotNumbers:
            self._distrust()
            raise
        finally:
            tokens.close()
        if llama.verbose:
            llama_cpp.llama_perf_context_print(llama.ctx)
        yield True

    def _response(self, text: str, logprobs: Any, finish: str | None = None) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [{"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish}],
        }

    def _block(self, scores: list[Logprob], offset: int, first_is_null: bool = False) -> Any:
        def string(token: int) -> str:
            return self.llama.detokenize([token]).decode(errors="ignore")

        return as_block(scores, offset, string, self.llama.token_bos(), first_is_null)

    def _prompt_text(self) -> str:
        if self.prompt is None:
            self.prompt = self.llama.detokenize(self.tokens).decode(errors="ignore")
        return self.prompt

    def _restore(self) -> None:
        """Takes a saved state from llama_cpp's cache when it holds more of the prompt than the context
        does."""
        llama, cache = self.llama, self.llama.cache
        if cache is None:
            return
        try:
            state = cache[self.tokens]
        except KeyError:
            return
        saved = state.input_ids[: state.n_tokens].tolist()
        if llama.longest_token_prefix(saved, self.tokens) > llama.sequence.match(as_ids(self.tokens)):
            llama.load_state(state)
            self.restored = state

    def _distrust(self) -> None:
        """Removes the restored state from llama_cpp's cache, since its keys may be broken."""
        kept = getattr(self.llama.cache, "cache_state", {})
        for key in [key for key, state in kept.items() if state is self.restored]:
            del kept[key]

    def _save(self) -> None:
        if self.llama.cache is not None:
            self.llama.cache[self.tokens + self.text.tokens] = self.llama.save_state()


def prepare(
    llama: Evaluator, prompt: str | list[int], tail: str | None, options: dict[str, Any]
) -> Completion:
    """Tokenizes and checks a request; options: the arguments of create_completion. Raises ValueError before
    anything is evaluated, also for streams."""
    turn = llama.start()
    suffix, stop, logprobs = options.pop("suffix"), options.pop("stop"), options.pop("logprobs")
    tokens, fills = encode(llama.opened.model, prompt, suffix, llama.tokenize, llama.spm_infill)
    text = prompt if isinstance(prompt, str) else None
    n, n_ctx = len(tokens), llama.n_ctx()
    if n >= n_ctx:
        raise ContextOverflow(n, n_ctx)
    if n == 0:
        raise ValueError("the prompt is empty and this model has no BOS token to begin with: give some text")
    if logprobs is not None and index(logprobs) < 0:
        raise ValueError(f"logprobs is {logprobs}: give how many of the likeliest tokens to list, 0 or more")
    llama.place_tail(tokens, text, tail)
    llama.place_marks(tokens)
    stops = [s.encode() for s in ([stop] if isinstance(stop, str) else stop or [])]
    options["temp"] = options.pop("temperature")
    asked = options.pop("max_tokens")
    most = _max_tokens(asked, n, n_ctx)
    if type(llama.tokenizer_) is LlamaTokenizer:
        pieces = model_pieces(llama.opened.model, first=not len(prompt))
    else:
        pieces = foreign_pieces(llama.detokenize, tokens)
    return Completion(
        llama,
        turn,
        tokens,
        text,
        Text(pieces, stops),
        max_tokens=most,
        room=most if asked and asked > 0 else 0,
        logprobs=logprobs,
        echo=options.pop("echo"),
        suffix="" if fills else suffix or "",
        model=options.pop("model") or llama.model_path,
        sampling=_sampling(llama, options),
    )


def _max_tokens(wanted: int | None, n: int, n_ctx: int) -> int:
    room = n_ctx - n
    if wanted is None or index(wanted) <= 0:
        return room
    if wanted > room:
        warnings.warn(
            f"max_tokens={wanted} does not fit: after {n} prompt tokens the context window of {n_ctx} "
            f"has room for {room}; load the model with a larger n_ctx",
            RuntimeWarning,
            stacklevel=4,
        )
    return min(wanted, room)


def _sampling(llama: Evaluator, options: dict[str, Any]) -> dict[str, Any]:
    llama.seed_call(options.pop("seed"))
    logit_bias = options.pop("logit_bias")
    if logit_bias:
        processors = as_processors(options["logits_processor"])
        options["logits_processor"] = [*processors, bias(logit_bias, llama.n_vocab())]
    return options
