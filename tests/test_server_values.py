"""Values of arguments without quotes, read by their schema."""

from __future__ import annotations

from typing import Any

import pytest
from reading_cases import read
from written_calls import WRITE, glm, xml

from pyllama_long.server import calls
from pyllama_long.server.answer import AnswerParser


@pytest.mark.parametrize("written", [xml, glm])
@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("count", "5", 5),
        ("count", "5.0", 5),
        ("count", "many", "many"),
        ("maybe", "null", None),
        ("maybe", "3", 3),
        ("either", "3", 3),
        ("either", "x", "x"),
        ("mode", "7", "7"),
        ("on", "True", True),
        ("on", "false", False),
        ("list", '[1, "a"]', [1, "a"]),
        ("unknown", "1", 1),
        ("unknown", "one", "one"),
    ],
)
def test_the_schema_decides_what_a_value_is(key: str, text: str, value: Any, written: Any) -> None:
    parser = AnswerParser(calls.Xml(), ["write"], schemas=WRITE)
    assert read(parser, written(**{key: text}), 5)[2] == [("write", {key: value})]
