"""The same bits for a text however it is cut, however many threads there are, and whatever else is in the batch."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from engines import GREEDY, answer, prose

from pyllama_long import LongLlama, _native
from pyllama_long._native import llama_cpp
from pyllama_long.engine import Engine, EngineConfig, Request

ISAS = [name for name, usable in _native.isas().items() if usable]
TOPK = "sinks(4)+window(64)+topk(3)"
SAMPLE = "sinks(4)+window(64)+sample(40)"
LSH = "sinks(4)+window(64)+lsh(90, 40)"
PLANS = (
    "exact",
    "sinks(4)+window(508)",
    "window(100)",
    "prefill: sinks(37)+window(200) | tail: exact",
    f"{TOPK}+sample(40)",
    LSH,
)
LENGTH = 1450
CHUNKS = (LENGTH, 511, 300, 64, 25)  # none of them leaves a rest of fewer than 9 tokens


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    assert _native.lib.plong_cpu_isa_force(request.param.encode())
    yield request.param
    assert _native.lib.plong_cpu_isa_force(b"")


def cached(llm: LongLlama, ids: list[int], chunk: int) -> bytes:
    """K and V of every layer after reading the text in chunks."""
    llm.sequence.keep(0)
    llm.reset()
    llm.start()
    llm.sequence.extend(np.array(ids, np.int32), chunk=chunk)
    data = (ctypes.c_uint8 * llama_cpp.llama_state_seq_get_size(llm.ctx, 0))()
    n = llama_cpp.llama_state_seq_get_data(llm.ctx, data, len(data), 0)
    return bytes(data[:n])


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("rope", ["native", "rerope(128)+logn"])
def test_chunks_and_threads_change_no_bit(demo_model: str, isa: str, plan: str, rope: str) -> None:
    found = set()
    for threads in (1, 2, 5):
        model = LongLlama(
            demo_model,
            n_ctx=2048,
            n_batch=2048,
            n_ubatch=2048,
            attention=plan,
            rope=rope,
            n_threads=threads,
            n_threads_batch=threads,
        )
        with closing(model) as llm:
            ids = prose(llm, LENGTH)
            found |= {cached(llm, ids, chunk) for chunk in (CHUNKS if threads == 2 else CHUNKS[1:3])}
    assert len(found) == 1


@pytest.mark.parametrize(
    ("kv_type", "plan"), [("f16", "exact"), ("q8_0", "exact"), ("f16", TOPK), ("f16", SAMPLE), ("f16", LSH)]
)
def test_company_changes_no_bit(demo_model: str, kv_type: str, plan: str) -> None:
    """Prompts are read with others and during streams, or found in the cache, and answers are written with others."""
    config = EngineConfig(demo_model, n_ctx=8192, n_parallel=6, kv_type=kv_type, attention=plan, step_ms=4)
    with Engine(config) as engine:
        texts = [prose(engine, n, seed) for seed, n in enumerate((1200, 40, 700, 9, 333, 90))]
        requests = [Request(ids, 30, GREEDY, logprobs=3, salt="together") for ids in texts]

        def ask(request: Request) -> list[tuple[int, float | None]]:
            return [(token.id, token.logprob) for token in answer(engine.submit(request)).tokens]

        alone = [ask(Request(ids, 30, GREEDY, logprobs=3, salt=f"alone {i}")) for i, ids in enumerate(texts)]
        handles = [engine.submit(request) for request in requests]
        together = [[(token.id, token.logprob) for token in answer(handle).tokens] for handle in handles]
        again = [ask(request) for request in requests]
        page = 64 if plan in (TOPK, SAMPLE, LSH) else 1  # prefixes are shared by whole pages
        assert engine.stats().prefix_hits >= sum(len(ids) - 9 >= page for ids in texts)
    assert together == alone
    assert again == alone


@pytest.mark.parametrize("plan", [TOPK, f"prefill: exact | tail: {TOPK}"])
def test_a_full_cache_changes_no_choice(demo_model: str, plan: str) -> None:
    """Sequences that are asked for again, one at a time, while the cells of others must make room for them."""
    config = EngineConfig(demo_model, n_ctx=2560, n_batch=32, n_parallel=2, attention=plan, cache_ram=1 << 28)
    with Engine(config) as engine:
        texts = [prose(engine, n, seed) for seed, n in enumerate((900, 333, 750, 513, 700))]
        if plan == TOPK:  # else what one text has in its tail, another may have before it
            texts += [texts[0][:n] + prose(engine, 100, n) for n in (64, 333, 640)]

        def ask(i: int, salt: str) -> list[int]:
            return [
                token.id for token in answer(engine.submit(Request(texts[i], 20, GREEDY, salt=salt))).tokens
            ]

        alone = [ask(i, f"alone {i}") for i in range(len(texts))]
        for step in (1, 3, 7):  # in another order, so that shared beginnings have cells in any order
            order = [step * i % len(texts) for i in range(len(texts))]
            assert [ask(i, "again") for i in order] == [alone[i] for i in order]
        assert engine.stats().restored > 0
