"""Writes answers under generated JSON schemas and validates them: each answer must fit, or the schema be refused.

A table of keywords (used, refused), then one JSON line. The answers are random walks over the allowed tokens, which
is more hostile than a model; for some schemas the embedded model writes one too.

    python scripts/check_schemas.py --schemas 1000 --answers 3 --seed 0
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import jsonschema

from pyllama_long.engine import Engine, EngineConfig, Finished, Request, Sampling, Text
from pyllama_long.errors import GrammarError
from pyllama_long.grammar import Constraint, Lark
from pyllama_long.server.errors import ApiError
from pyllama_long.server.grammar import Rules

DEMO = Path(__file__).parent.parent / "pyllama_long" / "data" / "demo.gguf"
TEXTS = ["", "a", "cat", "dog", "a b", 'q"t', "back\\slash", "é", "🙂", "a/b~c", "x_y", "line\nbreak"]
PATTERNS = [
    "^cat|dog$", "^[a-z]{2,5}$", r"^\d{3}-\d{4}$", "^(a|b)+$", "b{2}", r"^\w+@\w+\.com$", r"^[^\s]{1,4}$", "^.{3}$",
    r"^(?:[A-Z][a-z]*_?)+$", r"[\"'\\]", "^$", "^(a?b?c?){20}$", r"^\S\s\S$", "^[\u00e0-\u00ff]{2}$",
]  # fmt: skip
FORMATS = [
    "date",
    "time",
    "date-time",
    "uuid",
    "ipv4",
    "ipv6",
    "email",
    "hostname",
    "int32",
    "password",
    "regex",
]
REFUSED_AT_TIMES = (
    "not",
    "uniqueItems",
    "contains",
    "if",
    "dependentRequired",
    "propertyNames",
    "minProperties",
)


@dataclass
class Generator:
    """Generates schemas of random shape. definitions: those of the current schema."""

    random: Random
    definitions: dict[str, Any] = field(default_factory=dict)

    def schema(self) -> Any:
        self.definitions = {}
        r = self.random
        names = r.sample(["Node", "a_b", "A-B", "a/b", "x~y", "items", "名"], r.randint(0, 3))
        for name in names:
            self.definitions[name] = {}
        for name in names:
            make = r.choice([self.object, self.object, self.array, self.string, self.constant])
            self.definitions[name] = make(2)  # never a reference, which could be to the definition itself
        made = self.value(3)
        if names and isinstance(made, dict):
            made = {**made, r.choice(["$defs", "$defs", "definitions"]): self.definitions}
            key = "$defs" if "$defs" in made else "definitions"
            made = json.loads(json.dumps(made).replace("#/@/", f"#/{key}/"))
        return made

    def value(self, depth: int) -> Any:
        r = self.random
        kinds = [self.string, self.integer, self.number, self.constant, self.several, self.either]
        if depth > 0:
            kinds += [self.object, self.object, self.object, self.array, self.array, self.any_of, self.all_of]
            if self.definitions:
                kinds += [self.reference, self.reference]
        if r.random() < 0.05:
            return r.choice([True, {}])
        made: dict[str, Any] = r.choice(kinds)(depth)
        if r.random() < 0.1:
            made = {"title": "A title", "description": "It's described.", **made}
        if r.random() < 0.04:
            key = r.choice(REFUSED_AT_TIMES)
            made = {**made, **self.rare(key)}
        return made

    def rare(self, key: str) -> dict[str, Any]:
        made: dict[str, dict[str, Any]] = {
            "not": {"not": {"const": "cat"}},
            "uniqueItems": {"uniqueItems": True},
            "contains": {"contains": {"type": "integer"}},
            "if": {"if": {"type": "string"}, "then": {"minLength": 2}},
            "dependentRequired": {"dependentRequired": {"a": ["b"]}},
            "propertyNames": {"propertyNames": {"maxLength": 3}},
            "minProperties": {"minProperties": self.random.randint(0, 3)},
        }
        return made[key]

    def string(self, depth: int) -> dict[str, Any]:
        r, made = self.random, dict[str, Any](type="string")
        kind = r.randrange(6)
        if kind < 2:
            made["pattern"] = r.choice(PATTERNS)
        elif kind == 2:
            made["format"] = r.choice(FORMATS)
        if kind in (1, 3, 4):
            low = r.randint(0, 4)
            made.update(
                r.choice(
                    [{"minLength": low}, {"maxLength": low + 3}, {"minLength": low, "maxLength": low + 2}]
                )
            )
        return made

    def integer(self, depth: int) -> dict[str, Any]:
        return {
            "type": "integer",
            **self.bounds(),
            **({"multipleOf": self.random.choice([2, 5, 7, 100])} if self.random.random() < 0.2 else {}),
        }

    def number(self, depth: int) -> dict[str, Any]:
        return {"type": "number", **self.bounds()}

    def bounds(self) -> dict[str, Any]:
        r = self.random
        low = r.choice([-100, -1, 0, 1, 7, 0.5, -2.25, 99])
        high = low + r.choice([0, 1, 10, 250.5, 1000])
        found: dict[str, Any] = {}
        if r.random() < 0.5:
            found[r.choice(["minimum", "exclusiveMinimum"])] = low
        if r.random() < 0.5:
            found[r.choice(["maximum", "exclusiveMaximum"])] = high + 1
        return found

    def constant(self, depth: int) -> dict[str, Any]:
        r = self.random
        values = r.sample(
            [*TEXTS, 1, -2, 0.5, True, False, None, [], [1, "a"], {"k": "v"}, {}], r.randint(1, 4)
        )
        return {"const": values[0]} if r.random() < 0.4 else {"enum": values}

    def several(self, depth: int) -> dict[str, Any]:
        """A list of types with keywords of each."""
        r = self.random
        types = r.sample(
            ["string", "null", "integer", "boolean", "array", "object", "number"], r.randint(1, 3)
        )
        if "integer" in types and "number" in types:
            types.remove("integer")
        found: dict[str, Any] = {"type": types if len(types) > 1 else types[0]}
        for extra in (self.string(0), self.integer(0), {"maxItems": 2, "items": {"type": "null"}}):
            extra.pop("type", None)
            if r.random() < 0.5:
                found.update(extra)
        if "null" in types and r.random() < 0.3:
            found["enum"] = [None, "a", "cat", 3]
        if "object" in types and r.random() < 0.7:
            found.update(
                {"properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
            )
        return found

    def either(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self.string(0), {"type": "null"}]}

    def object(self, depth: int) -> dict[str, Any]:
        r = self.random
        names = r.sample([*TEXTS[1:], "next", "const", "$ref"], r.randint(0, 4))
        found: dict[str, Any] = {
            "type": "object",
            "properties": {name: self.value(depth - 1) for name in names},
        }
        if r.random() < 0.7:
            found["required"] = r.sample(names, r.randint(0, len(names)))
        more = r.randrange(6)
        if more < 2:
            found["additionalProperties"] = False
        elif more == 2:
            found["additionalProperties"] = self.value(0)
        elif more == 3:
            found["patternProperties"] = {"^x-": self.value(0)}
        if r.random() < 0.05:
            found["maxProperties"] = r.randint(len(found.get("required", [])), 5)
        if r.random() < 0.1:
            found.pop("type")
        return found

    def array(self, depth: int) -> dict[str, Any]:
        r = self.random
        found: dict[str, Any] = {"type": "array"}
        kind = r.randrange(5)
        if kind < 3:
            found["items"] = self.value(depth - 1)
        if kind in (2, 3):
            found["prefixItems"] = [self.value(depth - 1) for _ in range(r.randint(1, 2))]
            if r.random() < 0.5:
                found["items"] = r.choice([False, {"type": "integer"}])
        low = r.randint(0, 2)
        found.update(
            r.choice([{}, {"minItems": low}, {"maxItems": low + 1}, {"minItems": low, "maxItems": low + 2}])
        )
        return found

    def any_of(self, depth: int) -> dict[str, Any]:
        key = self.random.choice(["anyOf", "anyOf", "oneOf"])
        found: dict[str, Any] = {key: [self.value(depth - 1) for _ in range(self.random.randint(1, 3))]}
        if self.random.random() < 0.2:
            found = {**self.several(0), **found}
        return found

    def all_of(self, depth: int) -> dict[str, Any]:
        r = self.random
        parts = [self.object(depth - 1) for _ in range(r.randint(1, 2))]
        found: dict[str, Any] = {"allOf": parts}
        if self.definitions and r.random() < 0.5:
            parts.append(self.reference(0))
        if r.random() < 0.4:
            found["properties"] = {"z": self.value(0)}
            found["required"] = ["z"]
        return found

    def reference(self, depth: int) -> dict[str, Any]:
        name = self.random.choice(list(self.definitions)).replace("~", "~0").replace("/", "~1")
        found: dict[str, Any] = {"$ref": f"#/@/{name}"}
        if self.random.random() < 0.1:
            found["maxLength"] = 3
        return found


def walked(engine: Engine, lark: Lark, seed: int, most: int = 300) -> str | None:
    """A random text that the grammar allows; None where none came to its end."""
    random, model = Random(seed), engine.model
    constraint, out = Constraint(model, lark), b""
    ends = set(model.end_tokens)
    for i in range(most):
        if constraint.ended:
            break
        allowed = [int(token) for token in constraint.allowed()]
        stops = [token for token in allowed if token in ends]
        if stops and (len(stops) == len(allowed) or random.random() < 0.3):
            break
        going = [token for token in allowed if token not in ends]
        if i > most // 4:  # towards the end, closing brackets are preferred
            closing = [token for token in going if model.piece(token)[:1] in b'"}],']
            going = closing or going
        token = random.choice(going)
        out += model.piece(token)
        constraint.take(token)
    else:
        return None
    return out.decode()


def written(engine: Engine, lark: Lark, seed: int) -> str | None:
    """The embedded model's answer; None if it was cut."""
    sampling = Sampling(temperature=1.0, seed=seed, grammar=lark)
    events = list(engine.submit(Request(engine.tokenize(b"JSON:\n"), max_tokens=200, sampling=sampling)))
    if [event.reason for event in events if isinstance(event, Finished)] != ["stop"]:
        return None
    return "".join(event.text for event in events if isinstance(event, Text))


def keywords(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            yield key
            yield from keywords(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from keywords(value)


def problem(schema: Any, text: str) -> str:
    """Why an answer does not fit; empty if it does."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"no JSON: {error}"
    checker = jsonschema.FormatChecker(["date", "ipv4", "ipv6", "email", "uuid"])
    found = jsonschema.Draft202012Validator(schema, format_checker=checker)
    wrong = next(iter(found.iter_errors(value)), None)
    return "" if wrong is None else f"{wrong.validator} {wrong.validator_value!r}: {wrong.message}"[:300]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schemas", type=int, default=1000)
    parser.add_argument("--answers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--by-model", type=float, default=0.1, help="share of schemas that the model answers")
    o = parser.parse_args(arguments)
    used: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    done: Counter[str] = Counter()
    worst = 0.0
    with Engine(EngineConfig(str(DEMO), n_ctx=2048, n_parallel=1, n_threads=1)) as engine:
        for i in range(o.schemas):
            random = Random(f"{o.seed} {i}")
            schema = Generator(random).schema()
            used.update(set(keywords(schema)))
            begin = time.perf_counter()
            try:
                rules = Rules()
                lark = rules.build(rules.schema(schema, "schema"))
                Constraint(engine.model, lark)
            except (ApiError, ValueError) as error:
                done["refused"] += 1
                reasons[re.sub(r"[0-9/].*", "", str(error).split("schema: ")[-1])[:60]] += 1
                continue
            finally:
                worst = max(worst, time.perf_counter() - begin)
            by_model = random.random() < o.by_model
            for k in range(o.answers):
                try:
                    text = (written if by_model else walked)(engine, lark, 1000 * i + k)
                except GrammarError as error:
                    done["ended by an error"] += 1
                    print(f"schema {i}: {error}\n  {json.dumps(schema)}", file=sys.stderr)
                    continue
                why = "" if text is None else problem(schema, text)
                done["cut" if text is None else "invalid" if why else "valid"] += 1
                if why:
                    print(f"schema {i}: {why}\n  {json.dumps(schema)}\n  {text}", file=sys.stderr)
    print(f"{'keyword':24}used")
    for key, n in used.most_common():
        if n > 1:
            print(f"{key:24}{n}")
    print(f"\n{'refused because':64}schemas")
    for key, n in reasons.most_common():
        print(f"{key:64}{n}")
    print(json.dumps({"schemas": o.schemas, **done, "slowest_compile_ms": round(1000 * worst, 1)}))
    return 1 if done["invalid"] else 0


if __name__ == "__main__":
    sys.exit(main())
