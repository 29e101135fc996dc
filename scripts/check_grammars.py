"""Compares GBNF under llguidance with llama.cpp's own sampler: the same tokens at each step; and measures hostile
grammars.

Prints a line per kind, then one JSON line. Runs by hand: a sample of it is tests/test_gbnf.py.

    python scripts/check_grammars.py [--model demo.gguf] [--walks 600] [--growing 500] [--hostile]

Each growing kind has grammars whose size doubles nine times, from what people write to what nobody can compute; its
line shows the slowest of them.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer

import pyllama_long
from pyllama_long._native import Candidates, llama_cpp
from pyllama_long.gbnf import to_lark
from pyllama_long.grammar import LIMITS, tokenizer
from pyllama_long.model import Model
from pyllama_long.opened import open_vocabulary

DEMO = Path(pyllama_long.__file__).parent / "data" / "demo.gguf"

# Grammars of each kind, besides those that are generated.
WRITTEN = {
    "greedy": 'root ::= [a-z]+ "b"',
    "greedy in rules": 'root ::= r\nr ::= [a-z]+ "b" r | "c"',
    "literals that begin alike": 'root ::= x y\nx ::= "a" | "ab" | "abc"\ny ::= "c" y | "d" | "bc" z\nz ::= y "e" | ""',
    "empty rules": 'root ::= a b a\na ::= [a-c]* | "x" b\nb ::= ("d" a)?',
    "no regular language": 'root ::= "a" root "a" | "b" root "b" | [c-e]?',
    "space at ends": 'root ::= ws item (ws "," ws item)* ws\nitem ::= [a-z]+ | "(" root ")"\nws ::= ([ \\t] ws)?',
    "counts": 'root ::= [a-z]{2,4} [0-9]{3} ("-" [a-z]{2}){0,2} r\nr ::= "." | "(" r ")"',
    "sums": """# as in a calculator
root  ::= (expr "=" ws term "\\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \\t\\n]*""",
    "JSON": """root ::= value
value ::= "{" ws (pair ("," ws pair)*)? "}" ws | "[" ws (
    value ("," ws value)*  # of any kind
  )? "]" ws | string | "-"? [0-9]+ ("." [0-9]+)? ws | ("true" | "null") ws
pair ::= string ":" ws value
string ::= "\\"" ([^"\\\\\\x7F\\x00-\\x1F] | "\\\\" (["\\\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\\"" ws
ws ::= | " " | "\\n" [ \\t]{0,20}""",
    "program": """root ::= statement*
statement ::= name ws "=" ws expression ";" | "if" "(" expression ")" "{" statement* "}" | "//" [^\\n]* "\\n" |
    "/*" ([^*] | "*" [^/])* "*/" | "return" ws expression ";"
name ::= [a-zA-Z_] [a-zA-Z_0-9]*
expression ::= term (("+" | "<=" | "<") term)*
term ::= name | [0-9]+ | "-" term | name "(" expression ("," expression)* ")" | "(" ws expression ws ")"
ws ::= ([ \\t\\n]+)""",
    "beyond ASCII": 'root ::= [é-ü]+ "è" | "\\u00e9" "\\U0001F642" . | "日本" [^日]+ r\nr ::= "日" root | "x"',
    "any character": 'root ::= "<" . * ">" tail\ntail ::= "a" tail "b" | ""',
    "tokens": 'root ::= "h" <[300]> [a-z]+ <[301]> | !<[300]> "x"',
}

_DOUBLING = "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(40))
HOSTILE = {
    "200 parts that may be empty": 'root ::= x{200}\nx ::= "a"? "b"? "c"?',
    "41 rules that double": f'root ::= r0\n{_DOUBLING}\nr40 ::= "a"',
    "41 that may be empty": f'root ::= r0\n{_DOUBLING}\nr40 ::= "a" | ""',
    "41 and the root again": f'root ::= r0\n{_DOUBLING}\nr40 ::= "a" | "(" root ")"',
    "41 of tokens": f'root ::= r0\n{_DOUBLING}\nr40 ::= "a" <[300]>',
    "200 x 200 x 200": 'root ::= (("a"{200}){200}){200}',
    "200 x 200": 'root ::= ("a"{200}){200}',
    "1000 x 1000, may be empty": 'root ::= (("a"? | "b" root "c"){0,1000}){0,1000}',
    "itself": "root ::= root",
    "without an end": 'root ::= "a" root "b"',
    "twice itself": 'root ::= root root | "a"',
    "twice itself, or nothing": 'root ::= root root | "a" | ""',
    "a and itself twice": 'root ::= r\nr ::= "a" r r | ""',
    "stars in stars": 'root ::= a*\na ::= b*\nb ::= root | "x"?',
    "large classes": "root ::= ("
    + " | ".join(f"[\\u{i:04x}-\\u{i + 0x800:04x}]" for i in range(0x100, 0x4000, 4))
    + ')* "x" root "y"',
    "2000 states": 'root ::= [ab]* "a" [ab]{2000}',
    "3000 literals": "root ::= (" + " | ".join(f'"item{i}" root?' for i in range(3000)) + ")",
    "120,000 characters": f'root ::= "{"ab" * 60_000}" root?',
    "4000 rules": "root ::= "
    + " | ".join(f"r{i}" for i in range(4000))
    + "".join(f'\nr{i} ::= "a{i}" [a-z]* " " r{(i * 7 + 1) % 4000} | "c"' for i in range(4000)),
    "900 rules in a chain": "root ::= r0\n"
    + "\n".join(f'r{i} ::= "a" r{i + 1} "b" | "c"' for i in range(900))
    + '\nr900 ::= root "a"',
    "5000 rules in a chain": "root ::= r0\n"
    + "\n".join(f'r{i} ::= "a" r{i + 1} "b" | "c"' for i in range(5000))
    + '\nr5000 ::= root "a"',
    "100 that overlap": "root ::= ("
    + " | ".join(f'[a-z]{{{i}}} "b" root' for i in range(1, 100))
    + ' | "z")',
}


def generated(rng: random.Random, rules: int, depth: int) -> str:
    """A grammar of few characters, whose lexemes often begin and end alike."""
    names = ["root", *(f"r-{i}" for i in range(1, rules))]

    def character() -> str:
        if rng.random() < 0.5:
            return '"' + "".join(rng.choice("abc") for _ in range(rng.randrange(1, 4))) + '"'
        return rng.choice(("[a-c]", "[^ab\\n]", "[ab]", "[ab]", "[a-b0-9]", "[é-ü]", "[c\\n ]"))

    def part(depth: int, rule: int) -> str:
        kind = rng.random()
        if depth == 0 or kind < 0.35:
            return character()
        if kind < 0.5 and rule + 1 < rules:
            return names[rng.randrange(rule + 1, rules)]
        if kind < 0.6:
            return f"({parts(depth - 1, rule)} | {parts(depth - 1, rule)})"
        if kind < 0.75:
            return f"({parts(depth - 1, rule)}){rng.choice(('*', '+', '?', '{2}', '{1,3}', '{0,2}', '{2,}'))}"
        return character() + rng.choice("*+?") if kind < 0.85 else f"({parts(depth - 1, rule)})"

    def parts(depth: int, rule: int) -> str:
        return " ".join(part(depth, rule) for _ in range(rng.randrange(1, 4)))

    lines = []
    for i, name in enumerate(names):
        choices = [parts(depth, i) for _ in range(rng.randrange(1, 4))]
        if rng.random() < 0.6:  # recursion, after a character: llama.cpp takes none on the left
            choices.append(f'"{rng.choice("abcxy(")}" {rng.choice(names)} {character()}')
        if rng.random() < 0.15:
            choices.append('""')
        lines.append(f"{name} ::= " + " | ".join(choices))
    return "\n".join(lines)


def growing(rng: random.Random, kind: int, size: int) -> tuple[str, str]:
    """(name, grammar) of about `size` parts, with what is random in it."""
    few, letters = rng.randrange(1, 4), [rng.choice("abcde") for _ in range(size)]
    side = max(1, int(size**0.5))
    options = [
        ("parts that may be empty", f'root ::= x{{{size}}} "."\nx ::= "a"? "b"? "c"?'),
        ("repeated repetitions", f'root ::= (([ab] "c"?){{{few},{side}}}){{{few},{side}}} "."'),
        (
            "rules that double",
            "root ::= r0\n"
            + "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(size))
            + f'r{size} ::= "a" | '
            + rng.choice(('""', "root", '"b"')),
        ),
        (
            "rules that double, or not",
            "root ::= r0\n"
            + "".join(f'r{i} ::= r{i + 1} r{i + 1} | "{a}"\n' for i, a in enumerate(letters))
            + f'r{size} ::= "x" | ""',
        ),
        ("literals", "root ::= (" + " | ".join(f'"{a}{i}" root?' for i, a in enumerate(letters)) + ")"),
        (
            "classes",
            "root ::= ("
            + " | ".join(
                f"[\\u{0x100 + 9 * i % 9000:04x}-\\u{0x180 + 9 * i % 9000:04x}]" for i in range(size)
            )
            + ')* "x"',
        ),
        ("states behind", f'root ::= [ab]* "a" [ab]{{{size}}} root?'),
        (
            "parentheses",
            "root ::= " + "(" * size + '"a"' + "".join(")" + rng.choice("?*+ ") for _ in range(size)),
        ),
        (
            "a chain",
            "root ::= r0\n"
            + "".join(f'r{i} ::= "{a}" r{i + 1} "b" | "c"\n' for i, a in enumerate(letters))
            + f'r{size} ::= root "a"',
        ),
        ("one long text", f'root ::= "{"".join(letters)}" root?'),
        ("generated", generated(rng, size, 1 + few)),
    ]
    return options[kind % len(options)]


class Vocabulary:
    """A model's tokens, and those on which the two must agree: the ones that are whole characters. For others,
    llama.cpp accepts bytes that no text contains, and refuses beginnings of characters if only some of these are
    excluded."""

    def __init__(self, model: Model) -> None:
        self.model, self.n = model, model.n_vocab()
        self.tokens: LLTokenizer = tokenizer(model)
        self.compared = np.array([self._is_compared(i) for i in range(self.n)])

    def _is_compared(self, token: int) -> bool:
        text = self.model.piece(token)  # empty for control tokens
        try:
            return bool(text.decode()) and 0 not in text
        except UnicodeDecodeError:
            return False

    def matcher(self, grammar: str) -> LLMatcher:
        """Raises ValueError."""
        lark = to_lark(grammar, ends=self.model.end_tokens)
        matcher = LLMatcher(self.tokens, lark, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return matcher

    def mask(self, matcher: LLMatcher) -> npt.NDArray[np.bool_]:
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, count=self.n, bitorder="little").astype(bool)


class TooCostly(Exception):
    """A grammar that llguidance's limits end, and llama.cpp takes longer for."""


def walk(vocabulary: Vocabulary, grammar: str, rng: random.Random, steps: int) -> str | None:
    """The place where the two differ over randomly chosen tokens; None if they do not. Raises TooCostly."""
    model, candidates = vocabulary.model, Candidates(vocabulary.n)
    sampler: Any = llama_cpp.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
    if not sampler:
        return "llama.cpp refuses it"
    try:
        matcher = vocabulary.matcher(grammar)
        text = b""
        for _ in range(steps):
            candidates.fill(np.zeros(vocabulary.n, np.float32))
            llama_cpp.llama_sampler_apply(sampler, candidates.pointer)
            theirs = np.isfinite(candidates.table["logit"])
            ours = vocabulary.mask(matcher)
            if matcher.is_error():
                raise TooCostly(f"after {text!r}: {matcher.get_error().splitlines()[0]}")
            ends = bool(theirs[list(model.end_tokens)].any())
            if ends != matcher.is_accepting():
                return f"after {text!r}: llama.cpp {'may' if ends else 'must not'} end"
            theirs, ours = theirs & vocabulary.compared, ours & vocabulary.compared
            for name, more in (("llama.cpp", theirs & ~ours), ("llguidance", ours & ~theirs)):
                if more.any():
                    return f"after {text!r}: only {name} takes {model.piece(int(np.flatnonzero(more)[0]))!r}"
            choices = np.flatnonzero(ours).tolist()
            if not choices:
                break
            token = rng.choice(choices)
            if rng.random() < 0.4:
                token = min(rng.sample(choices, min(8, len(choices))), key=lambda t: len(model.piece(t)))
            llama_cpp.llama_sampler_accept(sampler, token)
            if not matcher.consume_token(token):
                return f"after {text!r}: llguidance refuses {model.piece(token)!r}"
            text += model.piece(token)
        return None
    finally:
        llama_cpp.llama_sampler_free(sampler)


def cost(vocabulary: Vocabulary, grammar: str, rng: random.Random, steps: int = 100) -> dict[str, Any]:
    """Seconds to compile and of the longest step, steps, MiB more, and why it ended where that is an error."""
    before, start = _memory(), time.perf_counter()
    found: dict[str, Any] = {"compile": 0.0, "step": 0.0, "steps": 0, "MiB": 0, "end": ""}
    try:
        matcher = vocabulary.matcher(grammar)
    except ValueError as error:
        found["end"] = str(error).splitlines()[0][:70]
        matcher = None
    found["compile"] = time.perf_counter() - start
    while matcher is not None and found["steps"] < steps:
        start = time.perf_counter()
        choices = np.flatnonzero(vocabulary.mask(matcher) & vocabulary.compared)
        if len(choices) and not matcher.is_error():
            matcher.consume_token(int(rng.choice(choices.tolist())))
        found["step"] = max(found["step"], time.perf_counter() - start)
        if matcher.is_error() or not len(choices):
            found["end"] = matcher.get_error().splitlines()[0][:70] if matcher.is_error() else ""
            break
        found["steps"] += 1
    found["MiB"] = _memory() - before
    return found


def _memory() -> int:
    """Of this process, in MiB, at its highest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _grammars(rng: random.Random, n: int) -> Iterator[tuple[str, str]]:
    for name, grammar in WRITTEN.items():
        yield from [(name, grammar)] * 8
    for i in range(n):
        yield "generated", generated(rng, 1 + i % 5, 1 + i % 2)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(DEMO))
    parser.add_argument("--walks", type=int, default=600, help="generated grammars")
    parser.add_argument("--growing", type=int, default=500, help="grammars of growing size")
    parser.add_argument("--hostile", action="store_true", help="only what hostile grammars cost")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    differ = costly = 0
    rng = random.Random(1)
    costs: dict[str, dict[str, Any]] = {}
    grown: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    with closing(open_vocabulary(options.model)) as model:
        vocabulary = Vocabulary(model)
        for name, grammar in () if options.hostile else _grammars(rng, options.walks):
            counts[name] += 1
            try:
                found = walk(vocabulary, grammar, rng, 20)
            except TooCostly:
                costly += 1
                continue
            if found is not None:
                differ += 1
                print(f"{name}: {found}\n{grammar}\n", file=sys.stderr)
        for name, n in counts.items():
            print(f"{name:28} {n:5} walks")
        rng = random.Random(2)
        cases = dict(HOSTILE)
        cases |= {f"generated {n} rules": generated(rng, n, 4) for n in (5, 10, 20, 40, 80, 160)}
        for i in range(options.growing):
            name, grammar = growing(rng, i, 2 ** (1 + i // 11 % 10) + rng.randrange(2))
            c = cost(vocabulary, grammar, rng, 20)
            grown[name].append(c)
        for name, found_costs in grown.items():
            worst = {key: max(c[key] for c in found_costs) for key in ("compile", "step", "MiB")}
            costs[f"growing: {name}"] = worst
            print(
                f"{len(found_costs):4} of {name:24} compile {worst['compile']:6.3f} s  step {worst['step']:6.3f} s"
                f"  {worst['MiB']:4} MiB  {sum(bool(c['end']) for c in found_costs)} ended by limits"
            )
        for name, grammar in cases.items():
            costs[name] = c = cost(vocabulary, grammar, rng)
            print(
                f"{name:28} compile {c['compile']:6.3f} s  step {c['step']:6.3f} s  {c['steps']:4} steps"
                f"  {c['MiB']:4} MiB  {c['end']}"
            )
    result = {
        "walks": sum(counts.values()),
        "growing": options.growing,
        "differ": differ,
        "past_limits": costly,
        "slowest_compile_s": round(max(c["compile"] for c in costs.values()), 3),
        "slowest_step_s": round(max(c["step"] for c in costs.values()), 3),
        "most_mib": max(c["MiB"] for c in costs.values()),
    }
    print(json.dumps(result))
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
