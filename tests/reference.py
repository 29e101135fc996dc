"""The attention of the op in float64 NumPy, written from the formulas of the plan and of the RoPE policy.

For a query at position p of head h over the keys t <= p of its own sequence:

    logit(t) = scale * < R(distance(p, t)) q, k_t > * magnitude^2 * logn(p) + log_w(p, t, number(h))
    out      = sum over t of softmax(logit)(t) * v_t

Before log_w is added, logits may be capped, and lose ALiBi's bias. An attention sink is a logit without a value.

q and k come un-rotated; R acts on n_rot dims of a head, from rot_first on. `naive` does the same in a lower precision.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pyllama_long.plan import ALL, AttentionPlan, Phase
from pyllama_long.rope import RopePolicy

Array = npt.NDArray[Any]
Precision = Literal["f64", "f32", "f16", "bf16"]


def log_weights(phase: Phase, p: Array, h: int, t: Array, rows: int = 1) -> Array:
    """[n_q, n_k] float64: log weight of keys t [n_k] for queries p [n_q] of head number h; -inf: not read. rows: how
    many positions choose keys together, in phases that do; the keys that they choose are left out."""
    p, t = np.asarray(p)[:, None], np.asarray(t)[None, :]
    visible = t <= p
    begin = p - phase.window + 1
    if phase.chooses:  # queries that choose together have one window, of whole pages of 64
        first = p // rows * rows - max(phase.window, 64) + 1
        begin = np.where(first > 0, first // 64 * 64, first)
    in_set = visible & ((t < phase.sinks) | (t < phase.global_) | (t >= begin) | (p < phase.dense))
    readers = np.zeros(visible.shape)
    owned = np.zeros(visible.shape, bool)
    log_stride = np.full(visible.shape, -np.inf)
    for branch in phase.branches:
        w, r = branch.segment, branch.rate
        s = h % r
        if phase.align == "segment":
            b = p // w * w
            inside = visible & (t >= b) & ((p - b) % r == s)
            reads = inside & ((t - b) % r == s)
        else:
            inside = visible & (t > p - w)
            reads = inside & (t % r == s)
        readers += reads
        log_stride[reads & ~owned] = np.log(r)
        owned |= inside
    if phase.weight == "stride":
        log_w = log_stride
    else:
        log_w = np.full(visible.shape, -np.inf)
        some = readers > 0
        log_w[some] = np.log(readers[some]) if phase.weight == "count" else 0.0
    log_w[in_set] = 0.0
    return log_w


def number(head: int, n_head: int, group: int) -> int:
    """The number of a query head in dilated attention, which counts across kv heads (docs/plans.md)."""
    return [int(h) for h in np.arange(n_head).reshape(-1, group).T.flat].index(head)


def keys(phase: Phase, p: int, h: int) -> tuple[Array, Array]:
    """(positions, log_w) of the keys that the query at p of head number h reads, ascending, each once."""
    log_w = log_weights(phase, np.array([p]), h, np.arange(p + 1))[0]
    positions = np.flatnonzero(log_w > -np.inf)
    return positions, log_w[positions]


def rope_freqs(
    policy: RopePolicy, n_rot: int, base: float, model_factors: Array | None = None
) -> tuple[Array, float]:
    """(radians per position [n_rot / 2] float64, magnitude of cos and sin). model_factors [n_rot / 2] divide
    the native frequencies; the other rules replace them."""
    i = np.arange(n_rot // 2)
    s, n_train = policy.factor, policy.n_train
    theta = float(base) ** (-2.0 * i / n_rot)
    if policy.freq == "ntk":
        theta = (base * s ** (n_rot / (n_rot - 2))) ** (-2.0 * i / n_rot)
    if policy.freq == "native" and model_factors is not None:
        theta = theta / np.asarray(model_factors, np.float64)
    if policy.freq == "linear":
        return theta / s, 1.0
    if policy.freq == "yarn":
        fast, slow = (
            n_rot * np.log(n_train / (2 * np.pi * beta)) / (2 * np.log(base))
            for beta in (policy.beta_fast, policy.beta_slow)
        )
        low, high = max(0.0, np.floor(fast)), min(n_rot - 1.0, np.ceil(slow))
        keep = 1 - np.clip((i - low) / max(0.001, high - low), 0, 1)
        return theta * ((1 - keep) / s + keep), float(0.1 * np.log(s) + 1)
    if policy.freq == "llama3":
        wavelength = 2 * np.pi / theta
        smooth = (n_train / wavelength - policy.low_freq) / (policy.high_freq - policy.low_freq)
        blend = theta * ((1 - smooth) / s + smooth)
        long, short = wavelength > n_train / policy.low_freq, wavelength < n_train / policy.high_freq
        return np.where(long, theta / s, np.where(short, theta, blend)), 1.0
    if policy.freq == "longrope":
        factors = np.asarray(policy.factors) if policy.factors else 1.0
        return theta / factors, float(np.sqrt(1 + np.log(s) / np.log(n_train)))
    return theta, 1.0


def distance(policy: RopePolicy, p: Array | int, t: Array | int) -> Array:
    """Relative distance of queries at p and keys at t <= p (broadcast together)."""
    p, t = np.asarray(p), np.asarray(t)
    if policy.map == "rerope":
        return np.asarray(np.minimum(p - t, policy.chunk))
    if policy.map == "self-extend":
        group, window = policy.chunk, policy.local
        return np.where(p - t < window, p - t, p // group - t // group + window - window // group)
    if policy.map == "dca":
        chunk, c = policy.chunk, policy.chunk - policy.local
        apart = p // c - t // c
        previous = np.minimum(p % c + c, chunk) - t % c
        return np.where(apart == 0, p - t, np.where(apart == 1, previous, chunk - t % c))
    return np.asarray(p - t)


def logn(policy: RopePolicy, p: Array) -> Array:
    """[n_q] factor of queries at positions p."""
    if not policy.logn:
        return np.ones(np.shape(p))
    return np.asarray(np.maximum(1.0, np.log(np.asarray(p) + 1.0) / np.log(policy.n_train)))


def rotate(
    x: Array,
    positions: Array,
    freqs: Array,
    n_rot: int,
    neox: bool,
    magnitude: float = 1.0,
    rot_first: int = 0,
) -> Array:
    """x [..., d] with n_rot dims, from rot_first on, rotated by positions [...] (broadcast) * freqs [n_rot / 2] and
    multiplied by magnitude. Pairs are (i, i + n_rot / 2) if neox, else (2i, 2i + 1). Angles are float64, the
    rest has x's dtype."""
    if n_rot == 0:
        return x
    angle = np.asarray(positions, np.float64)[..., None] * freqs
    cos, sin = (magnitude * np.cos(angle)).astype(x.dtype), (magnitude * np.sin(angle)).astype(x.dtype)
    half = n_rot // 2
    at, end = rot_first, rot_first + n_rot
    pairs = ((at, at + half, 1), (at + half, end, 1)) if neox else ((at, end, 2), (at + 1, end, 2))
    first, second = (slice(*part) for part in pairs)
    a, b = x[..., first], x[..., second]
    turned_a, turned_b = a * cos - b * sin, a * sin + b * cos
    out = np.array(np.broadcast_to(x, (*turned_a.shape[:-1], x.shape[-1])))
    out[..., first], out[..., second] = turned_a, turned_b
    return out


def hadamard(x: Array, n: int) -> Array:
    """x [..., d] times the orthonormal Hadamard matrix in blocks of n dims, a power of 2; self-inverse."""
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]]) / np.sqrt(2)
    blocks: Array = x.reshape(*x.shape[:-1], -1, n) @ matrix.astype(x.dtype)
    return blocks.reshape(x.shape)


def round_to(x: Array, precision: Precision) -> Array:
    """x rounded to the precision, as float64 for f64 and as float32 for the others."""
    if precision == "f64":
        return np.asarray(x, np.float64)
    x = np.asarray(x, np.float32)
    if precision == "f16":
        return x.astype(np.float16).astype(np.float32)
    if precision == "bf16":
        bits: Array = np.ascontiguousarray(x).view(np.uint32)
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
        return bits.view(np.float32)
    return x


def alibi_slopes(n: int, max_bias: float) -> list[float]:
    """The slope per head (arXiv 2108.12409, and its code for n that is not a power of two)."""
    if n & (n - 1) == 0:
        return [2.0 ** (-max_bias * (h + 1) / n) for h in range(n)]
    lower = 1 << (n.bit_length() - 1)
    return alibi_slopes(lower, max_bias) + alibi_slopes(2 * lower, max_bias)[0::2][: n - lower]


def _dots(a: Array, b: Array) -> Array:
    """Sums of products over the last axis. In float32 they are added one by one, as in a plain loop, since the
    accuracy of BLAS differs between processors."""
    if a.dtype == np.float64:
        return np.asarray(np.einsum("...d,...d->...", a, b, optimize=True))
    total = np.zeros(np.broadcast_shapes(a.shape, b.shape)[:-1], np.float32)
    for i in range(a.shape[-1]):
        total += a[..., i] * b[..., i]
    return total


def attention(
    q_raw: Array,
    k_raw: Array,
    v: Array,
    q_pos: Array,
    k_pos: Array,
    phase_of_query: Array,
    plan: AttentionPlan,
    rope: RopePolicy,
    scale: float,
    freqs: Array,
    magnitude: float,
    n_rot: int,
    neox: bool,
    *,
    max_bias: float = 0.0,
    soft_cap: float = 0.0,
    sinks: Array | None = None,
    layer: int = 0,
    rot_first: int = 0,
    chosen: Array | None = None,
    precision: Precision = "f64",
) -> Array:
    """Attention of one sequence: [n_q, n_head, d_v].

    q_raw [n_q, n_head, d] and k_raw [n_k, n_head_kv, d], un-rotated; v [n_k, n_head_kv, d_v]; q_pos [n_q] and
    k_pos [n_k], any order, no key position twice; phase_of_query [n_q]: 0 prefill, 1 tail; freqs and
    magnitude: rope_freqs(). n_rot = 0: no RoPE in this layer; else the dims from rot_first on are rotated. max_bias:
    ALiBi's, 0 without. soft_cap c: logits become c * tanh(logit / c), 0 without. sinks [n_head]: one more logit per
    head, or None. chosen [n_q, n_head, n_k]: log weights of the keys that the op chose, else -inf. A query that reads
    no key gives zeros.
    """
    n_head, group = q_raw.shape[1], q_raw.shape[1] // k_raw.shape[1]
    q, k, v = (round_to(x, "f64" if precision == "f64" else "f32") for x in (q_raw, k_raw, v))
    q_pos, k_pos = np.asarray(q_pos), np.asarray(k_pos)
    v = round_to(v, precision)
    out = np.zeros((len(q_pos), n_head, v.shape[-1]), v.dtype)
    factor = (scale * logn(rope, q_pos)).astype(q.dtype)
    if rope.map == "absolute":
        # R(p - t) = R(-t) R(p): rotating both sides is the same and needs no rotation per pair.
        q = round_to(rotate(q, q_pos[:, None], freqs, n_rot, neox, magnitude, rot_first), precision)
        k = round_to(rotate(k, k_pos[:, None], freqs, n_rot, neox, magnitude, rot_first), precision)
        dots = np.stack([_dots(q[:, None, h], k[None, :, h // group]) for h in range(n_head)])
    else:
        dots = np.zeros((n_head, len(q_pos), len(k_pos)), q.dtype)
        k = np.repeat(round_to(k, precision), group, axis=1)
        for i, p in enumerate(q_pos):
            apart = np.where(k_pos <= p, distance(rope, p, np.minimum(k_pos, p)), 0)
            turned = rotate(q[i], apart[:, None], freqs, n_rot, neox, magnitude**2, rot_first)
            turned = round_to(turned, precision)
            dots[:, i] = _dots(turned if n_rot else np.broadcast_to(turned, k.shape), k).T
    dense = layer < plan.dense_layers
    phases = [Phase(window=ALL) if dense else phase for phase in (plan.prefill, plan.tail)]
    log_w = np.empty((len(q_pos), len(k_pos)))
    for h in range(n_head):
        if h == 0 or any(phase.branches or phase.chooses for phase in phases):
            for index, phase in enumerate(phases):
                rows = np.asarray(phase_of_query) == index
                together = 1 if index else 64
                log_w[rows] = log_weights(phase, q_pos[rows], number(h, n_head, group), k_pos, together)
            if chosen is not None:
                assert not ((log_w > -np.inf) & (chosen[:, h] > -np.inf)).any(), "a key is read twice"
                log_w = np.maximum(log_w, chosen[:, h])
        reading = np.flatnonzero((log_w > -np.inf).any(axis=1))
        logits = factor[reading, None] * dots[h, reading]
        if soft_cap:
            logits = soft_cap * np.tanh(logits / soft_cap)
        logits += log_w[reading].astype(q.dtype)
        if max_bias:
            logits -= alibi_slopes(n_head, max_bias)[h] * (q_pos[reading, None] - k_pos).astype(q.dtype)
        top = logits.max(axis=1, keepdims=True)
        weights = np.exp(logits - top)
        denominator = weights.sum(axis=1, keepdims=True)
        if sinks is not None:
            with np.errstate(over="ignore"):
                denominator += np.exp(sinks[h].astype(q.dtype) - top)
        weights = round_to(weights / denominator, precision)
        out[reading, h] = _dots(weights[:, None], v[None, :, h // group].swapaxes(1, 2))
    return out


def naive(*args: Any, precision: Literal["f32", "f16", "bf16"], **named: Any) -> Array:
    """attention() as a naive implementation in a lower precision: float32 arithmetic in plain loops, with rotated q,
    rotated k, v and the softmax weights rounded to f16 or bf16. A kernel may have at most twice its error."""
    return attention(*args, **named, precision=precision)
