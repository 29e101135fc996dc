"""The work of a batch under a plan, as text: `plan --work`."""

from __future__ import annotations

from dataclasses import dataclass

from pyllama_long import _native
from pyllama_long.plan import AttentionPlan
from pyllama_long.rope import RopePolicy


@dataclass(frozen=True)
class Batch:
    """The last `new` tokens of a sequence of `length`, of which the last `tail` are in the tail phase."""

    length: int
    new: int
    tail: int

    def words(self, plan: AttentionPlan) -> _native.Words:
        past, tail = self.length - self.new, min(self.tail, self.new)
        phases = ((0, self.new - tail), (1, tail))
        groups, tok = [], 0
        for phase, n in phases:
            if n:
                groups.append((0, phase, tok, n, past + tok))
            tok += n
        rope = RopePolicy.parse("native", n_train=self.length, n_ctx=self.length)
        return _native.c_batch(plan, rope, [(0, 0, 1)], groups, [(0, 0, self.length)])


def work_text(plan: AttentionPlan, batch: Batch, heads: tuple[int, int], head_size: int, threads: int) -> str:
    """Tiles, ranges and readers as the CPU computes them, once for each kind of layer. heads: query and kv heads."""
    kinds = {"": 0} if plan.dense_layers == 0 else {f"layers below {plan.dense_layers}:\n": 1, "others:\n": 0}
    parts = []
    for title, dense in kinds.items():
        shape = _native.CShape(head_size, head_size, *heads, dense)
        limits = _native.cpu_limits(shape, threads)
        parts.append(f"{title}{_native.Work(batch.words(plan), shape, limits)}")
    return "\n".join(parts)
