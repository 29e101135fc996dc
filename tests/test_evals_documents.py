"""The documents of evals: their length, needles and pairs."""

from __future__ import annotations

from collections import Counter

import pytest
from eval_tasks import FORMS, documents, task

from pyllama_long import LongLlama, demo
from pyllama_long.evals import EvalError
from pyllama_long.evals.prompt import ANSWER_TOKENS, Prompt


@pytest.fixture(scope="module")
def prompt(llm: LongLlama) -> Prompt:
    return Prompt(llm)


def test_the_prompt_is_the_chat_of_the_demo(prompt: Prompt, llm: LongLlama) -> None:
    fact = demo.Fact("apple", "12345", 0.0)
    document = demo.Document("", (fact,), 0)
    assert prompt.text(prompt.tail(fact.question)) == document.tail(fact)
    opening = demo.build_document(lambda text: len(text.split()), 100, 1).text
    [needles] = documents(task(samples=1), prompt, 512)
    assert prompt.head[0] == llm.token_bos() and prompt.stop == []
    start = opening.partition("\n ")[0]
    assert prompt.text(needles.tokens[1:]).startswith(start) and "numbers." in start


def test_models_with_other_templates(llm: LongLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "tokenizer.chat_template"
    monkeypatch.setitem(llm.metadata, name, "{{ bos_token }}[I]{{ messages[0]['content'] | trim }}[/I]")
    chat = Prompt(llm)
    assert chat.text(chat.head) == "<|bos|>[I]" and chat.head.count(llm.token_bos()) == 1
    assert chat.text(chat.tail("Why?")) == "Why?[/I]"
    monkeypatch.setitem(llm.metadata, name, "nothing")
    with pytest.raises(EvalError, match="leaves out the text of message 0"):
        Prompt(llm)
    monkeypatch.setitem(llm.metadata, name, "{{ raise_exception('no') }}")
    with pytest.raises(EvalError, match="refuses these messages: no"):
        Prompt(llm)
    monkeypatch.setitem(llm.metadata, name, "{% for a in range(10 ** 12) %}{% endfor %}")
    with pytest.raises(EvalError, match="cannot be used: "):
        Prompt(llm)
    monkeypatch.delitem(llm.metadata, name)
    plain = Prompt(llm)
    assert plain.head == [llm.token_bos()] and plain.stop == ["\n"]
    assert plain.text(plain.tail("Why?")) == "Question: Why?\nAnswer:"


@pytest.mark.parametrize("pairs", [None, 40, 0])
@pytest.mark.parametrize("length", [512, 1000, 20_000])
def test_a_document_is_as_long_as_asked_for(prompt: Prompt, length: int, pairs: int | None) -> None:
    needles = task(pairs)
    made = documents(needles, prompt, length)
    assert made == documents(needles, prompt, length)
    assert made != documents(task(pairs, seed=1), prompt, length)
    for document in made:
        whole = len(document.tokens) + ANSWER_TOKENS
        tails = [len(prompt.tail(needle.question)) for needle in document.asked]
        assert length - 40 < whole + max(tails) <= length
        text = prompt.text(document.tokens)
        assert [text.count(needle.text) for needle in document.asked] == [1] * len(document.asked)
    for depth in needles.all_depths:
        assert sum(n.depth == depth for document in made for n in document.asked) == needles.samples


def test_needles_lie_at_their_depths(prompt: Prompt) -> None:
    for document in documents(task(depths=11), prompt, 20_000):
        text = prompt.text(document.tokens).partition("numbers.\n")[2]
        for needle in document.asked:
            assert abs(text.index(needle.text) / len(text) - needle.depth) < 0.02
        first, last = document.asked[0], document.asked[-1]
        assert text.startswith(f" {first.text}") and text.endswith(f" {last.text}\n")
    assert task(depths=1).all_depths == (0.5,)


@pytest.mark.parametrize("pairs", [100, 0])
def test_pairs_are_lines_of_one_form(prompt: Prompt, pairs: int) -> None:
    forms = set()
    for document in documents(task(pairs), prompt, 8000):
        lines = prompt.text(document.tokens).splitlines()[2:]
        [form] = {needle.phrasing for needle in document.asked}
        forms.add(form)
        said = [line for line in lines if any(c.isdigit() for c in line)]
        assert len(said) == pairs if pairs else said == lines and len(lines) > 400
        keys = {line.strip(' ",').split('"')[0].split(":")[0].split(" =")[0] for line in said}
        values = {"".join(c for c in line if c.isdigit()) for line in said}
        assert len(keys) == len(values) == len(said) and {len(v) for v in values} == {5}
        for needle in document.asked:
            at = lines.index(needle.text)
            before, after = (sum(map(len, part)) for part in (lines[:at], lines[at + 1 :]))
            assert abs(before / (before + after) - needle.depth) < 0.03
    assert len(forms) == 3


def test_short_documents_hold_fewer_needles(prompt: Prompt) -> None:
    needles = task(depths=9, samples=2)
    made = documents(needles, prompt, 256)
    assert len(made) > 2 and len(documents(needles, prompt, 2048)) == 2
    asked = [needle for document in made for needle in document.asked]
    assert Counter(n.depth for n in asked) == dict.fromkeys(needles.all_depths, 2)
    longer = documents(needles, prompt, 2048)
    assert set(asked) == {needle for document in longer for needle in document.asked}
    with pytest.raises(EvalError, match="90 tokens are too few"):
        needles.outlines(prompt, 90)


def test_phrasings_come_equally_often_and_nothing_is_said_twice(prompt: Prompt) -> None:
    outlines = task(samples=10).outlines(prompt, 4096)
    count = Counter(needle.phrasing.name for outline in outlines for needle in outline.asked)
    assert count == dict.fromkeys(FORMS, 5)
    for outline in outlines:
        said = [text for needle in outline.asked for text in (needle.key, needle.value)]
        assert len(set(said)) == len(said) == 10
    variants = {needle.variant for outline in outlines for needle in outline.asked}
    assert variants == {0, 1}


def test_a_document_of_200_000_tokens(prompt: Prompt) -> None:
    for pairs in (None, 0):
        [document] = documents(task(pairs, samples=1), prompt, 200_000)
        assert 199_800 < len(document.tokens) < 200_000
        assert all(prompt.text(document.tokens).count(needle.text) == 1 for needle in document.asked)
