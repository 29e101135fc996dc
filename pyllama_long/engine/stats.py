"""Counters of an engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStats:
    """Now: requests running and waiting; cells used (idle sequences' included), those that only idle ones hold,
    and all; sequences idle and all; texts in the store and its bytes; checkpoints, and their bytes in main memory.

    Since the start: requests by their end; tokens of prompts, those of them cached, tokens generated;
    requests that reused a prefix; steps; sequences spilled and restored; prompts that went on from a checkpoint.

    Recent averages: tokens per second of prompts and of all streams together; milliseconds of a step, and of its part
    that is neither llama_decode nor sampling.

    attention_error: the relative error of attention since the start, measured at the queries that the plan checks;
    0 if it checks none.
    """

    running: int
    waiting: int
    cells_used: int
    cells_idle: int
    cells_total: int
    sequences_idle: int
    sequences_total: int
    stored: int
    ram_bytes: int
    disk_bytes: int
    finished: int
    cancelled: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    prefix_hits: int
    steps: int
    spilled: int
    restored: int
    checkpoints: int
    checkpoint_bytes: int
    checkpoint_hits: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    step_ms: float
    overhead_ms: float
    attention_error: float


@dataclass
class Counters:
    """Counters that the engine's thread updates."""

    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    prefix_hits: int = 0
    steps: int = 0
    prefill_tokens_per_s: float = 0.0
    decode_tokens_per_s: float = 0.0
    step_ms: float = 0.0
    overhead_ms: float = 0.0
    attention_error: float = 0.0
    request_s: float = 0.0  # from admission to end, recent average

    def mix(self, name: str, value: float) -> None:
        """Adds a value to a recent average."""
        old = getattr(self, name)
        setattr(self, name, 0.9 * old + 0.1 * value if old else value)
