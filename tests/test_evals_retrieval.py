"""Which answers contain the value in question."""

from __future__ import annotations

import pytest
from eval_tasks import FORMS

from pyllama_long.evals.documents import Needle
from pyllama_long.evals.retrieval import is_right


@pytest.mark.parametrize(
    ("form", "key", "value", "answer", "right"),
    [
        ("code", "apple", "01234", " The code for apple is 01234.", True),
        ("code", "apple", "01234", "It is 1234.", False),
        ("code", "apple", "01234", "01234 or 5", False),
        ("code", "apple", "01234", "0 1 2 3 4", False),
        ("code", "apple", "01234", "", False),
        ("code", "a-7", "01234", "The code for A-7 is 01234.", True),
        ("code", "7", "77777", "77777", False),
        ("pass-word", "apple", "river", "The password of the apple is River.", True),
        ("pass-word", "apple", "river", "The password of the apple is rivers.", False),
        ("pass-word", "river-stone", "river", "The password of the river-stone is lamp.", False),
        ("pass-word", "apple", "river", "It is river-bed.", False),
    ],
)
def test_which_answers_are_right(form: str, key: str, value: str, answer: str, right: bool) -> None:
    assert is_right(answer, Needle(FORMS[form], key, value, 0.5)) is right
