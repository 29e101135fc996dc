"""A tiny model of the trainer and a corpus for it, shared by the tests of training."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

from train_demo import dilated
from train_demo.model import Config

MINUTE = Config(n_vocab=400, n_layer=3, n_embd=64, n_head=4, n_head_kv=2, n_ff=96, n_ctx=160)


def with_branches(text: str) -> Config:
    segments, rates = dilated.parse(text)
    return dataclasses.replace(MINUTE, segments=segments, rates=rates)


def make_books(folder: Path) -> Path:
    """Writes two books of made-up words, and one that is held out."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abdegiklmnoprstu", k=draw.randint(3, 8))) for _ in range(600)]
    folder.mkdir()
    for name in ("one", "two", "heldout-three"):
        sentences = [" ".join(draw.choices(words, k=draw.randint(4, 12))).capitalize() for _ in range(1500)]
        lines = [". ".join(sentences[i : i + 5]) + "." for i in range(0, len(sentences), 5)]
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return folder
