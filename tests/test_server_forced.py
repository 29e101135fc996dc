"""Grammars that force calls."""

from __future__ import annotations

import pytest
from reading_cases import read
from written_calls import ANSWERS, ROME

from pyllama_long.server import forced, grammar
from pyllama_long.server.answer import AnswerParser
from pyllama_long.server.schemas.conversation import Tool


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
