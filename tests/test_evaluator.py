"""Evaluating tokens: prefixes, chunks, cancelling, saved states, embeddings, and after close."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llamas import PROMPT, ids

from pyllama_long import LongLlama, _native
from pyllama_long._native import llama_cpp
from pyllama_long.arrays import MIN_PREFILL
from pyllama_long.errors import Cancelled, ContextOverflow, DecodeError


def decode_raw(llm: LongLlama, tokens: list[int], pos: int) -> None:
    """Decodes on the raw context, with logits for every token."""
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, pos + i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, 1
    assert llama_cpp.llama_decode(llm.ctx, batch) == 0
    llama_cpp.llama_batch_free(batch)


def test_prefix_is_reused(llm: LongLlama, counted: Callable[[], int]) -> None:
    first, second = ids(llm, 200, 1), ids(llm, 50, 2)
    llm.eval(first)
    assert counted() == 200
    llm.reset()
    llm.eval(first + second)
    assert counted() == 50
    llm.reset()
    llm.eval(first[:100] + second)
    assert counted() == 50
    assert llm.n_tokens == 150
    llm.eval(second)
    assert (counted(), llm.n_tokens) == (50, 200)


def test_reused_equals_fresh(llm: LongLlama, demo_model: str) -> None:
    a, b = ids(llm, 150, 5), ids(llm, 40, 6)
    llm.reset()
    llm.eval(a + ids(llm, 30, 7))
    llm.reset()
    llm.eval(a + b)
    fresh = LongLlama(demo_model, n_ctx=512, n_batch=64, precision="f32")
    fresh.eval(a + b)
    assert np.array_equal(llm.scores, fresh.scores)
    assert llm.scores.shape == (1, llm.n_vocab())
    fresh.close()


def test_raw_use_of_the_context_is_noticed(llm: LongLlama) -> None:
    # guidance decodes on .ctx and edits the memory itself.
    llm.reset()
    prompt = ids(llm, 60, 8)
    expected = llm(prompt, max_tokens=6, temperature=0)["choices"][0]["text"]
    memory = llama_cpp.llama_get_memory(llm.ctx)
    llama_cpp.llama_memory_seq_rm(memory, 0, 0, -1)
    assert llm(prompt, max_tokens=6, temperature=0)["choices"][0]["text"] == expected
    llama_cpp.llama_memory_seq_rm(memory, 0, 0, -1)
    decode_raw(llm, ids(llm, 60, 9), 0)
    rows = np.ctypeslib.as_array(llama_cpp.llama_get_logits(llm.ctx), (60, llm.n_vocab()))
    assert np.isfinite(rows).all()
    assert llm(prompt, max_tokens=6, temperature=0)["choices"][0]["text"] == expected


def test_handlers_that_fill_the_cache_themselves(llm: LongLlama, counted: Callable[[], int]) -> None:
    # As llama_cpp's handlers of images do: text through eval, the rest through the raw context.
    llm(ids(llm, 100, 21), max_tokens=1)
    text = ids(llm, 40, 22)
    llm.reset()
    llm._ctx.kv_cache_clear()  # type: ignore[no-untyped-call]
    llm.eval(text[:20])
    decode_raw(llm, ids(llm, 30, 23), 20)
    llm.n_tokens = 50
    llm.eval(text[20:])
    prompt = llm.input_ids[: llm.n_tokens].tolist()
    assert len(prompt) == 70
    counted()
    llm(prompt, max_tokens=1)
    assert counted() == 0


def test_progress(llm: LongLlama) -> None:
    seen: list[tuple[int, int]] = []
    llm.reset()
    llm.progress = lambda done, total: seen.append((done, total))
    try:
        llm.eval(ids(llm, 150, 10))
        assert seen == [(64, 150), (128, 150), (150, 150)]
        seen.clear()
        llm(ids(llm, 150, 10) + ids(llm, 70, 11), max_tokens=3)
        assert seen == [(214, 220), (220, 220)]
    finally:
        llm.progress = None


def test_cancel_stops_within_one_chunk(llm: LongLlama) -> None:
    seen: list[int] = []

    def stop(done: int, _total: int) -> None:
        seen.append(done)
        if done >= 128:
            thread = threading.Thread(target=llm.cancel)
            thread.start()
            thread.join()

    llm.reset()
    llm.progress = stop
    prompt = ids(llm, 400, 12)
    try:
        with pytest.raises(Cancelled, match="cancelled after 128 of 400 tokens"):
            llm(prompt, max_tokens=1)
    finally:
        llm.progress = None
    assert seen == [64, 128]
    llm.attention_stats(reset=True)
    llm(prompt, max_tokens=1)
    assert llm.attention_stats()["tokens"] == 400 - 128


def test_bad_tokens(llm: LongLlama) -> None:
    for bad in ([300, 99999], [-1], [300, 2**31]):
        with pytest.raises(ValueError, match=r"outside the vocabulary|whole numbers"):
            llm.eval(bad)
    for wrong in ([0.5], [[300]], ["a"]):
        with pytest.raises(ValueError, match="whole numbers"):
            llm.eval(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing to continue from"):
        list(llm.generate([]))


def test_overflow(llm: LongLlama) -> None:
    llm.reset()
    with pytest.raises(ContextOverflow, match=r"Requested tokens \(513\) exceed context window of 512"):
        llm.eval([300] * 513)
    llm.reset()
    llm.eval(ids(llm, 510, 13))
    generated = llm.generate([], reset=False, temp=0.0)
    found: list[int] = []
    with pytest.raises(ContextOverflow):
        found.extend(generated)
    llm.reset()


def test_logits_that_are_no_numbers(llm: LongLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.sequence, "row", lambda i=-1: np.full(8, np.nan, np.float32))
    llm.reset()
    with pytest.raises(DecodeError, match="not numbers"):
        llm.eval(ids(llm, 3, 14))


def test_logits_all(demo_model: str, llm: LongLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = ids(llm, 100, 16)
    model = LongLlama(demo_model, logits_all=True, n_batch=32, precision="f32")
    model.eval(tokens)
    assert model.scores.shape == (512, model.n_vocab())
    assert model._scores.shape == (100, model.n_vocab())
    llm.reset()
    llm.eval(tokens[:50])
    assert np.allclose(model.scores[49], llm.scores[-1], atol=0.3)
    assert len(model.eval_logits) == 100
    model.close()
    monkeypatch.setattr("pyllama_long.evaluator._ALL_ROWS_BYTES", 1000)
    with pytest.warns(UserWarning, match="only the last row is kept"):
        model = LongLlama(demo_model, logits_all=True)
    model.eval(tokens)
    assert model._scores.shape == (1, model.n_vocab())
    assert model(PROMPT, logprobs=1, max_tokens=1)["choices"][0]["logprobs"] is not None
    model.close()


def test_memory_does_not_grow_with_the_window(demo_model: str) -> None:
    model = LongLlama(demo_model, n_ctx=65536, n_batch=512)
    assert model.scores.nbytes == 0
    assert model.input_ids.nbytes == 4 * 65536
    batch = model._batch
    assert batch.token.nbytes + batch.pos.nbytes + batch.seq.nbytes + batch.logits.nbytes == 512 * 13
    model.close()


def test_state_is_saved_and_loaded(llm: LongLlama, counted: Callable[[], int]) -> None:
    prompt = ids(llm, 90, 17)
    expected = llm(prompt, max_tokens=5, temperature=0)["choices"][0]["text"]
    llm.reset()
    llm.eval(prompt)
    state = llm.save_state()
    assert len(state.input_ids) == state.n_tokens == 90
    llm.reset()
    llm.eval(ids(llm, 300, 18))
    llm.load_state(state)
    counted()
    assert llm.n_tokens == 90
    assert llm(prompt, max_tokens=5, temperature=0)["choices"][0]["text"] == expected
    assert counted() <= MIN_PREFILL + 4


def test_pickles_on_disk_are_refused(llm: LongLlama, tmp_path: Path) -> None:
    cache = _native.LlamaDiskCache(str(tmp_path))
    with pytest.raises(ValueError, match="LlamaDiskCache keeps pickles"):
        llm.set_cache(cache)
    cache.cache.close()


def test_pickling_loads_the_same_model_again(demo_model: str) -> None:
    model = LongLlama(demo_model, n_ctx=1024, attention="skim", kv_type="q8_0", n_batch=32)
    twin = pickle.loads(pickle.dumps(model))
    assert (twin.n_ctx(), twin.plan, twin.rope, twin.n_batch) == (1024, model.plan, model.rope, 32)
    assert twin.context_params.type_k == model.context_params.type_k
    model.close()
    twin.close()


def test_embeddings_are_upstreams(demo_model: str) -> None:
    options: dict[str, Any] = {"n_ctx": 512, "embedding": True, "flash_attn": True, "verbose": False}
    for pooling in (llama_cpp.LLAMA_POOLING_TYPE_MEAN, llama_cpp.LLAMA_POOLING_TYPE_NONE):
        mine = LongLlama(demo_model, pooling_type=pooling, **options)
        _native.configure_next(_native.c_config(mine.plan, mine.rope, precision=mine.precision))
        theirs = llama_cpp.Llama(demo_model, pooling_type=pooling, **options)
        _native.configure_next(None)
        for text in ("The sea.", ["The sea.", "A longer text about the captain and his ship."]):
            for a, b in zip(_flat(mine.embed(text)), _flat(theirs.embed(text)), strict=True):
                assert np.allclose(a, b, atol=0.05)
        found = mine.create_embedding(["a", "b c"], model="m")
        assert {key: found[key] for key in ("object", "model", "usage")} == {
            key: theirs.create_embedding(["a", "b c"], model="m")[key] for key in ("object", "model", "usage")
        }
        json.dumps(found)
        mine.close()
        theirs.close()


def _flat(found: Any) -> list[Any]:
    return [np.ravel(row) for row in found] if isinstance(found[0], list) else [np.asarray(found)]


def test_vocab_only(demo_model: str, llm: LongLlama) -> None:
    model = LongLlama(demo_model, vocab_only=True)
    assert model.tokenize(b"the sea") == llm.tokenize(b"the sea")
    assert (model.n_train, model.n_ctx()) == (512, 512)
    with pytest.raises(RuntimeError, match="only the vocabulary is loaded"):
        model.eval([300])
    model.close()


def test_tokenizers_of_a_closed_model(demo_model: str) -> None:
    model = LongLlama(demo_model, vocab_only=True)
    tokenizer = model.tokenizer()
    model.close()
    for call in (lambda: tokenizer.tokenize(b"the sea"), lambda: tokenizer.detokenize([300])):
        with pytest.raises(RuntimeError, match="closed"):
            call()


CLOSED: list[Callable[[LongLlama], Any]] = [
    *(
        lambda model, name=name: getattr(model, name)()
        for name in (
            "n_ctx n_vocab n_embd token_eos token_bos token_nl pooling_type save_state sample explain "
            "attention_stats mark_tail reset"
        ).split()
    ),
    lambda model: model.ctx,
    lambda model: model.model,
    lambda model: model.n_tokens,
    lambda model: setattr(model, "n_tokens", 3),
    lambda model: model.input_ids,
    lambda model: model.eval_tokens,
    lambda model: model.eval_logits,
    lambda model: model.scores,
    lambda model: model.eval([300]),
    lambda model: model.generate([300]),
    lambda model: model.embed("the sea " * 9),
    lambda model: model.create_embedding("the sea"),
    lambda model: model.set_tail(3),
    lambda model: model.tokenize(b"the sea"),
    lambda model: model.detokenize([300]),
    lambda model: model("the sea", max_tokens=1),
    lambda model: model.create_chat_completion([{"role": "user", "content": "hello"}]),
]


def test_calls_on_a_closed_model(demo_model: str) -> None:
    model = LongLlama(demo_model, n_ctx=64, n_batch=16, embedding=True)
    streams = [model.generate([300, 301]), model("the sea", max_tokens=9, stream=True)]
    model.eval([300, 301])
    state, n_ctx = model.save_state(), model.n_ctx()
    model.close()
    calls: list[Callable[[LongLlama], Any]] = [*CLOSED, lambda model: model.load_state(state)]
    for call in calls:
        with pytest.raises(RuntimeError, match="this LongLlama is closed"):
            call(model)
    for stream in streams:
        with pytest.raises(RuntimeError, match="this LongLlama is closed"):
            next(stream)
    model.close()
    assert "LongLlama" in repr(model)
    again = pickle.loads(pickle.dumps(model))
    assert again.n_ctx() == n_ctx
    again.close()
    del model  # its destructor closes once more


def test_an_open_stream_of_a_closed_model(demo_model: str) -> None:
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    model = LongLlama(demo_model, n_ctx=64, draft_model=LlamaPromptLookupDecoding(num_pred_tokens=6))
    prompt = model.tokenize(b"one two three one two three one two three one two")
    stream = model.generate(prompt, temp=0.0)
    next(stream)
    model.close()
    with pytest.raises(RuntimeError, match="this LongLlama is closed"):
        next(stream)


def test_texts_that_are_too_long_to_embed(demo_model: str) -> None:
    model = LongLlama(demo_model, n_ctx=64, n_batch=32, embedding=True)
    fits, long = "the sea", "the sea and the crew " * 9
    n = len(model.tokenize(long.encode()))
    assert n > 32
    for given in (long, [fits, long]):
        message = f"a text has {n} tokens, and 32 can be embedded at once: load the model with n_ctx, n_batch"
        with pytest.raises(ValueError, match=message):
            model.create_embedding(given)
        with pytest.raises(ValueError, match=message):
            model.embed(given)
    cut, count = model.embed(long, truncate=True, return_count=True)
    assert count == len(cut) == 32
    assert model.create_embedding([fits, fits])["usage"]["prompt_tokens"] == 2 * len(model.embed(fits))
    model.close()
