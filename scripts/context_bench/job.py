"""What one process of the bench measures, and its results."""

from __future__ import annotations

from dataclasses import dataclass

OURS, UPSTREAM = "ours", "upstream"


class BenchError(Exception):
    """One line that says what is wrong and what to do."""


@dataclass(frozen=True)
class Job:
    """One side of one model. depths ascend, in tokens; `at`: the cache is filled to the depth, not computed. attention:
    only the time of attention is measured, layer by layer."""

    side: str
    model: str
    depths: tuple[int, ...]
    at: bool
    plan: str
    rope: str
    kv_type: str
    threads: int
    chunk: int
    decode_tokens: int
    attention: bool = False

    @property
    def n_ctx(self) -> int:
        return self.depths[-1] + self.decode_tokens + 1  # a token before those that are timed


@dataclass(frozen=True)
class Row:
    """prefill_tps: over all tokens from 0 to depth, or, if the cache was filled with copies, over the last chunk.
    decode_tps: the median over groups of decode_tokens. kv_mib: K, V and states of the context, which has room for its
    deepest depth; peak_rss_mib: of the process so far."""

    side: str
    depth: int
    prefill_tokens: int
    prefill_tps: float
    last_chunk_tps: float
    decode_tokens: int
    decode_tps: float
    kv_mib: float
    peak_rss_mib: float


@dataclass(frozen=True)
class Attention:
    """The attention of one layer, the mean over layers of a kind (full or window): milliseconds for the last chunk up
    to depth, and for one token after it."""

    side: str
    depth: int
    kind: str
    layers: int
    prefill_ms: float
    decode_ms: float
