"""Answers under the grammar of a schema are JSON, and fit the schema."""

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
    """(text, why it ended) of an answer that must fit the schema."""
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
    else:  # it may go on forever around the part that an open pattern requires
        assert not pattern.startswith("^") or "+" in pattern


@pytest.mark.parametrize("seed", range(12))
def test_strings_hold_no_control_characters(engine: Engine, seed: int) -> None:
    """At a temperature at which all tokens are about equally likely."""
    schema = {"type": "string", "minLength": 12, "maxLength": 12}
    text, reason = written(engine, schema, seed, temperature=50.0)
    assert reason == "stop"
    assert len(json.loads(text)) == 12


def test_a_model_that_holds_itself(engine: Engine) -> None:
    for seed in range(40):
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
        ({"type": "string", "pattern": "^(?=x)$"}, "look-around"),
        ({"not": {"type": "null"}}, '"not"'),
        ({"type": "array", "uniqueItems": True}, '"uniqueItems"'),
        ({"if": {"type": "null"}, "then": {"type": "null"}}, '"if", "then"'),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"type": "string", "format": "regex"}, "format: regex"),
    ],
)
def test_what_has_no_grammar_is_told(schema: Any, message: str) -> None:
    with pytest.raises(ApiError, match=message):
        grammar.Rules().schema(schema, "schema")


UNION = {"type": ["string", "null"]}
WITH_DEFINITION = {"$defs": {"a_b": {"type": "integer", "minimum": 7, "maximum": 9}}}
HELD: dict[str, tuple[Any, set[Any]]] = {
    "a union keeps enum": (UNION | {"enum": ["x", None]}, {"x", None}),
    "a union keeps const": (UNION | {"const": "y"}, {"y"}),
    "a union keeps pattern": (UNION | {"pattern": "^(?:p|q)$"}, {"p", "q", None}),
    "a union keeps maxLength": ({"type": ["null", "string"], "maxLength": 0}, {"", None}),
    "allOf with $ref": (WITH_DEFINITION | {"allOf": [{"$ref": "#/$defs/a_b"}]}, {7, 8, 9}),
    "names with ~1": ({"$defs": {"a/b": {"const": 3}}, "$ref": "#/$defs/a~1b"}, {3}),
    "names beyond ASCII": ({"$defs": {"名": {"const": 4}}, "$ref": "#/$defs/名"}, {4}),
    "bounds of numbers": ({"type": "integer", "exclusiveMinimum": 1, "maximum": 3}, {2, 3}),
    "alternatives at the anchors": ({"type": "string", "pattern": "^cat$|^dog$"}, {"cat", "dog"}),
    "unknown formats are notes": ({"enum": [1], "format": "int32"}, {1}),
    "options of the library are none": ({"const": 5, "x-guidance": {"lenient": True}}, {5}),
}


@pytest.mark.parametrize("name", HELD)
def test_keywords_hold(engine: Engine, name: str) -> None:
    schema, values = HELD[name]
    found = {json.loads(written(engine, schema, seed, temperature=20.0)[0]) for seed in range(12)}
    assert found <= values
    assert len(values) == 1 or len(found) > 1


def test_allof_beside_properties_and_references_into_properties(engine: Engine) -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {"const": 1},
            "b": {"$ref": "#/properties/a"},
            "t": {"type": "array", "prefixItems": [{"const": 2}], "items": False, "minItems": 1},
        },
        "allOf": [{"properties": {"c": {"const": 3}}, "required": ["c"]}],
        "required": ["a", "b", "t"],
        "additionalProperties": True,
    }
    text, reason = written(engine, schema)
    assert reason == "stop" or text
    found = json.loads(text) if reason == "stop" else {}
    for key, value in found.items():
        assert {"a": 1, "b": 1, "c": 3, "t": [2]}.get(key, value) == value
    assert '"a"' in text


def chain(n: int, join: Any) -> dict[str, Any]:
    """Definitions that refer twice to the next."""
    definitions = {f"d_{i}": join({"$ref": f"#/$defs/d_{i + 1}"}) for i in range(n)}
    return {"$defs": definitions | {f"d_{n}": {"type": "string"}}, "$ref": "#/$defs/d_0"}


HOSTILE = {
    "objects that refer twice": chain(32, lambda r: {"type": "object", "properties": {"a": r, "b": r}}),
    "anyOf that refers twice": chain(40, lambda r: {"anyOf": [r, r]}),
    "allOf that refers twice": chain(40, lambda r: {"allOf": [r, r]}),
    "options of a pattern": {"type": "string", "pattern": "^(a?b?c?d?){199}$"},
    "states of a pattern": {"type": "string", "pattern": "(a|b)*a(a|b){400}"},
    "products of anyOf": {
        "allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in "abcd"]} for i in range(12)]
    },
    "a thousand properties": {
        "type": "object",
        "properties": {f"p{i}": {"type": "string"} for i in range(999)},
    },
    "a large multiple": {"type": "integer", "multipleOf": 9973},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_costs_without_end_is_bounded(engine: Engine, name: str) -> None:
    """Written or refused within a moment; the timeout of this test is far above that."""
    try:
        text, _ = written(engine, HOSTILE[name], temperature=1.0)
    except ApiError as error:
        assert "\n" not in str(error)
    except ValueError as error:
        assert "grammar" in str(error)
    else:
        assert text


def test_a_value_of_many_patterns_is_refused() -> None:
    patterns = [{"type": "string", "pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(1, 20)]
    with pytest.raises(ApiError, match="patterns"):
        grammar.Rules().schema({"allOf": patterns}, "schema")
