"""Answers as they stream: reasoning, then text and calls."""

from __future__ import annotations

import pytest
from reading_cases import read

from pyllama_long.server.answer import AnswerParser


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_reasoning_is_split_off(size: int) -> None:
    text = "<think>\nSo 1 < 2, and </thin is not the end.</think>\n\nIt is 2."
    said, thought, _ = read(AnswerParser(thinks=True), text, size)
    assert (said, thought) == ("It is 2.", "\nSo 1 < 2, and </thin is not the end.")
    said, thought, _ = read(AnswerParser(thinks=True, thinking=True), text.removeprefix("<think>"), size)
    assert (said, thought) == ("It is 2.", "\nSo 1 < 2, and </thin is not the end.")


def test_reasoning_that_never_ends_is_reasoning() -> None:
    assert read(AnswerParser(thinks=True), "<think>on and on", 2) == ("", "on and on", [])


def test_without_reasoning_the_text_is_whole() -> None:
    assert read(AnswerParser(thinks=True), "<thanks> all", 1) == ("<thanks> all", "", [])
    assert read(AnswerParser(), "<think>x</think>", 1) == ("<think>x</think>", "", [])
