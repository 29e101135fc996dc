"""Reads damaged answers with calls in all formats of upstream's templates: however they are split into pieces, and
wherever they end, the result is the same, and nothing fails. Prints a table, then one JSON line.

    python scripts/fuzz_answers.py [N] [SEED]
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from functools import cache
from typing import Any

import check_templates

from pyllama_long.server import call_formats, calls, channels
from pyllama_long.server.answer import AnswerParser
from pyllama_long.server.pieces import CallPiece, TextPiece
from pyllama_long.server.schemas.conversation import Tool, as_input
from pyllama_long.server.template import ChatTemplate

Calls = list[tuple[str, dict[str, Any]]]

SCHEMAS: dict[str, dict[str, Any]] = {
    "weather": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "add": {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "b": {"type": "array"},
            "object": {"type": "object"},
            "on": {"type": "boolean"},
            "other": {"type": "string"},
            "text": {"type": "string"},
        },
    },
}
TOOLS = [
    Tool.model_validate(
        {"type": "function", "function": {"name": name, "description": f"Does {name}", "parameters": schema}}
    )
    for name, schema in SCHEMAS.items()
]

PATHS = {path.stem: path for path in sorted(check_templates.TEMPLATES.glob("*.jinja"))}
START = "<|start|>assistant"
MESSAGES = (calls.Recipients, calls.Harmony, calls.Addressed)  # whose beginnings prompts have


@cache
def template(name: str) -> ChatTemplate:
    return ChatTemplate(PATHS[name].read_text(), "", "", [])


KNOWING = [name for name in PATHS if template(name).knows_tools and "r-plus" not in name]


def form_of(name: str) -> calls.Format:
    return call_formats.format_of(template(name).source)


def parser(name: str, tools: bool = True, **more: Any) -> AnswerParser:
    found = template(name)
    channel: channels.Channel | None = "none" if channels.style_of(found.source) else None
    return AnswerParser(
        call_formats.format_of(found.source),
        list(SCHEMAS) if tools else [],
        schemas=SCHEMAS,
        thinks=found.thinks,
        marks=found.thinking,
        channel=channel,
        **more,
    )


def written(name: str, made: Calls) -> str:
    """What a template writes of calls, up to their results."""
    found, form = template(name), form_of(name)
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


KINDS = {  # one template of each format
    repr(form_of(name)): name for name in KNOWING
}

CASES: list[Calls] = [
    [("weather", {"city": "Rome"})],
    [("add", {"a": 1, "b": [2, {"c": "}"}], "object": {"x": 1.5}, "other": "a\nb", "text": "90210"})],
]
_PARTS = [
    *("<|end|>", "</think>", '"', "'", "{", "}", "[", "]", "</parameter>", "\\", '<|"|>', ">", "<", "to="),
    *("<|message|>", "]<]minimax[>[", "all\n", "add", "weather"),
]


def damaged(text: str, others: list[str], random_: random.Random) -> str:
    for _ in range(random_.randint(1, 6)):
        at, kind = random_.randrange(len(text) + 1), random_.random()
        if kind < 0.4:
            text = text[:at] + random_.choice(_PARTS) + text[at:]
        elif kind < 0.7:
            text = text[:at] + text[at + random_.randint(1, 20) :]
        elif kind < 0.85:
            text = text[:at] + text[max(0, at - 30) :]
        else:
            text = text[:at] + random_.choice(others)[: random_.randint(1, 80)] + text[at:]
    return text


def run(n: int, seed: int) -> tuple[Counter[str], list[str]]:
    """How many answers of each format were read, and what was wrong."""
    random_, done, faults = random.Random(seed), Counter[str](), []
    answers = [(name, written(name, case)) for name in KINDS.values() for case in CASES]
    _PARTS.extend(sorted({mark for name in KINDS.values() for mark in form_of(name).marks} - set(_PARTS)))
    for _ in range(n):
        name, text = random_.choice(answers)
        text = damaged(text, [other for _, other in answers], random_)
        cut, forced = random_.random() < 0.5, random_.random() < 0.3
        try:
            found = {
                _read(parser(name, forced=forced), text, size, cut)
                for size in (1, random_.randint(2, 9), 1 << 20)
            }
        except Exception as error:
            faults.append(f"{name}: {type(error).__name__}: {error}: {text!r}")
        else:
            if len(found) > 1:
                faults.append(f"{name}: pieces differ: {text!r}: {found}")
        done[name] += 1
    return done, faults


def _read(one: AnswerParser, text: str, size: int, cut: bool) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    pieces = [p for i in range(0, len(text), size) for p in one.feed(text[i : i + size])] + one.finish(cut)
    said = [
        "".join(p.text for p in pieces if isinstance(p, TextPiece) and p.reasoning is thought)
        for thought in (False, True)
    ]
    return said[0], said[1], tuple((p.name, p.arguments) for p in pieces if isinstance(p, CallPiece))


def main(n: int = 20_000, seed: int = 1) -> int:
    done, faults = run(n, seed)
    for name, count in sorted(done.items()):
        print(f"{name:<50}{count:>8}")
    for fault in faults[:20]:
        print(fault[:600])
    print(json.dumps({"answers": n, "seed": seed, "formats": len(done), "faults": len(faults)}))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
