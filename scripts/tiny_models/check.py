"""One model three times: with the op, with upstream's flash attention and with its other way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pyllama_long import log
from tiny_models.library import Library, Tiny
from tiny_models.walk import Walk, walk

FLOOR = 1e-4  # as a share of the largest logit: where upstream refuses flash attention, its two ways are one
MASKED = -1e30  # chameleon gives the smallest numbers to some tokens of a batch's first row


@dataclass
class Found:
    """What was found of one tiny model. layers: those with attention; refused: reasons with their number of layers.
    difference: the largest of logits between the op and the nearer of upstream's two ways; rounding: between these two;
    both as a share of the largest logit. cut: whether a tail can be removed. problem: one line, or empty."""

    arch: str
    moe: bool
    kind: str = ""
    causal: bool = False
    encoder: bool = False
    layers: int = 0
    taken: int = -1  # before it is counted
    refused: dict[str, int] = field(default_factory=dict)
    cut: bool = False
    difference: float = 0.0
    rounding: float = 0.0
    problem: str = ""

    @property
    def counts(self) -> bool:
        """Whether it is a causal text model with attention layers."""
        return self.causal and not self.encoder and self.layers > 0

    @property
    def whole(self) -> bool:
        return self.taken == self.layers > 0


def check(library: Library, tiny: Tiny, folder: Path, plan: str = "exact") -> Found:
    """Never raises for what a model does: that is its problem. plan: of the op."""
    from pyllama_long._native import llama_cpp as C

    found = Found(tiny.arch, tiny.moe)
    with library.model(tiny, folder) as model:
        if not model:
            found.problem = f"no model: {log.complaint() or 'llama.cpp refuses it'}"
            return found
        found.kind = library.kind(model)
        found.encoder = bool(C.llama_model_has_encoder(model))
        found.causal = "not causal" not in found.kind
        step = "upstream"
        try:
            flash, plain = walk(library, model, None), walk(library, model, None, flash=False)
            step = "the op"
            caches = (True,) if found.encoder else (True, False)  # upstream's decoders of T5 need one cache
            ours = [walk(library, model, plan, unified=unified) for unified in caches]
        except (RuntimeError, AssertionError) as error:
            found.problem = f"{step}: {error} {log.complaint() or ''}".strip()
            return found
    for one in ours:
        count(found, one, flash)
        compare(found, one, flash, plain)
    return found


def count(found: Found, ours: Walk, flash: Walk) -> None:
    """Layers by the nodes that were computed, reasons by what the extension tells."""
    found.layers = max(flash.chunk[0], flash.token[0])
    taken = min(ours.chunk[1], ours.token[1])
    found.taken = min(found.taken, taken) if found.taken >= 0 else taken
    found.cut = ours.cut
    refused = dict(Counter(reason for _, reason in ours.layers if reason))
    found.refused |= refused
    if taken + sum(refused.values()) < found.layers and not found.encoder:  # layers there have two attentions
        found.problem = f"of {found.layers} layers {taken} are taken and {sum(refused.values())} refused"
    if sum(ours.chunk) != flash.chunk[0] or sum(ours.token) != flash.token[0]:
        found.problem = (
            f"attention nodes: {ours.chunk} and {ours.token}, upstream {flash.chunk} and {flash.token}"
        )


def compare(found: Found, ours: Walk, flash: Walk, plain: Walk) -> None:
    if ours.logits.keys() != flash.logits.keys() or ours.cut != flash.cut:
        found.problem = f"steps {', '.join(ours.logits)}; upstream's {', '.join(flash.logits)}"
        return
    size = max(float(np.abs(value[value > MASKED]).max()) for value in flash.logits.values())
    for name, value in (("the op", ours), ("upstream", flash)):
        if not all(np.isfinite(logits).all() for logits in value.logits.values()):
            found.problem = f"{name} gives logits that are not finite"
            return
    rounding = distances(plain, flash, size)
    found.rounding = max(rounding.values())
    nearer = min(
        (distances(ours, other, size) for other in (flash, plain)), key=lambda found: max(found.values())
    )
    worst = max(nearer, key=lambda name: nearer[name])
    found.difference = max(found.difference, nearer[worst])
    if nearer[worst] > max(FLOOR, found.rounding):
        found.problem = (
            f"{worst}: logits differ by {nearer[worst]:.1e}, upstream's two ways by {found.rounding:.1e}"
        )


def distances(a: Walk, b: Walk, size: float) -> dict[str, float]:
    """The largest difference of logits in each step."""
    out = {}
    for name, x in a.logits.items():
        y = b.logits[name]
        both = (x > MASKED) & (y > MASKED)
        out[name] = float(np.abs(x - y)[both].max(initial=0)) / size
    return out
