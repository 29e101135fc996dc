"""The generated tasks of RULER: exact lengths, the same from the same seed, right answers that the text holds."""

from __future__ import annotations

import string
from collections import Counter
from typing import Any

import pytest

from pyllama_long import LongLlama
from pyllama_long.evals import EvalError, tasks
from pyllama_long.evals.prompt import Prompt
from pyllama_long.evals.question import Exam

_LETTERS = string.ascii_letters + string.digits
_OTHERS = str.maketrans(_LETTERS, _LETTERS[1:] + _LETTERS[0])
NAMES = ("passkey", *tasks.RULER)


@pytest.fixture(scope="module")
def prompt(llm: LongLlama) -> Prompt:
    return Prompt(llm)


def exams(prompt: Prompt, name: str, length: int, seed: int = 0, **options: Any) -> list[Exam]:
    found: Any = tasks.make(name, {**tasks.OPTIONS[name], "samples": 5, **options}, None, (length,), seed)
    return [found.exams.exam(prompt, length, i) for i in range(found.exams.count(prompt, length))]


def body(prompt: Prompt, exam: Exam) -> str:
    """The text with what tasks put before it as an example left out."""
    return prompt.text(exam.tokens).rstrip("\n").rpartition("\n\n")[2]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [700, 5000])
def test_exams_are_exactly_as_long_as_asked_for(prompt: Prompt, name: str, length: int) -> None:
    made = exams(prompt, name, length)
    assert made == exams(prompt, name, length) and len({tuple(exam.tokens) for exam in made}) == len(made)
    assert made[0] != exams(prompt, name, length, seed=1)[0]
    assert made[:1] == exams(prompt, name, length, samples=1)
    each = len(made[0].questions)
    assert 5 <= sum(len(exam.questions) for exam in made) == each * len(made) < 5 + each
    for exam in made:
        assert len(exam.tokens) + max(map(prompt.cost, exam.questions)) == length
        for question in exam.questions:
            assert all(value in body(prompt, exam) for value in question.values)
            assert question.score(f" {question.said}.") == 1.0
            wrong = question.said.translate(_OTHERS)
            assert question.score(f" {wrong}.") == question.score("") == 0.0


@pytest.mark.parametrize("name", [name for name in tasks.RULER if name.startswith("niah")])
def test_each_value_is_hidden_once_under_its_key(prompt: Prompt, name: str) -> None:
    magic = tasks.MAGIC[name]
    for exam in exams(prompt, name, 4000, samples=2):
        text = body(prompt, exam)
        for question in exam.questions:
            keys = question.key.replace(" and ", " ").replace(",", "").split()
            assert len(question.values) == len(keys) * magic.values == magic.queries * magic.values
            for i, value in enumerate(question.values):
                key = keys[i // magic.values]
                said = f"One of the special magic {magic.kind}s for {key} is: {value}."
                assert text.count(said) == text.count(value) == 1
            if question.depth is not None:
                at = text.index(question.values[0]) / len(text)
                assert at == pytest.approx(question.depth, abs=0.06)
        told = text.count("One of the special magic")
        if magic.hay == "needles":
            assert told > 40
        else:
            assert told == max(magic.keys, magic.queries * len(exam.questions)) * magic.values


def test_depths_cover_the_text_evenly(prompt: Prompt) -> None:
    depths = [exam.questions[0].depth for exam in exams(prompt, "niah_single_2", 700, samples=20)]
    counts = Counter(int(5 * (depth or 0)) for depth in depths)
    assert sorted(counts) == [0, 1, 2, 3, 4] and set(counts.values()) <= {3, 4, 5}


def test_variables_are_tracked_to_their_value(prompt: Prompt) -> None:
    for exam in exams(prompt, "vt", 4000, questions=2):
        text = body(prompt, exam)
        pieces = text.replace("VAR ", "").split(".")
        said = [piece.strip().split(" = ") for piece in pieces if " = " in piece]
        assert len(said) == 10
        values: dict[str, str] = {}
        for name, value in said:
            values[name] = values.get(value, value)
        for question in exam.questions:
            [number] = {values[name] for name in question.values}
            assert number.isdigit() and number in question.text
            assert [name for name, value in values.items() if value == number] == list(question.values)


def test_common_words_are_the_most_common(prompt: Prompt) -> None:
    for length in (700, 12_000):
        [exam] = exams(prompt, "cwe", length, samples=1)
        words = body(prompt, exam).split("often.")[-1].split()
        numbers, listed = words[::2], words[1::2]
        assert numbers == [f"{k}." for k in range(1, len(listed) + 1)]
        (*most, (_, next_count)) = Counter(listed).most_common(11)
        assert {word for word, _ in most} == set(exam.questions[0].values)
        assert next_count <= 3 and {count for _, count in most} == (
            {30} if length == 12_000 else {most[0][1]}
        )
        assert most[0][1] >= 3 * next_count


def test_frequent_words_are_the_most_frequent_besides_dots(prompt: Prompt) -> None:
    [exam] = exams(prompt, "fwe", 4000, samples=1)
    words = body(prompt, exam).split("coded words.")[-1].split()
    assert Counter(words).most_common(1)[0][0] == "...."
    counts = Counter(word for word in words if word.strip("."))
    first, second, third, fourth = counts.most_common(4)
    assert (first[0], second[0], third[0]) == exam.questions[0].values
    assert first[1] == pytest.approx(9 / 4 * second[1], rel=0.1) and third[1] > 1.3 * fourth[1]


def test_a_text_that_is_too_short_is_refused_or_asks_less(prompt: Prompt) -> None:
    for name in NAMES:
        with pytest.raises(EvalError, match="tokens are too few"):
            exams(prompt, name, 100)
    assert [len(exam.questions) for exam in exams(prompt, "niah_multikey_3", 1000, samples=10)] == [5, 5]
    assert len(exams(prompt, "niah_multikey_3", 8000, samples=10)) == 1
