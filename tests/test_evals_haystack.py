"""Words and sentences for the documents of evals."""

from __future__ import annotations

import itertools
import random

import pytest
from eval_tasks import HAYSTACK

from pyllama_long import filler
from pyllama_long.evals import EvalError
from pyllama_long.evals.haystack import Haystack


def test_keys_are_words_of_the_text_and_then_two_of_them() -> None:
    keys = list(itertools.islice(HAYSTACK.keys(random.Random(1)), 20_000))
    n = len(HAYSTACK.words)
    assert n > 500 and len(set(keys)) == len(keys)
    assert set(keys[:n]) == set(HAYSTACK.words) and all(4 <= len(w) <= 9 and w.islower() for w in keys[:n])
    assert all(set(key.split("-")) < set(HAYSTACK.words) and key.count("-") == 1 for key in keys[n:])
    text = " ".join(filler.sentences())
    assert all(f" {word}" in text for word in keys[:50])


def test_a_text_of_the_user_as_haystack() -> None:
    words = "".join(f" {a}{b}{a}{b}" for a in "bdfgklmnprst" for b in "aeiou")
    found = Haystack.of_text(f"One is here.  Two\nis\nthere! And\n\nmore{words} {'many ' * 90}")
    assert found.sentences[:3] == ("One is here.", "Two is there!", "And")
    assert max(len(sentence.split()) for sentence in found.sentences) == 60
    assert "many" not in found.words and "tutu" in found.words
    n = len(found.sentences)
    given = list(itertools.islice(found.stream(random.Random(0)), 2 * n))
    assert given[:n] == given[n:] and sorted(given[:n]) == sorted(found.sentences)
    with pytest.raises(EvalError, match="words that can be keys"):
        Haystack.of_text("A short text has few words.")


def test_no_key_looks_like_code() -> None:
    text = " ".join(f"{w} class return lambda import public string" for w in "abcd efgh ijkl mnop".split())
    words = "".join(f" {a}{b}{a}{b}" for a in "bdfgklmnprst" for b in "aeiou")
    found = Haystack.of_text(f"{text}. {words}.")
    assert not {"class", "return", "lambda", "import", "public", "string"} & set(found.words)
