"""Formats of calls in all of upstream's templates: what a template writes is read again, at every split and cut, and
may be written where a call is forced."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import check_templates
import pytest
from reading_cases import SCHEMAS, TOOLS, cut_everywhere, is_taken, read, split_everywhere

from pyllama_long.engine import Engine
from pyllama_long.server import calls, channels, forced, grammar
from pyllama_long.server.answer import AnswerParser
from pyllama_long.server.schemas.chat import as_input
from pyllama_long.server.template import ChatTemplate

Calls = list[tuple[str, dict[str, Any]]]

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
PATHS = {path.stem: path for path in sorted(check_templates.TEMPLATES.glob("*.jinja"))}


@cache
def template(name: str) -> ChatTemplate:
    return ChatTemplate(PATHS[name].read_text(), "", "", [])


KNOWING = [name for name in PATHS if template(name).knows_tools and "r-plus" not in name]


def parser(name: str, tools: bool = True, **more: Any) -> AnswerParser:
    found = template(name)
    channel: channels.Channel | None = "none" if channels.style_of(found.source) else None
    return AnswerParser(
        calls.format_of(found.source),
        list(SCHEMAS) if tools else [],
        schemas=SCHEMAS,
        thinks=found.thinks,
        marks=found.thinking,
        channel=channel,
        **more,
    )


def written(name: str, made: Calls) -> str:
    """What a template writes of calls, up to their results."""
    found, form = template(name), calls.format_of(template(name).source)
    listed = [
        {"id": f"abcdefgh{i}", "type": "function", "function": {"name": n, "arguments": json.dumps(a)}}
        for i, (n, a) in enumerate(made)
    ]
    results = [
        {"role": "tool", "tool_call_id": f"abcdefgh{i}", "content": f"RESULT{i}"} for i in range(len(made))
    ]
    asked = [{"role": "user", "content": "QUESTION"}]
    rendered = found.rendered(
        as_input([*asked, {"role": "assistant", "tool_calls": listed}, *results]), TOOLS
    )
    assert not rendered.told
    text = rendered.text[rendered.text.rindex("QUESTION") + len("QUESTION") :].partition("RESULT0")[0]
    begins = {"Llama3": ("{",), "Harmony": (START,), "Addressed": (START,)}.get(
        type(form).__name__, form.marks
    )
    at, mark = min((text.index(mark), mark) for mark in begins if mark in text)
    return text[at + (len(mark) if isinstance(form, MESSAGES) else 0) :]


START = "<|start|>assistant"
MESSAGES = (calls.Recipients, calls.Harmony, calls.Addressed)  # whose beginnings prompts have
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
        form = calls.format_of(template(name).source)
        assert form.marks[:1] == tuple(marks[:1]), name


@pytest.mark.parametrize("name", KNOWING)
def test_what_a_template_writes_is_read_again(name: str) -> None:
    for made in [TWO[:1], TWO[1:]] if any(one in name for one in SINGLE) else [TWO]:
        text = written(name, made)
        for size in (1, 7, 10_000):
            assert read(parser(name), text, size)[1:] == ("", made), text


KINDS = {  # one template of each format
    repr(calls.format_of(template(name).source)): name for name in KNOWING
}

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
            continue  # its template writes texts as they are between quotes
        made: Calls = [("add", {"other": value, "text": "1"})]
        assert read(parser(name), written(name, made), 5)[2] == made, value


@pytest.mark.parametrize("name", KINDS.values())
def test_any_split_and_any_cut(name: str) -> None:
    made: Calls = [("add", {"b": ["x"], "text": "90210"})]
    own = written(name, made)
    form = calls.format_of(template(name).source)
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
    form = calls.format_of(template(name).source)
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


@pytest.mark.parametrize("name", KINDS.values())
def test_hostile_marks_are_read_in_linear_time(name: str) -> None:
    form = calls.format_of(template(name).source)
    own = written(name, [("add", {"other": "xyz", "text": "1"})])
    pieces = {
        *form.marks,
        own[: own.index("add")],
        own[: own.index("add") + 8],
        own[: own.index("xyz")],
        own[own.index("xyz") :],
    }
    for piece in filter(None, pieces):
        looked = []
        for n in (1, 2):
            one, text = parser(name), piece * (n * max(2, 3000 // len(piece)))
            for i in range(0, len(text), 3):
                one.feed(text[i : i + 3])
                assert len(one.input.text) < 2048, piece
            one.finish()
            looked.append(one.input.looked / len(text))
        assert looked[1] < 1.3 * looked[0] + 1 and looked[0] < 700, (piece, looked)


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
