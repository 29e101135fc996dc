"""Tool calls as models write them, reasoning, and other text, in pieces of every size."""

from __future__ import annotations

import json
from typing import Any

import pytest
from reading_cases import looks

from pyllama_long.server import call_formats, calls, forced, grammar
from pyllama_long.server.answer import AnswerParser
from pyllama_long.server.pieces import CallPiece, TextPiece
from pyllama_long.server.schemas.conversation import Tool

FENCE = "```"
ROME = [("weather", {"city": "Rome"})]
BOTH = [*ROME, ("add", {"a": 1, "b": [2, {"c": "}"}]})]
ANSWERS: dict[str, tuple[calls.Format, str, str, list[tuple[str, Any]]]] = {
    "hermes": (
        calls.Hermes(),
        'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>\n'
        '<tool_call>{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}"}]}}</tool_call>',
        "I look.",
        BOTH,
    ),
    "xml": (
        calls.Xml(),
        "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>\n"
        '<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n[2, {"c": "}"}]\n'
        "</parameter>\n</function>\n</tool_call>",
        "",
        BOTH,
    ),
    "mistral": (
        calls.Mistral(False),
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}}, '
        '{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}"}]}}]',
        "",
        BOTH,
    ),
    "mistral with names": (
        calls.Mistral(True),
        '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}[TOOL_CALLS]add[ARGS]{"a": 1, "b": [2, {"c": "}"}]}',
        "",
        BOTH,
    ),
    "llama": (calls.Llama3(), '{"name": "weather", "parameters": {"city": "Rome"}}', "", ROME),
    "llama with a tag": (
        calls.Llama3(),
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Rome"}}',
        "",
        ROME,
    ),
    "deepseek": (
        calls.DeepSeek(),
        f"Well.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n{FENCE}json\n"
        f'{{"city": "Rome"}}\n{FENCE}<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n'
        f'{FENCE}json\n{{"a": 1, "b": [2, {{"c": "}}"}}]}}\n{FENCE}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "Well.",
        BOTH,
    ),
}


def read(parser: AnswerParser, text: str, size: int) -> tuple[str, str, list[tuple[str, Any]]]:
    """What a parser reads from a text that arrives in pieces of a size: text, reasoning, calls."""
    pieces = [p for i in range(0, len(text), size) for p in parser.feed(text[i : i + size])] + parser.finish()
    said = "".join(p.text for p in pieces if isinstance(p, TextPiece) and not p.reasoning)
    thought = "".join(p.text for p in pieces if isinstance(p, TextPiece) and p.reasoning)
    called = [p for p in pieces if isinstance(p, CallPiece)]
    assert [p.index for p in called] == list(range(len(called)))
    return said, thought, [(p.name, json.loads(p.arguments)) for p in called]


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


@pytest.mark.parametrize("name", ANSWERS)
def test_the_grammar_of_a_format_takes_what_its_parser_reads(name: str, demo_model: str) -> None:
    """llama.cpp reads the grammar, and a sampler held to it writes a call that the parser finds."""
    from pyllama_long.engine import Engine, EngineConfig, Request, Sampling, Text

    form = ANSWERS[name][0]
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]}
    tool = Tool.model_validate({"type": "function", "function": {"name": "weather", "parameters": schema}})
    rules = grammar.Rules()
    text = rules.build(forced.rule(rules, form, [tool], parallel=False))
    with Engine(EngineConfig(demo_model, n_ctx=512, n_threads=1)) as engine:
        request = Request(
            engine.tokenize(b"Weather?"), max_tokens=200, sampling=Sampling(temperature=0, grammar=text)
        )
        said = "".join(event.text for event in engine.submit(request) if isinstance(event, Text))
    assert read(AnswerParser(form, ["weather"]), said, 5)[2] == ROME, said


def test_definitions_of_two_tools_do_not_mix() -> None:
    rules = grammar.Rules()
    for value in ("one", "two"):
        rules.schema({"$ref": "#/$defs/Kind", "$defs": {"Kind": {"const": value}}}, "tools")
    text = rules.build('"x"').text
    assert '"const": "one"' in text and '"const": "two"' in text


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


WRITE = {
    "write": {
        "$defs": {"Mode": {"enum": ["on", "7"]}},
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "other": {"type": "string"},
            "count": {"type": "integer"},
            "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "either": {"type": ["integer", "string"]},
            "mode": {"$ref": "#/$defs/Mode"},
            "on": {"type": "boolean"},
            "list": {"type": "array"},
        },
    }
}


def xml(**values: str) -> str:
    told = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function=write>\n{told}</function>\n</tool_call>"


def glm(**values: str) -> str:
    told = "".join(
        f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in values.items()
    )
    return f"<tool_call>write\n{told}</tool_call>"


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
