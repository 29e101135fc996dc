"""The index of keys follows the cache: whatever happens to cached keys, a choice is that of an index made anew."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_model import Context, Logits, Model

from pyllama_long import _native
from pyllama_long._native import llama_cpp as C
from pyllama_long.plan import AttentionPlan
from pyllama_long.rope import RopePolicy

PLAN, ROPE = "sinks(4)+window(64)+topk(3)", "dynamic-yarn"
N_CTX = 4096
Change = Callable[[Context], None]


def tokens(n: int, seed: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(300, 3000, n)]


@pytest.fixture(scope="module")
def model(demo_model: str) -> Iterator[Model]:
    with closing(Model(Path(demo_model))) as model:
        yield model


@pytest.fixture(params=["f16", "q8_0", "streams"])
def context(request: pytest.FixtureRequest, model: Model) -> Iterator[Context]:
    kind = "f16" if request.param == "streams" else request.param
    unified = request.param != "streams"
    with closing(Context(model, N_CTX, PLAN, ROPE, kv_type=kind, n_seq=3, unified=unified)) as context:
        context.decode(tokens(500, 3))
        context.decode(tokens(400, 4), 500)
        yield context


def probe(context: Context, seq: int = 0) -> Logits:
    """The logits of one more token, which is taken back."""
    n = C.llama_memory_seq_pos_max(context.memory, seq) + 1
    logits = context.decode([270], n, seq)
    assert C.llama_memory_seq_rm(context.memory, seq, n, -1)
    return logits


def configure(context: Context, plan: str) -> None:
    rope = RopePolicy.parse(ROPE, n_train=context.model.n_train, n_ctx=N_CTX)
    _native.configure(context.ptr, _native.c_config(AttentionPlan.parse(plan), rope, precision="f32"))


def cut_and_go_on(context: Context) -> None:
    assert C.llama_memory_seq_rm(context.memory, 0, 300, -1)
    context.decode(tokens(500, 5), 300)


def shift(context: Context) -> None:
    assert C.llama_memory_seq_rm(context.memory, 0, 100, 190)
    C.llama_memory_seq_add(context.memory, 0, 190, -1, -90)


def fork(context: Context) -> None:
    C.llama_memory_seq_cp(context.memory, 0, 1, -1, -1)
    assert C.llama_memory_seq_rm(context.memory, 1, 333, -1)
    context.decode(tokens(400, 6), 333, 1)


def buffer(n: int) -> Any:
    return (ctypes.c_uint8 * n)()


def restore(context: Context) -> None:
    data = buffer(C.llama_state_seq_get_size(context.ptr, 0))
    C.llama_state_seq_get_data(context.ptr, data, len(data), 0)
    assert C.llama_memory_seq_rm(context.memory, 0, -1, -1)
    context.decode(tokens(130, 7), 0, 2)  # the first cells are another's then
    assert C.llama_state_seq_set_data(context.ptr, data, len(data), 0) == len(data)


def restore_all(context: Context) -> None:
    data = buffer(C.llama_state_get_size(context.ptr))
    C.llama_state_get_data(context.ptr, data, len(data))
    context.clear()
    context.decode(tokens(900, 8))
    probe(context)
    assert C.llama_state_set_data(context.ptr, data, len(data)) > 0


def rotate(context: Context) -> None:
    _native.set_rope_factor(context.ptr, 0, 3.0)


def stopped(context: Context) -> None:
    """An evaluation that ends early leaves pages that it has not written."""
    stop = C.ggml_abort_callback(lambda _: True)
    assert C.llama_memory_seq_rm(context.memory, 0, 300, -1)
    C.llama_set_abort_callback(context.ptr, stop, None)
    with pytest.raises(AssertionError, match="llama_decode gave 2"):
        context.decode(tokens(500, 5), 300)
    C.llama_set_abort_callback(context.ptr, C.ggml_abort_callback(), None)
    C.llama_memory_seq_rm(context.memory, 0, 300, -1)
    context.decode(tokens(500, 9), 300)


@pytest.mark.parametrize(
    "change", [cut_and_go_on, shift, fork, restore, restore_all, rotate, stopped], ids=lambda f: f.__name__
)
def test_a_choice_is_that_of_an_index_made_anew(context: Context, change: Change) -> None:
    before = probe(context)
    change(context)
    seqs = (0, 1) if change is fork else (0,)
    after = [probe(context, seq) for seq in seqs]
    same = change in (fork, restore, restore_all)
    assert np.array_equal(after[0], before) == same
    configure(context, "exact")  # the index goes with the plan
    configure(context, PLAN)
    for seq, logits in zip(seqs, after, strict=True):
        assert np.array_equal(probe(context, seq), logits)


@pytest.mark.parametrize("n_ubatch", [32, 512])
def test_window_models_have_all_pages(tmp_path: Path, n_ubatch: int) -> None:
    """Their graphs are reused while the cache grows, as there is no mask."""
    with (
        Model.random(tmp_path, "gemma3") as random,
        random.context(2048, PLAN, n_ubatch=n_ubatch) as context,
    ):
        context.decode(random.tokens(1500, 2))
        after = probe(context)
        for plan in ("exact", PLAN):
            rope = RopePolicy.parse("native", n_train=random.n_train, n_ctx=2048)
            parsed = AttentionPlan.parse(plan)
            _native.configure(context.ptr, _native.c_config(parsed, rope, precision="f32"))
        assert np.array_equal(probe(context), after)


def test_more_layers_that_choose_have_their_index(context: Context) -> None:
    configure(context, f"{PLAN}; dense_layers=1")
    probe(context)
    configure(context, PLAN)
    first = probe(context)
    assert np.array_equal(probe(context), first)


def test_it_matters_which_keys_are_chosen(context: Context) -> None:
    """Other blocks give other logits, so that equal ones say something."""
    three = probe(context)
    configure(context, "sinks(4)+window(64)+topk(1)")
    assert not np.array_equal(probe(context), three)
