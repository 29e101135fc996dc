"""Embeddings while requests are running."""

from __future__ import annotations

import numpy as np
import pytest
from engines import GREEDY, answer, prose

from pyllama_long import LongLlama
from pyllama_long.engine import (
    ContextOverflow,
    Engine,
    Request,
)


def test_embeddings_are_means_of_tokens(engine: Engine, demo_model: str) -> None:
    texts = [prose(engine, 100, 19), prose(engine, 7, 20)]
    stream = engine.submit(Request(prose(engine, 20, 21), 60, GREEDY))
    together = engine.embed(texts)
    assert len(answer(stream).ids) == 60
    llm = LongLlama(demo_model, n_ctx=512, embedding=True, precision="f32")
    for ids, vector in zip(texts, together, strict=True):
        rows = llm.embed(llm.detokenize(ids).decode(), normalize=False)
        assert len(rows) == len(ids)
        assert vector.shape == (len(rows[0]),)
        assert np.allclose(vector, np.mean(rows, axis=0), atol=2e-2)
    llm.close()
    with pytest.raises(ContextOverflow):
        engine.embed([[300] * 600])
    with pytest.raises(ValueError):
        engine.embed([[]])
