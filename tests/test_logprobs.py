"""Log-probabilities are what the logits say."""

from __future__ import annotations

import json

import numpy as np
from llamas import PROMPT, plain

from pyllama_long import LongLlama
from pyllama_long._native import llama_cpp


def test_logprobs_are_what_the_logits_say(llm: LongLlama, demo_model: str) -> None:
    found = llm(PROMPT, max_tokens=1, temperature=0, logprobs=1, echo=True)["choices"][0]
    block = found["logprobs"]
    tokens = [*llm.tokenize(PROMPT.encode()), int(np.argmax(llm.scores[-1]))]
    everything = LongLlama(demo_model, n_ctx=512, n_batch=64, logits_all=True, precision="f32")
    everything.eval(tokens[:-1])
    rows = llama_cpp.Llama.logits_to_logprobs(everything._scores)
    expected = [float(row[token]) for row, token in zip(rows, tokens[1:], strict=True)]
    everything.close()
    assert block["token_logprobs"][0] is None
    assert np.allclose(block["token_logprobs"][1:], expected[1:], atol=1e-4)
    assert "".join(block["tokens"]) == found["text"]
    assert [found["text"][i] for i in block["text_offset"]] == [t[0] for t in block["tokens"]]
    json.dumps(found)


def test_logprobs_after_a_cached_prompt(llm: LongLlama) -> None:
    runs = [plain(llm(PROMPT, max_tokens=3, temperature=0, logprobs=1, echo=True)) for _ in range(2)]
    assert runs[0] == runs[1]
