"""Which keys each layer of a model really reads of a text, and the error that the plan has there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pyllama_long import _native, viz
from pyllama_long.meter import Meter

if TYPE_CHECKING:
    from pyllama_long.llama import LongLlama

__all__ = ["Reads", "of_text", "png", "text"]


@dataclass(frozen=True)
class Reads:
    """shares[layer] [n]: the share (0 .. 1) of the later queries, and its own, that read the key at each of n
    positions, over all heads. Layers that llama.cpp computes are not there. meter: the errors that the plan's checks
    measured."""

    n: int
    shares: dict[int, npt.NDArray[np.float64]]
    meter: Meter

    def binned(self, columns: int) -> npt.NDArray[np.float64]:
        """[layers, columns]: means over neighbouring keys."""
        edges = np.arange(columns + 1) * self.n // columns
        rows = [[share[a:b].mean() for a, b in pairwise(edges)] for share in self.shares.values()]
        return np.array(rows)


def of_text(llm: LongLlama, tokens: Sequence[int]) -> Reads:
    """Evaluates tokens under the model's plan, with the empty cache of a model that was just opened. Raises ValueError
    if there is a text in it, or no token."""
    n = len(tokens)
    if n == 0 or llm.n_tokens > 0:
        raise ValueError("reads are recorded of some tokens, by a model that has not read anything yet")
    llm.attention_stats(reset=True)
    _native.record(llm.ctx, True)
    try:
        llm.eval(tokens)
        found = {layer: _native.reads(llm.ctx, layer) for layer, _ in _native.layers(llm.ctx)}
    finally:
        _native.record(llm.ctx, False)
    heads = _native.llama_cpp.llama_model_n_head(llm.model)
    later = heads * np.arange(n, 0, -1)
    shares = {layer: np.pad(rows, (0, n))[:n] / later for layer, rows in found.items() if len(rows)}
    return Reads(n, shares, llm.attention_errors())


def text(reads: Reads, width: int = 64) -> str:
    """A line for each layer: the keys from left to right, then the largest error of its heads."""
    errors = reads.meter.layers()
    lines = []
    for layer, row in zip(reads.shares, reads.binned(min(width, reads.n)), strict=True):
        error = f"  {errors[layer]:.4f}" if layer in errors else ""
        lines.append(f"{layer:4d} {viz.shades(row)}  {row.mean():6.1%}{error}")
    return "\n".join(lines)


def png(reads: Reads, path: str | PathLike[str], title: str) -> None:
    """Writes a map of layers and keys, and one of the errors by layer and head, as a PNG. Raises ImportError when
    matplotlib is not there."""
    layers = list(reads.shares)
    figure, scale = viz.figure(11, 2 + 0.2 * len(layers))
    left, right = figure.subplots(1, 2, width_ratios=(3, 1))
    image = left.imshow(
        reads.binned(min(512, reads.n)),
        cmap="Blues",
        norm=scale,
        extent=(0.0, reads.n, len(layers) - 0.5, -0.5),
        aspect="auto",
        interpolation="nearest",
    )
    left.set_yticks(range(len(layers)), [str(layer) for layer in layers], fontsize=6)
    left.set(xlabel="key position", ylabel="layer")
    left.set_title(title, fontsize=8, wrap=True)
    figure.colorbar(image, ax=left, label="share of later queries")
    n_head = 1 + max((head.head for head in reads.meter.heads), default=0)
    errors = np.full((len(layers), n_head), np.nan)
    for head in reads.meter.heads:
        errors[layers.index(head.layer), head.head] = head.error
    shown = right.imshow(errors, cmap="Reds", vmin=0, aspect="auto", interpolation="nearest")
    right.set(xlabel="head", title="measured error")
    figure.colorbar(shown, ax=right)
    figure.savefig(path, format="png", dpi=150)
