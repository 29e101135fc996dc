"""One phase of an attention plan: a union of parts, `sinks(64)+window(4096)`.

For a query at position p of head h and a key at t <= p of the same sequence:

    exact       every key
    sinks(n)    t < n
    window(n)   p - t < n
    global(n)   t < n: n tokens that see and are seen by all (Longformer, arXiv 2004.05150)
    dilated(segments=.../..., rates=.../..., weight=count|stride|none, align=segment|query)
    dilated(w0=2048, alpha=2, n=5)   segments w0 * alpha^k with rates alpha^k (LongNet, arXiv 2307.02486)
    topk(n), topk(3%), topk(mass=0.95)   blocks of keys before the window, chosen by content
    lsh(n), lsh(3%)                      keys before the window, chosen by their hashes
    sample(n), sample(3%)                some of the other keys before the window, which stand for all of them
    verified(eps, delta)                 as many of them as it takes for an error of at most eps; in the tail

`topk` chooses for each layer and kv head the blocks of `block` keys that get most of the softmax, by an estimate on
4-bit copies of the keys: at most n of them, or a share, or as many as together have a mass. In the prefill, 64
neighbouring queries choose together; in the tail, each query for itself. `lsh` chooses likewise by angular hashes, and
`sample` at random. topk.py, lsh.py, sample.py and verified.py have the options.

Branch k of `dilated` (segment w, rate r) reads, for head h with offset s = h mod r: with align=segment, the
keys t from b = floor(p / w) * w on with (t - b) mod r = s, for queries on the same lattice; with align=query,
the keys t > p - w with t mod r = s, for every query. weight=count: a key that m branches read counts m times;
stride: a key belongs to the first branch that covers it, and one that it reads stands for r; none: each key counts
once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from pyllama_long import notation
from pyllama_long.lsh import Lsh, read_lsh
from pyllama_long.notation import ALL, MAX_LENGTH
from pyllama_long.plan_error import PlanError
from pyllama_long.sample import Sample, read_sample
from pyllama_long.topk import Topk, read_topk
from pyllama_long.verified import Verified, read_verified

Weight = Literal["count", "stride", "none"]
Align = Literal["segment", "query"]

MAX_BRANCHES = 16
PAGE = 64  # positions of a prefill that choose their keys together
PARTS = "exact, sinks(n), window(n), global(n), dilated(...), topk(...), lsh(...), sample(...), verified(...)"
PART_NAMES = ("exact", "sinks", "window", "global", "dilated", "topk", "lsh", "sample", "verified")
_DILATED = ("segments", "rates", "w0", "alpha", "n", "weight", "align")


@dataclass(frozen=True)
class Branch:
    """One branch of dilated attention: every `rate`-th key of segments of `segment` tokens."""

    segment: int
    rate: int

    def __post_init__(self) -> None:
        if not 1 <= self.segment <= MAX_LENGTH:
            raise PlanError(f"dilated: segment {self.segment} is not from 1 to {MAX_LENGTH}")
        if not 1 <= self.rate <= self.segment:
            raise PlanError(f"dilated: rate {self.rate} is not from 1 to its segment {self.segment}")


@dataclass(frozen=True)
class Phase:
    """What the queries of one phase read. Counts are tokens; `window=ALL` is `exact`.

    Raises PlanError for a phase that reads nothing or cannot be written as text.
    """

    sinks: int = 0
    window: int = 0
    global_: int = 0
    dense_below: int = 0
    branches: tuple[Branch, ...] = ()
    weight: Weight = "count"
    align: Align = "segment"
    topk: Topk | None = None
    lsh: Lsh | None = None
    sample: Sample | None = None
    verified: Verified | None = None

    def __post_init__(self) -> None:
        for name in ("sinks", "window", "global_", "dense_below"):
            if not 0 <= getattr(self, name) <= ALL:
                raise PlanError(f"{name.strip('_')} {getattr(self, name)} is not from 0 to {ALL}")
        if self.weight not in get_args(Weight):
            raise PlanError(f"dilated: unknown weight {self.weight!r}; known: {', '.join(get_args(Weight))}")
        if self.align not in get_args(Align):
            raise PlanError(f"dilated: unknown align {self.align!r}; known: {', '.join(get_args(Align))}")
        if len(self.branches) > MAX_BRANCHES:
            raise PlanError(f"dilated: {len(self.branches)} branches, at most {MAX_BRANCHES} are possible")
        segments = [branch.segment for branch in self.branches]
        if any(a >= b for a, b in pairwise(segments)):
            raise PlanError(f"dilated: segments {'/'.join(map(str, segments))} must ascend")
        if not self.branches and (self.weight, self.align) != ("count", "segment"):
            raise PlanError("weight and align belong to dilated: give the phase branches")
        if self.exact and (self.sinks or self.global_ or self.branches or self.chooses):
            raise PlanError("exact reads every key: leave the other parts out")
        if self.chooses and self.branches:
            name = next(name for name in ("topk", "lsh", "sample", "verified") if getattr(self, name))
            raise PlanError(f"{name} and dilated do not go together: leave one of them out")
        if self.topk and self.lsh:
            raise PlanError("topk and lsh do not go together: leave one of them out")
        if self.lsh and self.verified:
            raise PlanError("lsh and verified do not go together: leave one of them out")
        if self.sample and self.verified:
            raise PlanError("verified draws a sample of its own: leave sample out")
        if not (self.sinks or self.window or self.global_ or self.branches or self.chooses):
            raise PlanError(f"a phase must read some keys; parts: {PARTS}")

    @property
    def exact(self) -> bool:
        """Whether the phase is the part `exact`."""
        return self.window == ALL

    @property
    def chooses(self) -> bool:
        """Whether keys are chosen when it runs: the queries that choose together have one window."""
        return self.indexed or self.sample is not None

    @property
    def indexed(self) -> bool:
        """Whether they are chosen by content, from an index of keys."""
        return bool(self.topk or self.lsh or self.verified)

    @property
    def dense(self) -> int:
        """The first position whose query may leave keys out. A verified sample saves nothing of few keys."""
        if not self.verified:
            return self.dense_below
        sinks = max(self.sinks, self.global_)
        first = -(-(self.verified.least + sinks) // PAGE) * PAGE + max(self.window, PAGE) - 1
        return min(ALL, max(self.dense_below, first))

    @property
    def reach(self) -> int:
        """How many tokens back a query reads at most, including itself; ALL if that is unlimited."""
        if self.exact or self.sinks or self.global_ or self.chooses:
            return ALL
        return max(self.window, self.dense_below, *(branch.segment for branch in self.branches), 0)

    @classmethod
    def parse(cls, text: str) -> Phase:
        """Reads `part+part+...`. Raises PlanError: one line that names the wrong piece and the known ones."""
        return cls(**_parts(text))  # type: ignore[arg-type]

    def __str__(self) -> str:
        """The parts, without options."""
        if self.exact:
            return "exact"
        counts = (("sinks", self.sinks), ("global", self.global_), ("window", self.window))
        parts = [f"{name}({n})" for name, n in counts if n]
        if self.branches:
            values = [
                "segments=" + "/".join(str(branch.segment) for branch in self.branches),
                "rates=" + "/".join(str(branch.rate) for branch in self.branches),
            ]
            values += [f"weight={self.weight}"] if self.weight != "count" else []
            values += [f"align={self.align}"] if self.align != "segment" else []
            parts.append(f"dilated({', '.join(values)})")
        parts += [str(part) for part in (self.topk, self.lsh, self.sample, self.verified) if part]
        return "+".join(parts)

    def explain(self) -> str:
        """A phrase that says which keys a query reads."""
        if self.exact:
            return "every key"
        parts = [f"the first {n} tokens" for n in (max(self.sinks, self.global_),) if n]
        parts += [f"the last {self.window} tokens"] if self.window else []
        if self.branches:
            where = "of its segments" if self.align == "segment" else "before it"
            weight = {
                "count": "a key counts once for each branch that reads it",
                "stride": "a key stands for as many keys as its rate",
                "none": "a key counts once",
            }[self.weight]
            rates = ", ".join(f"1 in {b.rate} of the {b.segment}" for b in self.branches)
            parts.append(f"{rates} tokens {where} ({weight})")
        parts += [part.explain() for part in (self.topk, self.lsh, self.sample, self.verified) if part]
        return ", and ".join(parts)


def _parts(text: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for part in notation.split(text, "+"):
        if not part:
            raise PlanError(f"a part is missing in {text!r}; known: {PARTS}")
        call = notation.call(part, PlanError)
        if call.name not in _READERS:
            raise PlanError(f"unknown part {call.name!r}; known: {PARTS}")
        values = _READERS[call.name](call)
        if found.keys() & values.keys():
            twice = "exact or window" if call.name in ("exact", "window") else call.name
            raise PlanError(f"{twice} is given twice in {text!r}")
        found |= values
    return found


def _exact(call: notation.Call) -> dict[str, object]:
    if call.args or call.named:
        raise PlanError("exact takes no values: it reads every key")
    return {"window": ALL}


def _count(field: str) -> Callable[[notation.Call], dict[str, object]]:
    def read(call: notation.Call) -> dict[str, object]:
        if len(call.args) != 1 or call.named:
            raise PlanError(f"{call.name} needs one number of tokens: {call.name}(64)")
        return {field: notation.integer(call.args[0], call.name, PlanError)}

    return read


def _dilated(call: notation.Call) -> dict[str, object]:
    named = call.named
    unknown = [*call.args, *(key for key in named if key not in _DILATED)]
    if unknown:
        raise PlanError(f"dilated: unknown {unknown[0]!r}; known: {', '.join(f'{key}=' for key in _DILATED)}")
    if "segments" in named or "rates" in named:
        if not {"segments", "rates"} <= named.keys() or named.keys() & {"w0", "alpha", "n"}:
            raise PlanError("dilated needs segments= and rates= together, or else w0=, alpha= and n=")
        segments, rates = (
            [notation.integer(n.strip(), f"dilated: {key}", PlanError) for n in named[key].split("/")]
            for key in ("segments", "rates")
        )
    else:
        w0, alpha, n = (
            notation.integer(named.get(key, default), f"dilated: {key}", PlanError)
            for key, default in (("w0", "2048"), ("alpha", "2"), ("n", "5"))
        )
        if n > MAX_BRANCHES:
            raise PlanError(f"dilated: n={n} branches, at most {MAX_BRANCHES} are possible")
        rates = [alpha**k for k in range(n)]
        segments = [w0 * rate for rate in rates]
    if len(segments) != len(rates):
        raise PlanError(f"dilated: {len(segments)} segments but {len(rates)} rates")
    branches = tuple(Branch(w, r) for w, r in zip(segments, rates, strict=True))
    return {
        "branches": branches,
        "weight": named.get("weight", "count"),
        "align": named.get("align", "segment"),
    }


_READERS: dict[str, Callable[[notation.Call], dict[str, object]]] = {
    "exact": _exact,
    "sinks": _count("sinks"),
    "window": _count("window"),
    "global": _count("global_"),
    "dilated": _dilated,
    "topk": lambda call: {"topk": read_topk(call)},
    "lsh": read_lsh,
    "sample": lambda call: {"sample": read_sample(call)},
    "verified": lambda call: {"verified": read_verified(call)},
}
