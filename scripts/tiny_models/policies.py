"""RoPE policies on one of upstream's tiny models: each runs in all layers with full attention, or is refused."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from raw_model import Context, Logits, Model

from pyllama_long import _native, layers, log
from tiny_models.library import Library, Tiny

SCALED = ("linear(4)", "dynamic-yarn", "native+logn")
WIDE = ("rerope(5000)", "self-extend(4, 5000)", "dca(5000, 100)")  # the model's own RoPE for the text
NARROW = ("rerope(20)", "self-extend(4, 20)", "dca(40, 8)")
N_TEXT, N_CTX, CHUNK = 120, 256, 48
FACTOR, FLOOR = 2.0, 2e-4  # of what upstream's two ways differ by; of the largest logit
# upstream's graph of the first ignores its own scaling; those of the others multiply the scale of all logits by YaRN's
# magnitude, even if the scaling is linear
IGNORED = ("cogvlm", "deepseek2", "mistral4")
DYNAMIC = 4.0  # the factor of dynamic policies


@dataclass
class Policies:
    """refused: policy -> why. kept: layers that keep their own positions, and why. problem: one line, or empty."""

    arch: str
    moe: bool
    kind: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    kept: str = ""
    problem: str = ""


class Runs:
    """The logits of one text under policies."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.text = [int(t) for t in np.random.default_rng(1).integers(0, model.n_vocab, N_TEXT)]
        self.kept = ""

    def ours(self, rope: str) -> Logits | str:
        """Or the refusal."""
        try:
            ctx = Context(self.model, N_CTX, rope=rope, n_ubatch=CHUNK, n_threads=1)
        except RuntimeError as error:
            return str(error)
        with closing(ctx):
            if "dynamic" in rope:
                _native.set_rope_factor(ctx.ptr, 0, DYNAMIC)
            self.kept = layers.describe(_native.native_layers(ctx.ptr))
            return ctx.decode(self.text)

    def upstream(self, flash: bool, **options: Any) -> Logits:
        with closing(
            Context(self.model, N_CTX, None, flash=flash, n_ubatch=CHUNK, n_threads=1, **options)
        ) as ctx:
            return ctx.decode(self.text)


def check(library: Library, tiny: Tiny, folder: Path) -> Policies:
    from pyllama_long._native import llama_cpp as C

    found = Policies(tiny.arch, tiny.moe)
    with library.model(tiny, folder) as pointer:
        if not pointer:
            found.problem = f"no model: {log.complaint() or 'llama.cpp refuses it'}"
            return found
        found.kind = library.kind(pointer)
        if C.llama_model_has_encoder(pointer) or "not causal" in found.kind:
            return found
        runs = Runs(Model.of(pointer))
        windows = "windows" in found.kind or "chunks" in found.kind
        native = (runs.upstream(True), runs.upstream(False))
        scaled = (runs.upstream(True, linear=4.0), runs.upstream(False, linear=4.0))
        for rope in (*SCALED, *WIDE, *NARROW):
            logits = runs.ours(rope)
            if isinstance(logits, str):
                found.refused[rope] = logits
                continue
            found.kept = runs.kept
            if rope in WIDE:
                compare(found, rope, logits, native)
            elif rope == "linear(4)" and not windows and tiny.arch not in IGNORED:
                compare(found, rope, logits, scaled)
            if not np.isfinite(logits[logits > -1e30]).all():
                found.problem = f"{rope}: logits are not finite"
        for rope, why in found.refused.items():
            if "use rope=" not in why:
                found.problem = f"{rope}: {why}"
    return found


def compare(found: Policies, rope: str, logits: Logits, upstream: tuple[Logits, Logits]) -> None:
    flash, plain = upstream
    size = float(np.abs(flash[flash > -1e30]).max())

    def apart(a: Logits, b: Logits) -> float:
        both = (a > -1e30) & (b > -1e30)
        return float(np.abs(a - b)[both].max(initial=0)) / size

    difference, rounding = min(apart(logits, flash), apart(logits, plain)), apart(flash, plain)
    if difference > max(FLOOR, FACTOR * rounding):
        found.problem = f"{rope}: logits differ by {difference:.1e}, upstream's two ways by {rounding:.1e}"
