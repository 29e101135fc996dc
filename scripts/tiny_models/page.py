"""What was found, as docs/models.md and as lines on the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tiny_models.check import Found
from tiny_models.library import OWN, WITHOUT

HEAD = """\
# Models

<!-- Written by scripts/models_table.py. -->

Which attention layers of each of llama.cpp's architectures go through the op, and how close the logits are to those of
upstream's attention. The models are the tiny random ones that upstream's own `tests/test-llama-archs.cpp` makes, of one
to 22 layers. Each is evaluated with the op and without it: a prompt in chunks, longer than the windows (of 32
tokens here at most); single tokens; two sequences in one batch; a removed tail, where the memory can do that; a saved
and restored state; all with one cache for both sequences, and with one for each.{own}

- **attention** says what the layers have besides full causal attention: sliding windows or chunks of so many tokens,
  attention sinks, multi-head latent attention, capped logits, ALiBi, an indexer that selects keys, K and V shared by
  layers, M-RoPE or learned positions, and states (recurrent layers, which are not counted).
- **layers** have attention; of these the op **takes** so many; the rest is left to upstream for the reason given.
  `explain()`, `pyllama-long inspect` and `/metrics` tell the same of a model that runs.
- **difference** is the largest one between the logits of the op and those of the nearer of upstream's two ways, flash
  attention and products of matrices, as a share of the largest logit. Next to it stands the same between these two,
  which round the same numbers differently. `tests/test_models.py` holds the first to at most the second.

Of {n} causal text architectures that have attention layers, {whole} are taken whole: {share:.0%}.
"""


@dataclass(frozen=True)
class Line:
    """An architecture: its dense model and the one with experts together."""

    arch: str
    kind: str
    layers: int
    taken: int
    refused: dict[str, int]
    difference: float
    rounding: float
    problem: str

    @property
    def whole(self) -> bool:
        return self.taken == self.layers > 0

    def why(self) -> str:
        reasons = [self.problem] if self.problem else []
        reasons += [f"{reason}" for reason in self.refused]
        return "; ".join(reasons)


@dataclass(frozen=True)
class Totals:
    architectures: int
    lines: list[Line]  # causal text architectures with attention layers
    others: list[tuple[str, str]]  # the rest, with what they are
    problems: list[str]

    @classmethod
    def of(cls, found: Sequence[Found], without: Mapping[str, str] = WITHOUT) -> Totals:
        """without: what those are that have no model."""
        by_arch: dict[str, list[Found]] = {}
        for one in found:
            by_arch.setdefault(one.arch, []).append(one)
        lines, others, problems = [], [], []
        for arch, both in by_arch.items():
            failed = [f"{arch}: {one.problem}" for one in both if one.problem]
            problems += failed
            if failed or any(one.counts for one in both):
                lines.append(line(both))
            else:
                others.append((arch, what(both[0])))
        others += without.items()
        return cls(len(lines) + len(others), lines, others, problems)

    @property
    def whole(self) -> int:
        return sum(line.whole for line in self.lines)

    @property
    def share(self) -> float:
        return self.whole / max(1, len(self.lines))

    def json(self) -> dict[str, Any]:
        counted = {"causal_text": len(self.lines), "whole": self.whole, "share": round(self.share, 3)}
        return {"architectures": self.architectures, **counted, "problems": self.problems}


def line(both: Iterable[Found]) -> Line:
    found = [one for one in both if one.layers or one.problem]
    worst = min(found, key=lambda one: (not one.problem, one.taken - one.layers))
    largest = max(found, key=lambda one: one.difference)
    refused = {reason: n for one in found for reason, n in one.refused.items()}
    return Line(
        worst.arch,
        worst.kind,
        worst.layers,
        worst.taken,
        refused,
        largest.difference,
        largest.rounding,
        next((one.problem for one in found if one.problem), ""),
    )


def what(one: Found) -> str:
    """What an architecture is that is no causal text model with attention layers."""
    if one.encoder:
        return "an encoder with a decoder"
    return "no attention layers" if one.causal else "not causal"


def lines(total: Totals) -> list[str]:
    """The table for a terminal."""
    out = [
        f"{'architecture':18}{'layers':>7}{'taken':>6}{'difference':>12}{'upstream':>10}  attention: refused"
    ]
    for row in total.lines:
        numbers = f"{row.layers:7}{row.taken:6}{row.difference:12.1e}{row.rounding:10.1e}"
        out.append(f"{row.arch:18}{numbers}  {row.kind or 'full'}{': ' if row.why() else ''}{row.why()}")
    out += [f"{arch:18}  {why}" for arch, why in total.others]
    out.append(
        f"{total.whole} of {len(total.lines)} causal text architectures taken whole: {total.share:.1%}"
    )
    return out


def page(total: Totals) -> str:
    """The text of docs/models.md."""
    names = [row.arch for row in total.lines if row.arch in OWN]
    own = (
        f"\nUpstream's test has none of {', '.join(names)}: `scripts/make_random_gguf.py` makes it."
        if names
        else ""
    )
    out = [HEAD.format(own=own, n=len(total.lines), whole=total.whole, share=total.share)]
    out.append(
        "| architecture | attention | layers | taken | left to upstream because | difference | upstream's own |"
    )
    out.append("|---|---|---|---|---|---|---|")
    for row in sorted(total.lines, key=lambda row: row.arch):
        cells = (row.arch, row.kind or "full", row.layers, row.taken, row.why())
        out.append(f"| {' | '.join(map(str, cells))} | {row.difference:.0e} | {row.rounding:.0e} |")
    out += ["", "The other architectures:", "", "| architecture | what it is |", "|---|---|"]
    out += [f"| {arch} | {why} |" for arch, why in sorted(total.others)]
    return "\n".join(out) + "\n"


def rows(text: str) -> dict[str, tuple[str, ...]]:
    """The page's architectures with everything that does not depend on the processor."""
    cells = (re.split(r" *\| *", line.strip("| ")) for line in text.splitlines() if line.startswith("| "))
    return {row[0]: tuple(row[1:5]) for row in cells if row[0] != "architecture"}
