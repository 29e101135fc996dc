"""Calls as models write them, and their contents."""

from __future__ import annotations

from typing import Any

from pyllama_long.server import calls

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
