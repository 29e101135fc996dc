"""Combines all of upstream's chat templates with conversations that clients send: each must be rendered with nothing
left out, or refused in a line that says what the template lacks. Prints a table, then one JSON line.

    python scripts/check_templates.py [NAME]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pyllama_long.template import Ask, ChatTemplate, TemplateRefusal

TEMPLATES = Path(__file__).parents[1] / "vendor/llama.cpp/tree/models/templates"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Looks something up",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Which"}},
                "required": ["city"],
            },
        },
    }
    for name in ("weather", "distance")
]
Conversation = tuple[list[dict[str, Any]], dict[str, Any]]


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def called(*calls: tuple[str, str, str]) -> dict[str, Any]:
    found = [{"id": i, "type": "function", "function": {"name": n, "arguments": a}} for i, n, a in calls]
    return said("assistant", "", tool_calls=found)


SYSTEM, USER, MORE = (
    said("system", "System text."),
    said("user", "First question?"),
    said("user", "And then?"),
)
ANSWER, ROME = said("assistant", "An answer."), ("call_1", "weather", '{"city": "Rome"}')
PARIS = ("call_2", "distance", '{"city": "Paris"}')
RESULTS = [
    said("tool", "Sunny there.", tool_call_id="call_1"),
    said("tool", "1,100 km.", tool_call_id="call_2"),
]
THINKING: dict[str, Any] = {"enable_thinking": True}
CONVERSATIONS: dict[str, Conversation] = {
    "system late": ([USER, ANSWER, said("system", "Late text."), MORE], {}),
    "systems": ([SYSTEM, said("developer", "Developer text."), said("system", "Third text."), USER], {}),
    "two results": ([SYSTEM, USER, called(ROME, PARIS), *RESULTS], {"tools": TOOLS}),
    "result + text": ([USER, called(ROME), RESULTS[0], MORE], {"tools": TOOLS}),
    "same role": ([SYSTEM, USER, MORE, ANSWER, said("assistant", "More of it."), said("user", "Last?")], {}),
    "broken": (
        [
            *(USER, called(("call_1", "weather", '{"city": ')), RESULTS[0]),
            *(MORE, called(("call_2", "distance", "null")), RESULTS[1]),
        ],
        {"tools": TOOLS},
    ),
    "prefill": ([SYSTEM, USER, said("assistant", "It is the ")], {}),
    "thinking": ([USER, ANSWER, MORE], {"values": THINKING}),
    "no thinking": ([USER, ANSWER, MORE], {"values": {"enable_thinking": False}}),
    "tools": (
        [SYSTEM, USER, called(ROME), RESULTS[0], said("assistant", "It is sunny."), MORE],
        {"tools": TOOLS},
    ),
    "developer, name": ([said("developer", "Developer text."), said("user", "Hello!", name="Ann")], {}),
    "empty": ([SYSTEM, said("user", ""), said("assistant", ""), MORE], {}),
}


def outcome(template: ChatTemplate, conversation: Conversation) -> tuple[str, str]:
    """("ok", the text), ("refused", the line) or ("wrong", what is)."""
    messages, asked = conversation
    try:
        text = template.render(messages, Ask(**asked)).text
    except TemplateRefusal as error:
        return ("wrong" if "\n" in str(error) or not str(error) else "refused"), str(error)
    for message in messages:
        names = [call["function"]["name"] for call in message.get("tool_calls", ())]
        for part in (message["content"].strip(), *names):
            if part not in text and json.dumps(part)[1:-1] not in text:
                return "wrong", f"{part!r} is not in it"
    last = messages[-1]
    if last["role"] == "assistant" and not text.endswith(last["content"]):
        return "wrong", f"it ends in {text[-40:]!r}"
    return "ok", text


def read(path: Path) -> ChatTemplate:
    return ChatTemplate(path.read_text(encoding="utf-8"), "<s>", "</s>", ["<s>", "</s>"])


def main(only: str = "") -> int:
    counts = {"ok": 0, "refused": 0, "wrong": 0}
    lines: list[dict[str, str]] = []
    for path in sorted(TEMPLATES.glob("*.jinja")):
        if only not in path.name:
            continue
        template, row = read(path), []
        for name, conversation in CONVERSATIONS.items():
            kind, why = outcome(template, conversation)
            counts[kind] += 1
            row.append({"ok": "+", "refused": "-", "wrong": "!"}[kind])
            if kind != "ok":
                lines.append({"template": path.stem, "conversation": name, "outcome": kind, "why": why})
        print(f"{path.stem:<52} {' '.join(row)}")
    for line in lines:
        print(f"{line['outcome']}: {line['template']}, {line['conversation']}: {line['why']}")
    print(json.dumps({"conversations": list(CONVERSATIONS), **counts, "not_ok": lines}))
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
