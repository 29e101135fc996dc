"""Finding the tail of prompts and chats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pyllama_long import LongLlama, _native, last_turn


@pytest.fixture(scope="module")
def skim(demo_model: str) -> Iterator[LongLlama]:
    model = LongLlama(demo_model, n_ctx=2048, attention="skim")
    yield model
    model.close()


def after(llm: LongLlama, tokens: list[int], start: int) -> str:
    return llm._model.detokenize(tokens[start:], special=True).decode()


LONG = "The sea was calm and the men were glad of it. " * 60


def prompt(llm: LongLlama, text: str) -> list[int]:
    return llm.tokenize(text.encode(), special=True)


def test_default_is_the_last_256_tokens(skim: LongLlama) -> None:
    tokens = prompt(skim, LONG)
    assert last_turn.of_prompt(skim._model, tokens, LONG, None) == len(tokens) - 256


def test_default_is_the_text_after_the_last_blank_line(skim: LongLlama) -> None:
    text = LONG + "\n\nFirst.\n\nWhat is the code?\n\n"
    tokens = prompt(skim, text)
    start = last_turn.of_prompt(skim._model, tokens, text, None)
    assert after(skim, tokens, start).strip() == "What is the code?"


def test_given_tail(skim: LongLlama) -> None:
    text = LONG + "Question: who?"
    tokens = prompt(skim, text)
    for given in (text, None):
        start = last_turn.of_prompt(skim._model, tokens, given, "Question: who?")
        assert after(skim, tokens, start).lstrip() == "Question: who?"
    with pytest.raises(ValueError, match="tail must be the end"):
        last_turn.of_prompt(skim._model, tokens, text, "who")
    with pytest.raises(ValueError, match="does not contain"):
        last_turn.of_prompt(skim._model, tokens, None, "nowhere")


def test_chat_tail_is_the_last_user_message(skim: LongLlama) -> None:
    question = "Now tell me, where did the captain hide the second key? " * 6
    text = (
        f"<|im_start|>user\n{LONG}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    tokens = prompt(skim, text)
    messages = [{"role": "user", "content": LONG}, {"role": "user", "content": question}]
    start = last_turn.of_chat(skim._model, tokens, messages, None)
    assert after(skim, tokens, start).startswith("Now tell me")
    parts: list[Any] = [{"role": "user", "content": [{"type": "text", "text": question}]}]
    assert last_turn.of_chat(skim._model, tokens, parts, None) == start


def test_chat_tail_of_a_message_that_carries_a_document(skim: LongLlama) -> None:
    text = f"<|im_start|>user\n{LONG * 3}\n\nWho was glad?<|im_end|>\n<|im_start|>assistant\n"
    tokens = prompt(skim, text)
    start = last_turn.of_chat(
        skim._model, tokens, [{"role": "user", "content": f"{LONG * 3}\n\nWho was glad?"}], None
    )
    assert start == len(tokens) - last_turn.MIN_TOKENS


def test_completions_place_the_tail(skim: LongLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[int | None] = []
    monkeypatch.setattr(_native, "set_tail", lambda ctx, seq, pos: placed.append(pos))
    skim(LONG + "\n\nWho?", max_tokens=1, temperature=0)
    skim(LONG + "Who?", tail="Who?", max_tokens=1, temperature=0)
    skim.create_chat_completion([{"role": "user", "content": LONG}], max_tokens=1, temperature=0)
    skim.create_chat_completion(
        [{"role": "user", "content": LONG + "And who?"}], tail="And who?", max_tokens=1
    )
    assert len(placed) == 4
    assert all(isinstance(pos, int) and pos > 0 for pos in placed[:2] + placed[3:])
    skim.reset()
    skim.eval(prompt(skim, "Another text"))
    assert placed[4:] == [None]
    skim.mark_tail()
    skim.eval(prompt(skim, "and its end"))
    assert placed[5] == skim.n_tokens - len(prompt(skim, "and its end"))


def test_the_tail_reads_far(skim: LongLlama) -> None:
    skim.reset()
    skim.attention_stats(reset=True)
    skim(LONG + "\n\nWho?", max_tokens=1, temperature=0)
    share = skim.attention_stats()["share_of_keys"]
    assert 0 < share < 1
