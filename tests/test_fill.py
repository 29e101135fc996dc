"""scripts/context_bench: caches filled to a depth, with windows and states too, and the time of attention."""

from __future__ import annotations

from pathlib import Path

import make_random_gguf
import numpy as np
import pytest
import saved_state
from context_bench.fill import fill
from context_bench.grown import grown
from context_bench.nodes import Nodes, windowed
from raw_model import Model

from pyllama_long import _native, keywords
from pyllama_long._native import llama_cpp as C
from pyllama_long.opened import Wanted, open_model
from pyllama_long.params import context_params

BLOCK, DEPTH = 64, 1000


@pytest.mark.parametrize("arch", ["llama", "gpt-oss", "gemma4", "qwen35"])
def test_a_filled_cache_goes_on_at_its_depth(arch: str, tmp_path: Path) -> None:
    with (
        Model.random(tmp_path, arch, n_ctx_train=2048) as model,
        model.context(1280, None, n_seq=2, swa_full=False) as context,
    ):
        context.decode(model.tokens(BLOCK))
        n = DEPTH // BLOCK * BLOCK if arch == "llama" else DEPTH
        assert fill(context.ptr, DEPTH) == n
        assert C.llama_memory_seq_pos_max(context.memory, 0) == n - 1
        assert np.isfinite(context.decode(model.tokens(4), pos=n)).all()


def test_bytes_that_mean_something_else_are_refused(tmp_path: Path) -> None:
    with Model.random(tmp_path, "gpt-oss") as model, model.context(512, None, swa_full=False) as context:
        context.decode(model.tokens(BLOCK))
        state = np.frombuffer(saved_state.save(context), np.uint8)
    assert len(grown(state, 4 * BLOCK, (0, 64), False)) > len(state)
    for windows, hybrid in (((0,), False), ((0, 64, 64), False), ((0, 64), True)):
        with pytest.raises(ValueError):
            grown(state, 4 * BLOCK, windows, hybrid)


def test_each_layers_attention_is_timed(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    make_random_gguf.write(path, "gemma4", n_layer=6)
    nodes = Nodes()

    def watched(_model: object, n_ctx: int, _plan: object) -> C.llama_context_params:
        params = context_params(keywords.options({}), n_ctx, 1, 1)
        params.cb_eval = nodes.callback
        return params

    opened = open_model(path, keywords.options({}), Wanted("upstream", n_ctx=128), watched)
    batch = _native.Batch(8)
    batch.put(np.arange(300, 305, dtype=np.int32), 0, 1)
    try:
        with nodes:
            assert C.llama_decode(opened.ctx, batch.batch) == 0
        assert len(nodes.seconds) == 6 and all(seconds > 0 for seconds in nodes.seconds)
        assert windowed(opened, 6) == [True] * 5 + [False]
    finally:
        opened.close()
