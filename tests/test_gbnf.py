"""GBNF in llguidance's Lark: the same tokens as llama.cpp's own sampler, and errors that say where."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing

import pytest
from check_grammars import HOSTILE, WRITTEN, TooCostly, Vocabulary, cost, generated, walk
from llama_cpp import llama_grammar

from pyllama_long.gbnf import to_lark
from pyllama_long.opened import open_vocabulary


@pytest.fixture(scope="module")
def vocabulary(demo_model: str) -> Iterator[Vocabulary]:
    with closing(open_vocabulary(demo_model)) as model:
        yield Vocabulary(model)


@pytest.mark.parametrize("name", WRITTEN)
def test_each_kind_is_as_in_llama_cpp(vocabulary: Vocabulary, name: str) -> None:
    rng = random.Random(name)
    for _ in range(3):
        assert walk(vocabulary, WRITTEN[name], rng, 20) is None


@pytest.mark.parametrize("name", ["ARITHMETIC_GBNF", "CHESS_GBNF", "JSON_ARR_GBNF", "LIST_GBNF"])
def test_grammars_that_are_around(vocabulary: Vocabulary, name: str) -> None:
    grammar = getattr(llama_grammar, name)
    assert walk(vocabulary, grammar, random.Random(7), 20) is None


def test_generated_grammars_are_as_in_llama_cpp(vocabulary: Vocabulary) -> None:
    rng, costly = random.Random(3), 0
    for i in range(60):
        grammar = generated(rng, 1 + i % 5, 1 + i % 3)
        try:
            assert walk(vocabulary, grammar, rng, 12) is None, grammar
        except TooCostly:
            costly += 1
    assert costly <= 2


@pytest.mark.parametrize(
    ("grammar", "text", "whole"),
    [
        ('root ::= [a-z]+ "b"', "aab", True),  # the class must not consume the last letter
        ('root ::= "\\u00e9\\U0001f642"', "é🙂", True),
        ('root ::= [\\u00e9] "\\x41"', "éA", True),
        ('root ::= A a\nA ::= "1"\na ::= "2"', "12", True),  # names that only differ in case
        ('root ::= a-b\na-b ::= "x"', "x", True),
        ('root ::= root "a" | "b"', "baa", True),  # which llama.cpp refuses
        ("root ::= [^a]{2,3}", "\nb", True),
        ('root ::= "a"{2,} "b"', "ab", False),
        ('root ::= [a-z]{3} | "abcd"', "abcd", True),
        ("root ::= .", "ab", False),
        ('root ::= "/" "//" [/] "#" # a comment\n# another', "////#", True),
        ('root ::= [] "a" [^]', "a", True),
        ("root ::= [a\\]\\-^-]+", "]-^a", True),
    ],
)
def test_texts(vocabulary: Vocabulary, grammar: str, text: str, whole: bool) -> None:
    matcher = vocabulary.matcher(grammar)
    tokens = vocabulary.model.tokenize(text.encode(), add_bos=False, special=False)
    taken = matcher.try_consume_tokens(tokens)
    assert (taken == len(tokens) and matcher.is_accepting()) == whole


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("", "no rule called root"),
        ('a ::= "b"', "no rule called root"),
        ('root ::= "a"\nroot ::= "b"', "line 2, column 1: the rule root is defined twice"),
        ('root ::= a\nb ::= "c"', "line 1, column 10: the rule a is not defined"),
        ('root ::= "a\n', "line 1, column 10: this literal has no end"),
        ("root ::= [a", "line 1, column 10: this character class has no end"),
        ('root ::= ("a"', r"expected \) to end a group"),
        ('root ::= "a")', "expected the end of the line"),
        ("root ::= [b-a]", "wrong order"),
        ('root ::= "a"{3,2}', "at least 3 and at most 2"),
        ('root ::= "a"{2001}', "at most 2000 repetitions"),
        ('root ::= "a"{1', "expected } to end a repetition"),
        ("root ::= *", "nothing stands before"),
        ('root ::= "\\q"', r"unknown escape \\q"),
        ('root ::= "\\u12"', "expected 4 hexadecimal digits"),
        ('root ::= "\\ud800"', r"no text holds the character U\+D800"),
        ("root ::= [\\x00]", "no character is in this class"),
        ("root = a", "expected ::= after root"),
        ("root ::= <think>", "the token <think> must be given by its id"),
        ("root ::= <[1]", "expected a token"),
        ("root ::= ä", "expected the end of the line"),
        (f'root ::= {"(" * 300}"a"{")" * 300}', "nested deeper than 200 levels"),
        (f'root ::= "a"{"*" * 300}', "nested deeper than 200 levels"),
        (HOSTILE["200 x 200 x 200"], "multiply to more than 1000000"),
        (HOSTILE["5000 rules in a chain"], "use one another deeper than 1000 levels"),
        (f'root ::= "{"a" * (1 << 18)}"', "longer than 262144 bytes"),
        ('root ::= "\ud800"', "half of a surrogate pair"),
    ],
)
def test_what_cannot_be_read_is_told(grammar: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        to_lark(grammar)
    assert "\n" not in str(error.value)


def test_tokens_by_their_text() -> None:
    def token_id(text: str) -> int:
        if text != "<think>":
            raise ValueError(f"{text} is no token")
        return 7

    assert "<[7]>" in to_lark("root ::= <think>", token_id)
    assert "<[^5,9]>" in to_lark("root ::= !<[5]>", ends=[9])
    with pytest.raises(ValueError, match="line 1, column 10: <a> is no token"):
        to_lark("root ::= <a>", token_id)


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "4000 rules"])
def test_hostile_grammars_are_bounded(vocabulary: Vocabulary, name: str) -> None:
    found = cost(vocabulary, HOSTILE[name], random.Random(1), steps=20)
    # On two busy cores; alone it is a tenth.
    assert found["compile"] < 5 and found["step"] < 2 and found["MiB"] < 200
