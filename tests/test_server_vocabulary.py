"""What is read from a vocabulary: the fewest tokens that a text can become."""

from __future__ import annotations

import pytest
from running_server import running

from pyllama_long import filler
from pyllama_long.engine import EngineConfig
from pyllama_long.model import Model


def test_text_over_what_can_fit_is_refused_before_it_is_tokenized(
    demo_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    long, most = "word and " * 20_000, 0
    tokenize = Model.tokenize

    def counting(model: Model, text: bytes, add_bos: bool, special: bool) -> list[int]:
        nonlocal most
        most = max(most, len(text))
        return tokenize(model, text, add_bos, special)

    monkeypatch.setattr(Model, "tokenize", counting)
    config = EngineConfig(demo_model, n_ctx=512, n_threads=1, embedding=True)
    with running(config) as server, server.client() as client:
        messages = [{"role": "user", "content": long}]
        for path, body in (
            ("/completion", {"prompt": long}),
            ("/completion", {"prompt": [1, long]}),
            ("/completion", {"prompt": [long, "Hi"]}),
            ("/v1/completions", {"prompt": long}),
            ("/v1/embeddings", {"input": ["Hi", long]}),
            ("/v1/chat/completions", {"messages": messages}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "word and " * 900}] * 30}),
            ("/v1/messages", {"messages": messages, "max_tokens": 9}),
            ("/v1/responses", {"input": long}),
        ):
            found = client.post(path, json={"model": "demo"} | body)
            assert found.status_code == 400 and "maximum context length is 512" in found.text, found.text
        assert most < len(long) / 2
        assert len(client.post("/tokenize", json={"content": long}).json()["tokens"]) > 20_000
        least = server.app.state.state.loaded.least
        texts = [
            " " * 999,
            "A" * 999,
            "\n" * 999,
            "é漢🙂" * 99,
            "<|user|>" * 99,
            "".join(map(chr, range(3000))),
        ]
        for text in [*texts, *filler.sentences()[:50]]:
            n = len(server.engine.tokenize(text.encode(), False, True))
            assert 0 <= least.tokens(text) <= n
        assert least.tokens(long) > 512
