"""Tokens of prompts from those of their token_prefixes: never other ones than of the whole text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllama_long.server import token_prefixes
from pyllama_long.server.token_prefixes import TokenPrefixes

VOCABULARIES = sorted(Path(__file__).parents[1].glob("vendor/llama.cpp/tree/models/ggml-vocab-*.gguf"))
PIECES = ("Hello, ", "wörld", "  two  spaces ", "\n", "\n\n1234", "日本", "end.", " ")


@pytest.fixture(scope="module", params=VOCABULARIES, ids=lambda path: path.stem)
def vocabulary(request: pytest.FixtureRequest) -> Iterator[llama_cpp.Llama]:
    model = llama_cpp.Llama(str(request.param), vocab_only=True, verbose=False)
    yield model
    model.close()


def control_tokens(model: llama_cpp.Llama, and_not: int = 0) -> dict[int, str]:
    vocab, found = model._model.vocab, {}
    for i in range(model.n_vocab()):
        attributes = llama_cpp.llama_vocab_get_attr(vocab, i)
        if attributes & llama_cpp.LLAMA_TOKEN_ATTR_CONTROL and not attributes & and_not:
            found[i] = llama_cpp.llama_vocab_get_text(vocab, i).decode()
    return found


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_conversation_that_grows(vocabulary: llama_cpp.Llama, data: st.DataObject) -> None:
    names = control_tokens(vocabulary)
    apart = control_tokens(vocabulary, llama_cpp.LLAMA_TOKEN_ATTR_RSTRIP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_prefixes, "_MIN_CHARACTERS", 1)
        known, text = TokenPrefixes(vocabulary.tokenize, apart), ""
        for _ in range(data.draw(st.integers(1, 5))):
            turn = data.draw(st.lists(st.sampled_from([*PIECES, *list(names.values())[:6]]), max_size=8))
            text += "".join(turn)
            salt = data.draw(st.sampled_from(["", "key"]))
            expected = vocabulary.tokenize(text.encode(), True, True)
            assert known.tokenize(text, True, salt) == expected
            assert known.tokenize(text, True, salt) == expected


def test_only_what_is_new_is_tokenized() -> None:
    calls: list[bytes] = []

    def encode(text: bytes, add_bos: bool, special: bool) -> list[int]:
        calls.append(text)
        return [256 if c == "|" else ord(c) for c in text.decode()]

    known, text = TokenPrefixes(encode, {256: "|"}), "x" * 5000 + "|tail"
    for more in ("", "abc|", "de"):
        text += more
        assert len(known.tokenize(text, True, "one")) == len(text)
    assert [len(call) for call in calls] == [5005, 4 + 4, 2]
    known.tokenize(text, True, "two")
    assert len(calls[-1]) == len(text)


def test_what_is_kept_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_prefixes, "_MAX_CHARACTERS", 20_000)
    known = TokenPrefixes(lambda text, add_bos, special: [256 if c == 124 else c for c in text], {256: "|"})
    for i in range(9):
        known.tokenize(str(i) * 6000 + "|", True)
    assert known._characters <= 20_000 and len(known._known) == 3
