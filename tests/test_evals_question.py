"""Which answers are right, and how much of others is."""

from __future__ import annotations

import pytest

from pyllama_long.evals.question import Question, is_right


@pytest.mark.parametrize(
    ("key", "value", "answer", "right"),
    [
        ("apple", "01234", " The code for apple is 01234.", True),
        ("apple", "01234", "It is 1234.", False),
        ("apple", "01234", "01234 or 5", False),
        ("apple", "01234", "0 1 2 3 4", False),
        ("apple", "01234", "", False),
        ("a-7", "01234", "The code for A-7 is 01234.", True),
        ("7", "77777", "77777", False),
        ("apple", "river", "The password of the apple is River.", True),
        ("apple", "river", "The password of the apple is rivers.", False),
        ("river-stone", "river", "The password of the river-stone is lamp.", False),
        ("apple", "river", "It is river-bed.", False),
    ],
)
def test_which_answers_are_right(key: str, value: str, answer: str, right: bool) -> None:
    assert is_right(answer, key, value) is right
    assert Question("?", (value,), "It is ", given=False, key=key).score(answer) == right


@pytest.mark.parametrize(
    ("values", "answer", "score"),
    [
        (("9683320",), " 9683320.", 1.0),
        (("9683320",), " 9683320, 5550123", 1.0),
        (("9683320",), " 9683321.", 0.0),
        (("9683320",), " 19683320 and 96833201", 0.0),
        (("1111111", "2222222", "3333333", "4444444"), "2222222 and 4444444 and 5555555", 0.5),
        (("ABCDE", "FGHIJ"), "abcde", 0.5),
        (("river", "river-stone"), "river-stone", 0.5),
        (("f4e7efa7-0f70-4cde-a138-2b0d847f3887",), "f4e7efa7-0f70-4cde-a138-2b0d847f3887!", 1.0),
        (("f4e7efa7-0f70-4cde-a138-2b0d847f3887",), "f4e7efa7-0f70-4cde-a138-2b0d847f3888", 0.0),
        (("river",), "", 0.0),
    ],
)
def test_the_share_of_the_values_that_an_answer_has(
    values: tuple[str, ...], answer: str, score: float
) -> None:
    assert Question("?", values, "They are ").score(answer) == score
