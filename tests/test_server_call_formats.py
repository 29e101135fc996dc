"""Formats of calls in all of upstream's templates: what a template writes is read again, at every split and cut, and
is allowed where a call is forced."""

from __future__ import annotations

import json
import re
from typing import Any

import fuzz_answers
import pytest
from fuzz_answers import KINDS, KNOWING, MESSAGES, TOOLS, Calls, form_of, parser, written
from reading_cases import cut_everywhere, is_taken, looks, read, split_everywhere

from pyllama_long.engine import Engine
from pyllama_long.server import calls, forced, grammar

FORMS = {  # by parts of the templates' names
    "Apertus": "<|tools_prefix|>",
    "Apriel": "<tool_calls>",
    "Bielik": "<tool_call>",
    "Seed": "<seed:tool_call>",
    "Cohere2MoE": "<|START_ACTION|>",
    "r7b": "<|START_ACTION|>",
    "r-plus": "Action:\n```json",
    "GLM": "<tool_call>",
    "GigaChat3-": "function call<|role_sep|>",
    "GigaChat3.1": "<|function_call|>",
    "Kimi-K2": "<|tool_calls_section_begin|>",
    "Kimi-K3": "<|open|>tools<|sep|>",
    "LFM2": "<|tool_call_start|>",
    "MiMo": "<tool_call>",
    "MiniMax-M1": "<tool_calls>",
    "MiniMax-M2": "<minimax:tool_call>",
    "MiniMax-M3": "]<]minimax[>[<tool_call>",
    "muse": "<atem:function_calls>",
    "Mistral-": "[TOOL_CALLS]",
    "Ministral-": "[TOOL_CALLS]",
    "Devstral": "[TOOL_CALLS]",
    "Nemotron-3": "<tool_call>",
    "Nemotron-Nano-v2": "<TOOLCALL>",
    "Hermes": "<tool_call>",
    "Qwen-": "<tool_call>",
    "Qwen3": "<tool_call>",
    "Reka": "<tool_call>",
    "Spark": "<tool_call>",
    "StepFun": "<tool_call>",
    "V3.2": "<｜DSML｜function_calls>",
    "V4": "<｜DSML｜tool_calls>",
    "firefunction": "functools",
    "gemma-4": "<|tool_call>call:",
    "granite-3.3": "<|tool_call|>",
    "granite-4": "<tool_call>",
    "ling": "<tool_call>",
    "llama-cpp-deepseek": "<｜tool▁calls▁begin｜>",
    "v3.1": "<function=",
    "v3.2": ">>>",
    "Llama-3.": "<|python_tag|>",
    "MiniCPM5": '<function name="',
    "Laguna": "<tool_call>",
    "Hy3": "<tool_calls:opensource>",
    "Solar": "<|tool_calls|>",
}
SINGLE = ("GigaChat", "Llama-3.", "gpt-oss")  # one call in a message


TWO: Calls = [
    ("weather", {"city": "Rome"}),
    (
        "add",
        {
            "a": 1,
            "b": [2, {"c": "}"}],
            "object": {"x": 1.5, "y": "z"},
            "on": True,
            "other": "a\nb < c",
            "text": "90210",
        },
    ),
]


def test_each_template_has_its_format() -> None:
    for name in KNOWING:
        marks = [mark for part, mark in FORMS.items() if part in name]
        form = form_of(name)
        assert form.marks[:1] == tuple(marks[:1]), name


@pytest.mark.parametrize("name", KNOWING)
def test_what_a_template_writes_is_read_again(name: str) -> None:
    for made in [TWO[:1], TWO[1:]] if any(one in name for one in SINGLE) else [TWO]:
        text = written(name, made)
        for size in (1, 7, 10_000):
            assert read(parser(name), text, size)[1:] == ("", made), text


HOSTILE = [
    *(
        "</parameter>",
        "</param>",
        "</arg_value>",
        "</tool_call>",
        "<tool_call>",
        '"}}]',
        "}<tool_call|>",
        "it's, x)",
        ")]",
    ),
    *(
        "<|tool_call_end|>",
        "</invoke>\n<invoke name=",
        '"><|END_ACTION|>',
        "[TOOL_CALLS]",
        ">>>all\n",
        "\\n \\",
        "  two ",
    ),
]


@pytest.mark.parametrize("name", KINDS.values())
def test_values_may_hold_marks(name: str) -> None:
    for value in HOSTILE:
        if "LFM2.5-8B" in name and ("'" in value or "\\" in value):
            continue  # its template writes texts unchanged between quotes
        made: Calls = [("add", {"other": value, "text": "1"})]
        assert read(parser(name), written(name, made), 5)[2] == made, value


@pytest.mark.parametrize("name", KINDS.values())
def test_any_split_and_any_cut(name: str) -> None:
    made: Calls = [("add", {"b": ["x"], "text": "90210"})]
    own = written(name, made)
    form = form_of(name)
    text = own if form.starts or isinstance(form, MESSAGES) else f"I add.{own}"
    split_everywhere(lambda: parser(name), text)
    end = text.rindex("90210") + len("90210")
    for found in cut_everywhere(lambda: parser(name), text[:end]):
        beyond = found.said.removeprefix(
            "I add."
        ).strip()  # one character may be text, as a word may that is a mark
        assert (
            "I add.".startswith(found.said)
            or len(beyond) <= 1
            or beyond.replace(" ", "").isalpha()
            or form.starts
        ), found
        assert not found.thought
        for call in found.called:
            assert call.name == "add" and is_begun(call.arguments, made[0][1]), call


def is_begun(arguments: str, whole: dict[str, Any]) -> bool:
    """Whether arguments are the beginning of an object of JSON with these values."""
    for end in ("", "}", '"}', "]}", '"]}', "null}", '": 0}', ": 0}"):
        try:
            found = json.loads(arguments + end)
        except ValueError:
            continue
        return end.endswith(" 0}") or found.keys() <= whole.keys()
    return arguments in ("", "{") or arguments.rstrip().endswith((",", ":", "{", "["))


@pytest.mark.parametrize("name", KINDS.values())
def test_a_call_is_forced_as_the_template_writes_it(name: str, engine: Engine) -> None:
    form = form_of(name)
    made: Calls = [("weather", {"city": "Rome"}), ("add", {"a": 1, "text": "one"})]
    made = made[1:] if any(one in name for one in SINGLE) else made
    rules = grammar.Rules()
    lark = rules.build(forced.rule(rules, form, TOOLS, True))
    if isinstance(form, calls.Python):
        text = '<|tool_call_start|>[weather(city="Rome"), add(a=1, text="one")]<|tool_call_end|>'
    else:
        text = written(name, made)
    if isinstance(form, calls.Harmony):
        text = text.replace("commentary json", "commentary <|constrain|>json")
    if isinstance(form, calls.Named) and form.id:
        text = text.replace("abcdefgh", "abcdefghi")
    if "GigaChat3-" in name:
        text = f"<|message_sep|>\n\n{text}"
    text = re.sub(r', "id": "\w*"', "", text)
    if "firefunction" in name:
        text = f" {text}"
    taken = is_taken(engine.model, lark, *(text[:end] for end in range(len(text), 1, -1)))
    assert taken and read(parser(name, forced=True), taken, 7)[2] == made, text


LONG = "x < y and \\\"{'z'}\\\" [1] </par "


@pytest.mark.parametrize("name", KINDS.values())
def test_hostile_marks_are_read_in_linear_time(name: str) -> None:
    form = form_of(name)
    own = written(name, [("add", {"other": "xyz", "text": "1"})])
    pieces = {
        *form.marks,
        own[: own.index("add")],
        own[: own.index("add") + 8],
        own[: own.index("xyz")],
        own[own.index("xyz") :],
    }
    opened = own[: own.index("xyz")]
    for begin, piece in [("", piece) for piece in pieces if piece] + [
        (opened, LONG),
        (opened, "<"),
        (opened, "'"),
    ]:
        n = max(2, 3000 // len(piece))
        looked = [looks(parser(name), begin + piece * k * n, 2048) for k in (1, 2)]
        assert looked[1] < 1.3 * looked[0] + 1 and looked[0] < 700, (begin, piece, looked)


@pytest.mark.parametrize(
    ("name", "text", "said", "thought"),
    [
        (
            "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
            "<|START_THINKING|>Why?<|END_THINKING|><|START_RESPONSE|>So.<|END_RESPONSE|>",
            *("So.", "Why?"),
        ),
        ("Cohere2MoE", "<|START_THINKING|>Why?<|END_THINKING|><|START_TEXT|>So.<|END_TEXT|>", "So.", "Why?"),
        (
            "Kimi-K3",
            "<|open|>think<|sep|>Why?<|close|>think<|sep|><|open|>response<|sep|>So.<|close|>response<|sep|>"
            "<|close|>message<|sep|><|end_of_msg|>",
            *("So.", "Why?"),
        ),
        (
            "upstage-Solar-Open-100B",
            "<|think|>Why?<|end|><|begin|>assistant<|content|>So.<|end|>",
            *("So.", "Why?"),
        ),
        (
            "muse-glimmer",
            " to=self<|message|>Why?<|eom|><|start|>assistant to=user<|message|>So.<|eot|>",
            "So.",
            "Why?",
        ),
        ("meetkai-functionary-medium-v3.2", "all\nSo.", "So.", ""),
        ("google-gemma-4-31B-it", "<|channel>thought\nWhy?<channel|>So.<turn|>", "So.", "\nWhy?"),
        ("tencent-Hy3", "<think:opensource>Why?</think:opensource>So.", "So.", "Why?"),
        ("MiniMax-M3", "<mm:think>Why?</mm:think>So.", "So.", "Why?"),
        (
            "Apriel-1.6-15b-Thinker-fixed",
            "Here are my reasoning steps:\nWhy?[BEGIN FINAL RESPONSE]\nSo.",
            "So.",
            "Why?",
        ),
    ],
)
def test_marks_around_text_are_none_of_it(name: str, text: str, said: str, thought: str) -> None:
    """Also in a conversation without tools."""
    for size in (1, 6, 1000):
        assert read(parser(name), text, size) == (said, thought, [])
        assert read(parser(name, tools=False), text, size) == (said, thought, [])


def test_damaged_answers_are_read_the_same_in_any_pieces() -> None:
    done, faults = fuzz_answers.run(400, 1)
    assert not faults and len(done) == len(KINDS)


def test_command_r_plus() -> None:
    """Its template only describes arrays that say what they contain."""
    one = [("weather", {"city": "Rome"})]
    assert read(parser("CohereForAI-c4ai-command-r-plus-tool_use"), f"I look.\n{ACTION}", 4) == (
        "I look.",
        "",
        one,
    )


ACTION = """Action:
```json
[
    {
        "tool_name": "weather",
        "parameters": {
            "city": "Rome"
        }
    }
]```"""
