"""Settings of an engine, and of one request to it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from pyllama_long.checkpoints import Limits
from pyllama_long.grammar import Lark

_MAX_PARALLEL = 128
_MAX_STOPS = 64
_MAX_BREAKERS = 64
SAMPLERS = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")
_RANGES: dict[str, tuple[float, float]] = {
    "repeat_last_n": (-1, 2**20),
    "min_keep": (0, 2**20),
    "top_n_sigma": (-1, 1e6),
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1),
    "dynatemp_range": (0, 100),
    "dynatemp_exponent": (0, 100),
    "dry_multiplier": (0, 100),
    "dry_base": (0, 100),
    "dry_allowed_length": (0, 2**20),
    "dry_penalty_last_n": (-1, 2**20),
    "mirostat": (0, 2),
    "mirostat_tau": (0, 1000),
    "mirostat_eta": (0, 1),
}


@dataclass(frozen=True)
class EngineConfig:
    """n_ctx: cells that all sequences share, and the longest single one, in tokens; 0: the trained length.
    n_parallel: requests that run at the same time. max_queue: requests that may wait.
    step_ms: longest step in milliseconds while streams are running. prefill_share: the share of time that prompts may
    take while streams are running, which then keep 1 - prefill_share of their speed. cache_ram, cache_disk: bytes of
    idle sequences kept outside the context; cache_dir: where on disk. lora: adapters, each a GGUF file and a scale;
    they cannot be changed, since cached keys depend on them. checkpoints: most of one text; checkpoint_every: tokens
    between two of them; checkpoint_ram: bytes of all of them in main memory. The other fields are as in LongLlama.
    Raises ValueError."""

    model_path: str | os.PathLike[str]
    n_ctx: int = 0
    n_parallel: int = 8
    max_queue: int = 256
    attention: str = "auto"
    rope: str = "auto"
    kv_type: str = "f16"
    precision: str = "auto"
    n_threads: int = 0
    n_batch: int = 512
    embedding: bool = False
    step_ms: float = 200.0
    prefill_share: float = 0.35
    cache_ram: int = 1 << 30
    cache_disk: int = 0
    cache_dir: str | None = None
    lora: Sequence[tuple[str, float]] = ()
    checkpoints: int = 64
    checkpoint_every: int = 2048
    checkpoint_ram: int = 2 << 30

    def __post_init__(self) -> None:
        _within("n_ctx", self.n_ctx, 0, 2**31 - 1)
        _within("n_parallel", self.n_parallel, 1, _MAX_PARALLEL)
        _within("max_queue", self.max_queue, 0, 2**31 - 1)
        _within("n_batch", self.n_batch, 1, 2**20)
        _within("step_ms", self.step_ms, 1, 1e6)
        _within("prefill_share", self.prefill_share, 0.01, 0.99)
        _within("cache_ram", self.cache_ram, 0, 2**63)
        _within("cache_disk", self.cache_disk, 0, 2**63)
        if self.cache_disk and self.cache_dir is None:
            raise ValueError("cache_disk needs a folder: give cache_dir")
        self.limits  # noqa: B018  raises ValueError

    @property
    def limits(self) -> Limits:
        """Of checkpoints."""
        return Limits(self.checkpoints, self.checkpoint_every, self.checkpoint_ram)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; names as in llama_cpp. temperature 0: always the likeliest. grammar: GBNF text
    with a rule `root`, or Lark. seed: None for a random one. samplers: the order of those that narrow the choice, by
    llama-server's names; one that is not listed does not run. The other fields are named as in llama-server. Raises
    ValueError."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    grammar: str | Lark | None = None
    repeat_last_n: int = 64
    min_keep: int = 0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    samplers: Sequence[str] = SAMPLERS

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            _within(name, getattr(self, name), low, high)
        for name in self.samplers:
            if name not in SAMPLERS:
                raise ValueError(f"samplers: {name!r} is none of {', '.join(SAMPLERS)}")
        if len(set(self.samplers)) < len(self.samplers):
            raise ValueError("samplers: a name stands there twice")
        breakers = self.dry_sequence_breakers
        if (
            isinstance(breakers, str)
            or len(breakers) > _MAX_BREAKERS
            or max(map(len, breakers), default=0) > 40
        ):
            raise ValueError(
                f"dry_sequence_breakers: give at most {_MAX_BREAKERS} texts of at most 40 characters"
            )
        if any("\0" in text for text in breakers):
            raise ValueError("dry_sequence_breakers: a text contains a zero byte")
        _within("temperature", self.temperature, 0, 100)
        _within("top_k", self.top_k, -1, 2**31 - 1)
        for name in ("top_p", "min_p", "typical_p"):
            _within(name, getattr(self, name), 0, 1)
        _within("repeat_penalty", self.repeat_penalty, 1e-3, 1e3)
        for name in ("presence_penalty", "frequency_penalty"):
            _within(name, getattr(self, name), -100, 100)
        for token, value in self.logit_bias.items():
            if math.isnan(value) or value == math.inf:
                raise ValueError(f"logit_bias of token {token} is not a number")


@dataclass(frozen=True)
class Request:
    """tokens: the prompt. max_tokens: None for as many as there is room for; 0 only reads the prompt.
    stop: texts that end the answer and are not part of it. logprobs: how many of the likeliest tokens to list for
    each token. echo_logprobs: score the prompt too. tail_start: index of the first token of the plan's tail phase;
    None: as for a prompt of LongLlama. salt: only requests with the same salt share prefixes. priority: higher ones
    are admitted first. special: control tokens are part of the text. write_s: seconds of writing after which the
    answer ends, once it has a line break. marks: indexes of tokens at which messages begin, in order, which are good
    places for checkpoints; None: they are found by their control tokens. Raises ValueError."""

    tokens: Sequence[int]
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    logprobs: int | None = None
    echo_logprobs: bool = False
    tail_start: int | None = None
    salt: str = ""
    priority: int = 0
    special: bool = False
    write_s: float | None = None
    marks: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            _within("max_tokens", self.max_tokens, 0, 2**62)
        if self.logprobs is not None:
            _within("logprobs", self.logprobs, 0, 2**31 - 1)
        if self.write_s is not None:
            _within("write_s", self.write_s, 0, 1e9)
        if isinstance(self.stop, str) or len(self.stop) > _MAX_STOPS:
            raise ValueError(f"stop must be a list of at most {_MAX_STOPS} texts")
        if self.tail_start is not None:
            _within("tail_start", self.tail_start, 0, len(self.tokens))
        if self.marks is not None and any(a > b for a, b in pairwise([0, *self.marks, len(self.tokens)])):
            raise ValueError("marks: give indexes of tokens, in order")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also false for NaN
        raise ValueError(f"{name} is {value}: give a value from {low:.10g} to {high:.10g}")
