"""How often the errors of verified(eps, delta) exceed eps, on rows whose logits have many distributions.

    python scripts/check_verified.py [--rows 10000] [--plan PLAN] [--keys 32768] [--only REGEX] [--seed 0]

Each row is a query of one head, with logits of its own: flat, normal, heavy-tailed, in streaks, with single keys or
some dozens far above all others, and so on; values share a mean, or go with the logits. What the op chose, with its
weights, gives the numerator and the denominator of the softmax, in float64, and all keys the true ones. Prints for each
distribution how many rows were sampled (the others read all keys), the share of the keys that these read, and the
shares of them whose relative error exceeds eps; then a line of JSON: {"rows", "sampled", "keys_read", "denominator",
"numerator", "problems"}. Exit status 1 if of the rows of any distribution more than delta exceed eps, by more than
chance explains, or of all rows more than delta.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from cases import Case, Seq  # noqa: E402
from op_graph import OpCase, decode, encode  # noqa: E402

Array = npt.NDArray[Any]

HEADS, TOKENS, DIMS = 16, 16, 32  # of a case: rows of 16 kv heads, and of a token each
PLAN = "sinks(4)+window(64)+verified(0.2, 0.1, least=4096)"
CHANCE = 4.0  # standard deviations by which a share of failed rows may exceed delta


def flat(random: np.random.Generator, n: int) -> Array:
    return 0.1 * random.standard_normal(n)


def normal(random: np.random.Generator, n: int) -> Array:
    return random.standard_normal(n)


def wide(random: np.random.Generator, n: int) -> Array:
    return 2.5 * random.standard_normal(n)


def heavy(random: np.random.Generator, n: int) -> Array:
    """e^logit has no variance."""
    return np.asarray(random.laplace(scale=0.7, size=n))


def streaks(random: np.random.Generator, n: int) -> Array:
    """Neighbours are alike."""
    return np.repeat(1.5 * random.standard_normal(-(-n // 50)), 50)[:n]


def waves(random: np.random.Generator, n: int) -> Array:
    wave = np.sin(np.arange(n) * 2 * np.pi / random.uniform(2, 300))
    return np.asarray(2 * wave + 0.2 * random.standard_normal(n))


def needle(random: np.random.Generator, n: int) -> Array:
    """One key has as much as all others."""
    found = 0.5 * random.standard_normal(n)
    found[random.integers(n)] = np.log(n)
    return found


def needles(random: np.random.Generator, n: int) -> Array:
    """Thirty keys have a third together."""
    found = 0.5 * random.standard_normal(n)
    found[random.integers(n, size=30)] = np.log(n / 60)
    return found


def hidden(random: np.random.Generator, n: int) -> Array:
    """A few hundred keys that a small sample may miss, each too small to stand out."""
    found = 0.3 * random.standard_normal(n)
    found[random.integers(n, size=200)] = 4.5
    return found


def passage(random: np.random.Generator, n: int) -> Array:
    """A stretch of 300 keys has a half."""
    found = 0.5 * random.standard_normal(n)
    at = random.integers(n - 300)
    found[at : at + 300] += np.log(n / 300)
    return found


def late(random: np.random.Generator, n: int) -> Array:
    """The nearer, the larger."""
    return 6 * np.arange(n) / n + 0.5 * random.standard_normal(n)


LOGITS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    of.__name__: of
    for of in (flat, normal, wide, heavy, streaks, waves, needle, needles, hidden, passage, late)
}
VALUES = ("mean", "opposed")


@dataclass
class Errors:
    """Of rows, by the keys that they read: relative errors, and the share of the keys; 1 where all are read."""

    denominator: Array
    numerator: Array
    read: Array

    @property
    def sampled(self) -> Array:
        return np.asarray(self.read < 1)

    def failed(self, eps: float) -> tuple[float, float]:
        """The shares of the rows that exceed eps."""
        return float((self.denominator > eps).mean()), float((self.numerator > eps).mean())

    @staticmethod
    def of(parts: list[Errors]) -> Errors:
        names = ("denominator", "numerator", "read")
        return Errors(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def tensors(logits: str, values: str, n: int, random: np.random.Generator) -> tuple[Array, Array]:
    """(K, V) [n, heads, dims] float64: the logit of key t for token i is K[t, head, i]; the other dims are noise."""
    k = random.standard_normal((n, HEADS, DIMS))
    for head in range(HEADS):
        for token in range(TOKENS):
            k[:, head, token] = LOGITS[logits](random, n)
    v = random.standard_normal((n, HEADS, DIMS)) + random.standard_normal((1, HEADS, DIMS))
    if values == "opposed":  # keys with large logits for the first token turn away from the others
        v *= np.where(k[:, :, :1] > np.quantile(k[:, :, :1], 0.99), -3.0, 1.0)
    return k, v


def measure(plan: str, logits: str, values: str, n: int, seed: int, kv_type: str = "f16") -> Errors:
    """The errors of HEADS * TOKENS rows."""
    random = np.random.default_rng([seed, *logits.encode(), *values.encode()])
    seqs = (Seq(n, TOKENS, tail=TOKENS),)
    case = Case(
        "verified", HEADS, HEADS, DIMS, DIMS, kv_type=kv_type, plan=plan, seqs=seqs, n_rot=0, layer=seed % 32
    )
    op = OpCase(replace(case, name=f"verified/{seed}"))
    one = op.layouts[0]
    k, v = (np.zeros_like(x) for x in (op.k, op.v))
    k[0, one.cell], v[0, one.cell] = tensors(logits, values, len(one.pos), random)
    op.q = np.zeros_like(op.q)
    for token in range(TOKENS):
        op.q[token, :, token] = 1 / case.scale
    return ran(op, k, v)


def ran(op: OpCase, k: Array, v: Array) -> Errors:
    """Runs the op with K and V [1, cells, heads, dims], and compares what it chose with all keys."""
    one, case = op.layouts[0], op.case
    op.k_bytes, op.v_bytes = encode(k, case.kv_type), encode(v, case.type_v)
    op.k, op.v = decode(op.k_bytes, k.shape, case.kv_type), decode(op.v_bytes, v.shape, case.type_v)
    op.run()
    assert op.weights is not None
    denominators, numerators, reads = [], [], []
    group = case.n_head // case.n_head_kv
    phase = op.plan.tail
    for token, p in enumerate(one.q_pos):
        t = one.pos[one.pos <= p]
        begin = (p - max(phase.window, 64) + 1) // 64 * 64
        for head in range(case.n_head):
            kv = head // group
            x = op.q[token, head].astype(np.float64) @ op.k[0, one.cell[: len(t)], kv].T * case.scale
            log_w = np.array(op.weights[token, head, : len(t)])
            log_w[(t < phase.sinks) | (t >= begin)] = 0.0
            terms, values = np.exp(x - x.max()), op.v[0, one.cell[: len(t)], kv]
            true, found = terms.sum(), (terms * np.exp(log_w)).sum()
            vector, other = terms @ values, (terms * np.exp(log_w)) @ values
            denominators.append(abs(found / true - 1))
            numerators.append(np.linalg.norm(other - vector) / np.linalg.norm(vector))
            reads.append((log_w > -np.inf).mean())
    return Errors(np.array(denominators), np.array(numerators), np.array(reads))


def most(delta: float, n: int) -> float:
    """The largest share of n rows that may exceed eps."""
    return delta + CHANCE * float(np.sqrt(delta * (1 - delta) / max(n, 1)))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000, help="of all distributions (%(default)s)")
    parser.add_argument("--keys", type=int, default=32_768, help="that a row may read (%(default)s)")
    parser.add_argument("--plan", default=PLAN, help="whose tail is verified (%(default)s)")
    parser.add_argument("--kv-type", default="f16", help="of K and V (%(default)s)")
    parser.add_argument("--only", type=re.compile, default=re.compile(""), help="distributions, as a regex")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    from pyllama_long.plan import AttentionPlan

    verified = AttentionPlan.parse(options.plan).tail.verified
    if verified is None:
        parser.error("the plan has no verified(...)")
    kinds = [(x, v) for x in LOGITS for v in VALUES if options.only.search(f"{x}/{v}")]
    cases = -(-options.rows // (len(kinds) * HEADS * TOKENS))
    every, problems = [], []
    print(
        f"{'logits/values':20} {'rows':>6} {'sampled':>8} {'keys':>7} {'denominator':>12} {'numerator':>10}"
    )
    for logits, values in kinds:
        seeds = range(options.seed, options.seed + cases)
        found = Errors.of(
            [measure(options.plan, logits, values, options.keys, seed, options.kv_type) for seed in seeds]
        )
        every.append(found)
        n, sampled = len(found.read), int(found.sampled.sum())
        failed = found.failed(verified.eps)
        name = f"{logits}/{values}"
        keys = found.read[found.sampled].mean() if sampled else 1.0
        shares = [share * n / max(sampled, 1) for share in failed]
        print(
            f"{name:20} {n:6} {sampled / n:8.1%} {keys:7.1%} {shares[0]:12.2%} {shares[1]:10.2%}", flush=True
        )
        if max(failed) > most(verified.delta, n):
            problems.append(f"{name}: {failed[0]:.2%} and {failed[1]:.2%} exceed eps")
    whole = Errors.of(every)
    denominator, numerator = whole.failed(verified.eps)
    if max(denominator, numerator) > verified.delta:
        problems.append(f"{denominator:.2%} and {numerator:.2%} of all rows exceed eps")
    print(
        json.dumps(
            {
                "rows": len(whole.read),
                "sampled": int(whole.sampled.sum()),
                "keys_read": round(float(whole.read.mean()), 4),
                "denominator": round(denominator, 5),
                "numerator": round(numerator, 5),
                "problems": problems,
            }
        )
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
