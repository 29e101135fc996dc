"""Calls, read out of answers in every format and in any pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from reading_cases import looks, read
from written_calls import ANSWERS, ROME, WRITE, glm, xml

from pyllama_long.server import call_formats, calls
from pyllama_long.server.answer import AnswerParser
from pyllama_long.server.pieces import CallPiece, TextPiece


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize("name", ANSWERS)
def test_calls_are_found(name: str, size: int) -> None:
    form, text, said, called = ANSWERS[name]
    assert read(AnswerParser(form, ["weather", "add"]), text, size) == (said, "", called)


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(
    "text",
    [
        "a < b and <tool_call is no mark",
        "<tool_call>not JSON</tool_call> after",
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"city": ',
        "ends with <tool_c",
        '{"name": "weather"} in words',
    ],
)
def test_what_is_no_call_stays_text(text: str, size: int) -> None:
    assert read(AnswerParser(calls.Hermes(), ["weather"]), text, size) == (text, "", [])


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_an_object_that_is_no_call_stays_text(size: int) -> None:
    for text in ('{"colour": "red"}', '{"name": 5}', "{not JSON}", '{"name": "weather"'):
        assert read(AnswerParser(calls.Llama3(), ["weather"]), text, size) == (text, "", [])


def test_a_call_after_reasoning() -> None:
    text = '<think>Call?</think>\n<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
    assert read(AnswerParser(calls.Hermes(), ["weather"], thinks=True), text, 3) == ("", "Call?", ROME)


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (None, calls.Hermes),
        ("{{ messages }}", calls.Hermes),
        ("<tool_call> {{ tools }}", calls.Hermes),
        ("<tool_call><function=", calls.Xml),
        ("[TOOL_CALLS]", calls.Mistral),
        ("<|python_tag|>", calls.Llama3),
        ("<｜tool▁calls▁begin｜>", calls.DeepSeek),
    ],
)
def test_the_format_is_that_of_the_template(template: str | None, form: type[calls.Format]) -> None:
    assert type(call_formats.format_of(template)) is form


def test_a_line_break_within_an_argument_is_read() -> None:
    said = '<tool_call>\n{"name": "weather", "arguments": {"city": "a\nb"}}\n</tool_call>'
    found = read(AnswerParser(calls.Hermes(), ["weather"]), said, 5)[2]
    assert found == [("weather", {"city": "a\nb"})]


@pytest.mark.parametrize("form", [calls.Hermes(), calls.Python(), calls.Mistral(True)])
def test_half_of_a_surrogate_pair_in_an_argument_stays_json(form: calls.Format) -> None:
    said = {
        calls.Hermes: '<tool_call>{"name": "weather", "arguments": {"city": "\\ud83d a \\ud83d\\ude00"}}</tool_call>',
        calls.Python: '<|tool_call_start|>[weather(city={"a": "\\ud83d a \\ud83d\\ude00"})]<|tool_call_end|>',
        calls.Mistral: '[TOOL_CALLS]weather[ARGS]{"city": "\\ud83d a \\ud83d\\ude00"}',
    }[type(form)]
    parser = AnswerParser(form, ["weather"])
    (call,) = (one for one in [*parser.feed(said), *parser.finish()] if isinstance(one, CallPiece))
    assert "a 😀" in call.arguments.encode().decode() and json.loads(call.arguments)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have_are_no_argument(number: str) -> None:
    said = f'<tool_call>{{"name": "add", "arguments": {{"a": {number}}}}}</tool_call>'
    parser = AnswerParser(calls.Hermes(), ["add"])
    found = [*parser.feed(said), *parser.finish()]
    assert "".join(one.text for one in found if isinstance(one, TextPiece)) == said
    said = f"<tool_call><function=add><parameter=a>{number}</parameter></function></tool_call>"
    parser = AnswerParser(calls.Xml(), ["add"])
    (call,) = [*parser.feed(said), *parser.finish()]
    assert isinstance(call, CallPiece) and json.loads(call.arguments) == {"a": number}


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("written", [xml, glm])
@pytest.mark.parametrize(
    "value",
    [
        "90210",
        "true",
        "null",
        '{"a": 1}',
        "",
        "  two  spaces ",
        "a\n\nb\n",
        "a < b > c & d",
        "<parameter=x>\n1\n</parameter>",
        "</parameter>",
        "x</function>y",
        "</function>\n</tool",
        "a</parameter>\n<parameter=unknown>\nb",
        "</arg_value>",
        "<tool_call>",
        "[TOOL_CALLS]",
        "</think>",
    ],
)
def test_a_text_is_what_the_model_wrote(value: str, written: Any, size: int) -> None:
    parser = AnswerParser(calls.Xml(), ["write"], schemas=WRITE)
    assert read(parser, "So:\n" + written(text=value, other="1"), size) == (
        "So:",
        "",
        [("write", {"text": value, "other": "1"})],
    )


LONG = "x < y and \\\"{'z'}\\\" [1] </par " * 2000


ENDLESS = {
    "hermes": (
        calls.Hermes(),
        '<tool_call>{"name": "write", "arguments": {"text": "',
        LONG,
        '"}}</tool_call>',
    ),
    "xml": (calls.Xml(), "<tool_call>\n<function=write>\n<parameter=text>\n", LONG, xml()[-24:]),
    "xml ends": (calls.Xml(), "<tool_call>\n<function=write>\n<parameter=text>\n", "</parameter>" * 3000, ""),
    "glm": (calls.Hermes(), "<tool_call>write\n<arg_key>text</arg_key><arg_value>", LONG, ""),
    "mistral": (calls.Mistral(True), '[TOOL_CALLS]write[ARGS]{"text": "', LONG, '"}'),
    "llama": (calls.Llama3(), '{"name": "write", "parameters": {"text": "', LONG, '"}}'),
    "deepseek": (calls.DeepSeek(), '<｜tool▁call▁begin｜>write<｜tool▁sep｜>{"text": "', LONG, '"}'),
    "kimi": (
        calls.Hermes(),
        "<|tool_call_begin|>functions.write:0<|tool_call_argument_begin|>",
        '{"a":' * 9000,
        "",
    ),
    "text": (calls.Hermes(), "", LONG, ""),
    "space": (calls.Hermes(), "", " \n" * 20_000, ""),
    "marks": (calls.Hermes(), "", "<tool_call>{" * 4000, ""),
    "brackets": (calls.Llama3(), "", "{" * 40_000, ""),
    "reasoning": (calls.Hermes(), "<think>", "</thin" * 8000, "</think>"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_each_character_is_looked_at_a_few_times(name: str) -> None:
    """However long an answer is, in pieces of three characters."""
    form, begin, middle, end = ENDLESS[name]
    looked = []
    for n in (1, 2):
        parser = AnswerParser(form, ["write"], thinks=True, schemas=WRITE)
        looked.append(looks(parser, begin + middle * n + end))
    assert max(looked) < 100 and looked[1] < 1.2 * looked[0] + 1


@pytest.mark.parametrize("name", ANSWERS)
def test_a_call_that_is_cut_is_no_markup(name: str) -> None:
    """Cut at every place: the text before it, whole calls, and one whose arguments end where the answer does."""
    form, text, said, called = ANSWERS[name]
    for n in range(len(text)):
        parser = AnswerParser(form, ["weather", "add"], forced=True)
        pieces = parser.feed(text[:n]) + parser.finish(cut=True)
        found = [p for p in pieces if isinstance(p, CallPiece)]
        spoken = "".join(p.text for p in pieces if isinstance(p, TextPiece))
        assert said.startswith(spoken) or (text[:n].startswith(spoken) and "weather" not in spoken)
        for i, call in enumerate(found):
            assert call.name == called[i][0]
            if i < len(found) - 1:
                assert json.loads(call.arguments) == called[i][1]


def test_what_is_cut_and_may_be_no_call_is_text() -> None:
    for text in ('{"colour": "re', '{"name": "some', '{"name": "wea\\ether", "parameters": {"ci'):
        parser = AnswerParser(calls.Llama3(), ["weather"])
        pieces = parser.feed(text) + parser.finish(cut=True)
        assert [p.text for p in pieces if isinstance(p, TextPiece)] == [text]
    parser = AnswerParser(calls.Hermes(), ["weather"])
    pieces = parser.feed('<tool_call>{"name": "weather", "arguments": {"city": "Ro') + parser.finish(cut=True)
    assert [(p.name, p.arguments) for p in pieces if isinstance(p, CallPiece)] == [
        ("weather", '{"city": "Ro')
    ]


@pytest.mark.parametrize("size", [1, 6, 1000])
@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>weather<arg_key>city</arg_key><arg_value>Rome</arg_value></tool_call>",
        "<seed:tool_call>\n<function=weather>\n<parameter=city>Rome</parameter>\n</function>\n</seed:tool_call>",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
        '{"city": "Rome"}<|tool_call_end|><|tool_calls_section_end|>',
        '<|tool_call_begin|>functions.weather<|tool_call_argument_begin|>{"city": "Rome"}<|tool_call_end|>',
        '<function=weather>{"city": "Rome"}</function>',
        '<tool_call>[{"name": "weather", "arguments": {"city": "Rome"}}]</tool_call>',
        '[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{"city": "Rome"}',
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Rome"}<｜tool▁call▁end｜>',
    ],
)
def test_other_formats_of_models(text: str, size: int) -> None:
    assert read(AnswerParser(calls.Hermes(), ["weather"]), text, size) == ("", "", ROME)


@pytest.mark.parametrize("size", [1, 6, 1000])
def test_text_behind_a_call_keeps_its_line_breaks(size: int) -> None:
    text = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>\n\na\nb\n\nc'
    assert read(AnswerParser(calls.Hermes(), ["weather"]), text, size) == ("a\nb\n\nc", "", ROME)


def test_calls_side_by_side_that_end_with_the_answer() -> None:
    """Calls are forced, and the last bytes arrive with the end."""
    for form, text, _, called in ANSWERS.values():
        assert read(AnswerParser(form, ["weather", "add"], forced=True), text, 1000)[2] == called


def test_whole_calls_of_a_list_are_kept_when_the_next_is_cut() -> None:
    form, text, _, called = ANSWERS["mistral"]
    parser = AnswerParser(form, ["weather", "add"])
    pieces = parser.feed(text[: text.index('"b"')]) + parser.finish(cut=True)
    found = [(p.name, p.arguments) for p in pieces if isinstance(p, CallPiece)]
    assert [found[0]] == [(called[0][0], json.dumps(called[0][1]))] and found[1][0] == "add"
    assert found[1][1].startswith('{"a": 1')
