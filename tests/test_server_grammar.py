"""What is written under the grammar of a schema is JSON, and fits the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from pyllama_long.engine import Engine, EngineConfig, Finished, Request, Sampling, Text
from pyllama_long.server import grammar
from pyllama_long.server.errors import ApiError
from pyllama_long.server.pattern import rewrite

NODE = {
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "name": {"const": "n"},
                "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
            },
            "required": ["name", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/Node",
}
CONSTANTS = ["a\nb", "a\tb", "C:\\new", 'a"b', "🙂", "\x01", {"a\\b": ["é", None, 1.5]}]
PATTERNS = [
    r"^\d{3}$",
    r"^\w+\s\S$",
    r"^[0-9]{3}\.[0-9]$",
    r'^a"b$',
    r"^a\\b$",
    r"^(?:x|yy){2}\$$",
    r"^[^a-y]{2}$",
    r"^[\"'\\]{5}$",
    r"^[\w.-]{2}@x\.com$",
    r"^.{9}$",
    r"^\u00e9\n[!-~]{4}\W$",
    r"b{2}",
]


@pytest.fixture(scope="module")
def engine(demo_model: str) -> Iterator[Engine]:
    with Engine(EngineConfig(demo_model, n_ctx=1024, n_parallel=1, n_threads=2)) as engine:
        yield engine


def written(engine: Engine, schema: Any, seed: int = 0, temperature: float = 0.0) -> tuple[str, str]:
    """(text, why it ended) of an answer that has to fit the schema."""
    rules = grammar.Rules()
    text = rules.build(rules.schema(schema, "schema"))
    sampling = Sampling(temperature=temperature, seed=seed, grammar=text)
    events = list(engine.submit(Request(engine.tokenize(b"A list:\n"), max_tokens=150, sampling=sampling)))
    finished = [event.reason for event in events if isinstance(event, Finished)]
    return "".join(event.text for event in events if isinstance(event, Text)), finished[0]


@pytest.mark.parametrize("value", CONSTANTS, ids=repr)
def test_constants_are_written_as_they_are(engine: Engine, value: Any) -> None:
    assert json.loads(written(engine, {"const": value})[0]) == value
    assert json.loads(written(engine, {"enum": [value]})[0]) == value


@pytest.mark.parametrize("name", ["🙂", "a\\b", 'a b"c', "const", "a\nb"])
def test_names_of_properties_are_written_as_they_are(engine: Engine, name: str) -> None:
    properties = {name: {"const": 1}, "other": {"const": 2}}
    schema = {
        "type": "object",
        "properties": properties,
        "required": [name, "other"],
        "additionalProperties": False,
    }
    assert json.loads(written(engine, schema)[0]) == {name: 1, "other": 2}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_patterns(engine: Engine, pattern: str, seed: int) -> None:
    text, reason = written(engine, {"type": "string", "pattern": pattern}, seed, temperature=2.0)
    if reason == "stop":
        assert re.search(pattern, json.loads(text)), text
    else:  # it may go on for ever around what an open pattern asks for
        assert not pattern.startswith("^") or "+" in pattern


@pytest.mark.parametrize("seed", range(12))
def test_strings_hold_no_control_characters(engine: Engine, seed: int) -> None:
    """At a temperature where each token is about as likely as any other."""
    schema = {"type": "string", "minLength": 12, "maxLength": 12}
    text, reason = written(engine, schema, seed, temperature=50.0)
    assert reason == "stop"
    assert len(json.loads(text)) == 12


def test_a_model_that_holds_itself(engine: Engine) -> None:
    for seed in range(6):
        text, reason = written(engine, NODE, seed, temperature=1.0)
        if reason == "stop":
            jsonschema.validate(json.loads(text), NODE)
            break
    else:
        raise AssertionError("no answer came to its end")


def test_true_is_a_schema_and_data_is_none(engine: Engine) -> None:
    schema = {
        "type": "object",
        "properties": {"a": True, "b": {"const": {"minLength": -5}, "default": {"minLength": -5}}},
        "required": ["a", "b"],
    }
    text, reason = written(engine, schema, temperature=1.0, seed=3)
    assert reason != "stop" or json.loads(text)["b"] == {"minLength": -5}
    assert '"a"' in text


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"enum": []}, "enum is empty"),
        ({"anyOf": []}, "anyOf is empty"),
        ({"type": "string", "pattern": r"^\bx$"}, r"may not have \\b"),
        ({"type": "string", "pattern": "^(?=x)$"}, "no groups but"),
        ({"type": "string", "pattern": "^a^$"}, "at the beginning"),
        ({"type": "string", "pattern": r"^[\D]$"}, r"may not have \\D"),
    ],
)
def test_what_has_no_grammar_is_told(schema: Any, message: str) -> None:
    with pytest.raises(ApiError, match=message):
        grammar.Rules().schema(schema, "schema")


def test_patterns_get_their_ends() -> None:
    assert rewrite("b") == "^.*(b).*$"
    assert rewrite("^b") == "^(b).*$"
    assert rewrite(r"b\$") == "^.*(b[\\x24]).*$"
