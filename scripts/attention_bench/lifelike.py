"""Keys and queries with the statistics of a trained model's attention, from a seed.

Taken from Qwen2.5-Coder-0.5B at 16,384 tokens (six layers, both kv heads): before RoPE, a dim of the keys is an offset,
1 in the median and up to 10, plus content with a deviation of 0.9, from 0.3 to 3. Content resembles that of its
neighbours, and less and less so over thousands of tokens (correlation 0.6 at a distance of 1, 0.4 at 4, 0.25 at 16,
0.15 at 256, 0.05 at 2,048). The logits of a query deviate by 3.1, so that 3% of the blocks of 32 have half of what all
those far away have; the first tokens have a fifth.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from cases import Array

BASE = 500000.0
CONTENT = (
    (1, 0.42),
    (6, 0.3),
    (60, 0.1),
    (600, 0.1),
    (6000, 0.08),
)  # tokens that are alike, share of the variance
DEVIATION = 3.1  # of a query's logits
SINKS, SINK_SHARE = 4, 0.2
SAMPLE = 16  # every SAMPLE-th key tells the deviation


def _rotated(x: Array, pos: Array) -> Array:
    """x [n, d] after RoPE at pos [n]."""
    half = x.shape[-1] // 2
    angle = pos[:, None] * BASE ** (-np.arange(half) / half)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    a, b = x[:, :half], x[:, half:]
    return np.concatenate((a * cos - b * sin, a * sin + b * cos), axis=1)


def _content(random: np.random.Generator, n: int, d: int) -> Array:
    """[n, d] of variance 1."""
    found = np.zeros((n, d), np.float32)
    for length, share in CONTENT:
        anchors = random.standard_normal((n // length + 2, d), np.float32)
        at, u = np.divmod(np.arange(n), length)
        u = (u / length).astype(np.float32)[:, None]
        weight = np.float32(np.sqrt(share)) / np.sqrt((1 - u) ** 2 + u**2)
        found += weight * ((1 - u) * anchors[at] + u * anchors[at + 1])
    return found


def _head(random: np.random.Generator, n: int, n_new: int, n_group: int, d: int) -> tuple[Array, Array]:
    """Keys [n, d] of a kv head, and queries [n_new, n_group, d] at the last positions."""
    offset = (np.exp(random.normal(0, 0.8, d)) * random.choice((-1, 1), d)).astype(np.float32)
    deviation = np.exp(random.normal(-0.1, 0.5, d)).astype(np.float32)
    content, pos = _content(random, n, d), np.arange(n)
    k = _rotated(offset + deviation * content, pos)
    q = np.empty((n_new, n_group, d), np.float32)
    far = k[64 : n - n_new : SAMPLE]
    for i in range(n_group):
        own = 0.7 * content[-n_new:] + 0.7 * random.standard_normal((n_new, d), np.float32)
        leaning = 0.3 * offset + 0.3 * random.standard_normal(d).astype(np.float32) * np.abs(offset)
        q[:, i] = _rotated(leaning + own, pos[-n_new:])
        q[:, i] *= DEVIATION * np.sqrt(d) / (far @ q[::SAMPLE, i].T).std(axis=0).mean()
    logits = k[SINKS:] @ q[-1].T / np.sqrt(d)
    top = logits.max(axis=0)
    rest = top + np.log(np.exp(logits - top).sum(axis=0))
    share = np.log(SINK_SHARE / (1 - SINK_SHARE) / SINKS)
    k[:SINKS] = np.linalg.pinv(q.mean(axis=0)) @ ((rest + share) * np.sqrt(d))
    return k, q


@lru_cache(maxsize=1)
def sequence(n: int, n_new: int, n_head: int, n_head_kv: int, d: int) -> tuple[Array, Array]:
    """Keys [n, n_head_kv, d] in half precision, and queries [n_new, n_head, d] at the last positions."""
    k, q = np.empty((n, n_head_kv, d), np.float16), np.empty((n_new, n_head, d), np.float32)
    n_group = n_head // n_head_kv
    for head in range(n_head_kv):
        random = np.random.default_rng((0, head))
        mine = slice(head * n_group, (head + 1) * n_group)
        k[:, head], q[:, mine] = _head(random, n, n_new, n_group, d)
    return k, q
