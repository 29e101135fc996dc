"""Checks where a plan has mass=, where another sequence is NaN, and where dense_below ends inside a block."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import float_model
import gguf
import numpy as np
import pytest
from raw_model import Model

from pyllama_long import _native

ROPE, BROKEN = "rerope(128)+logn", 777


@pytest.fixture(scope="module")
def model(demo_model: str) -> Iterator[Model]:
    model = Model(Path(demo_model))
    yield model
    model.close()


def test_choices_by_mass_are_checked_and_grow(model: Model) -> None:
    """Their budget is every block; that does not mean that they read every block."""
    keys = []
    for end in ("check=16", "error=0.01"):
        with model.context(1024, f"sinks(4)+window(64)+topk(mass=0.3); {end}", ROPE) as context:
            context.decode(model.tokens(800))
            assert sum(e.rows for e in _native.errors(context.ptr)) > 0
            keys.append(_native.stats(context.ptr).keys_read)
    assert keys[0] < keys[1]


@pytest.mark.parametrize("plan", ["sinks(4)+window(64); check=16", "sinks(4)+window(64)+topk(3); error=0.05"])
def test_numbers_of_others_stay_numbers(demo_model: str, tmp_path: Path, plan: str) -> None:
    """The first row of the ubatch, of a sequence whose values are NaN, is no check."""
    path = tmp_path / "broken.gguf"
    float_model.write(demo_model, path)
    (embd,) = (t for t in gguf.GGUFReader(path, "r+").tensors if t.name == "token_embd.weight")
    embd.data[BROKEN] = np.nan
    model = Model(path)
    tokens = [t for t in model.tokens(300) if t != BROKEN][:256]
    found = []
    for other in ([], [(BROKEN, 0, 0)]):
        with model.context(1024, plan, ROPE, n_seq=2) as context:
            context.decode(tokens[:192], 0, 1)
            rows = [*other, *((t, 192 + i, 1) for i, t in enumerate(tokens[192:]))]
            found.append(np.delete(context.decode_rows(rows)[len(other) :], BROKEN, 1))  # tied embeddings
    model.close()
    assert np.isfinite(found[0]).all() and np.array_equal(found[0], found[1])


def test_a_choice_without_checks_does_not_depend_on_the_rest_of_the_ubatch(model: Model) -> None:
    """The last queries of the block from 4,800 on choose, and none of them is checked; those after it are."""
    plan = "sinks(4)+window(64)+topk(3, block=16); dense_below=4851, error=0.05"
    tokens = model.tokens(4928)
    found = []
    for cuts in ((4800, 4928), (4800, 4864, 4928)):
        with model.context(5120, plan, ROPE) as context:
            for i in range(0, 4800, 320):
                context.decode_rows([(t, i + j, 0) for j, t in enumerate(tokens[i : i + 320])], logits=False)
            parts = itertools.pairwise(cuts)
            found.append(np.concatenate([context.decode(tokens[a:b], a) for a, b in parts]))
    assert np.array_equal(found[0], found[1])
