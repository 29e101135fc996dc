"""The text in the arguments of a tool that takes one text."""

from __future__ import annotations

import pytest

from pyllama_long.server import custom_tools


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": "a\\"b"}', 'a"b'),
        ('{"input": "a\nb"}', "a\nb"),
        ('{"input": "cut \\"he', 'cut "he'),
        ('{"input": "cut\\', "cut"),
        ('{"input": "cut\\u26', "cut"),
        ('{"input": "back\\\\u26', "back\\u26"),
        ('{"input": "\\ud83d', ""),
        ('{"input": "' + "\\" * 12 + "u26", "\\" * 6 + "u26"),
        ('{"input": "' + "\\" * 13 + "u26", "\\" * 6),
        ('{"input": "' + "\\" * 200_000, "\\" * 100_000),
        ('{"input": "\\x', '{"input": "\\x'),
        ('{"input": ', '{"input": '),
        ('{"text": "one"}', "one"),
        ('{"a": "one", "b": "two"}', '{"a": "one", "b": "two"}'),
        ('"plain"', "plain"),
        ("plain", "plain"),
        ("[1]", "[1]"),
    ],
)
def test_the_text_of_arguments(arguments: str, text: str) -> None:
    assert custom_tools.input_of(arguments) == text
