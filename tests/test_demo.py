from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllama_long import cli, filler
from pyllama_long.demo import Document, build_document, interview, most_facts, shortest


def words(text: str) -> int:
    """A tokenizer that is fast, with tokens about as short as a real one's."""
    return len(re.findall(r"\d|[^\W\d]{1,4}|[^\w\s]", text))


def body(document: Document) -> str:
    return document.text.partition("numbers.\n")[2]


@settings(max_examples=40, deadline=None)
@given(length=st.integers(600, 20000), n_facts=st.integers(1, 12), seed=st.integers(0, 1000))
def test_a_document_is_as_long_as_asked_for(length: int, n_facts: int, seed: int) -> None:
    document = build_document(words, length, n_facts, seed)
    assert document.n_tokens == words(document.text)
    assert length <= document.n_tokens < length + 150
    assert document == build_document(words, length, n_facts, seed)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), n_facts=st.integers(2, most_facts()))
def test_each_fact_is_there_once_and_nothing_else_has_digits(seed: int, n_facts: int) -> None:
    document = build_document(words, 8000, n_facts, seed)
    text = body(document)
    for fact in document.facts:
        assert text.count(f" {fact.sentence}") == 1
        assert text.count(fact.value) == 1
        assert fact.sentence not in document.tail(fact)
        assert document.prompt(fact).endswith(f"{fact.question}<|im_end|>\n<|im_start|>assistant\n")
        text = text.replace(fact.sentence, "")
    assert not re.search(r"\d", text)
    assert len({fact.word for fact in document.facts}) == n_facts


def test_facts_lie_at_their_depths() -> None:
    document = build_document(words, 20000, 10, 3)
    text = body(document)
    depths = [fact.depth for fact in document.facts]
    assert depths[0] < 0.1 and depths[-1] >= 0.9 and depths == sorted(depths)
    for fact in document.facts:
        assert abs(text.index(fact.sentence) / len(text) - fact.depth) < 0.02
    # The question does not follow the last fact at once.
    last = text.index(document.facts[-1].sentence)
    assert words(text[last:]) > 500


def test_seeds_give_different_documents() -> None:
    first, second = (build_document(words, 3000, 5, seed) for seed in (0, 1))
    assert first.facts != second.facts and first.text[:500] != second.text[:500]


def test_the_shortest_document() -> None:
    least = shortest(words, 10, 3)
    assert build_document(words, least, 10, 3).n_tokens == least
    with pytest.raises(ValueError, match="do not fit"):
        build_document(words, least - 1, 10, 3)


@pytest.mark.parametrize(("length", "n_facts"), [(20, 10), (5000, 0), (5000, most_facts() + 1)])
def test_facts_that_do_not_fit(length: int, n_facts: int) -> None:
    with pytest.raises(ValueError, match="fact"):
        build_document(words, length, n_facts)


def test_filler_is_plain_prose() -> None:
    found = filler.sentences()
    assert len(found) > 1000 and len(set(found)) == len(found)
    for sentence in found:
        assert re.fullmatch(r"[A-Z][A-Za-z ,;:'\-]*[.!?]", sentence), sentence
        assert 5 <= len(sentence.split()) <= 60


def test_filler_without_pydoc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pydoc_data.topics", None)
    filler.sentences.cache_clear()
    try:
        found = filler.sentences()
        assert len(found) > 1000 and all(re.fullmatch(r"[A-Z][a-z ,A-Z]*\.", s) for s in found)
    finally:
        filler.sentences.cache_clear()


def test_the_embedded_model_reads_four_times_its_length(demo_model: str) -> None:
    from pyllama_long import LongLlama

    length = 2048
    with_progress: list[tuple[int, int]] = []
    llm = LongLlama(
        demo_model,
        n_ctx=length + 256,
        attention="skim",
        rope="rerope(128)+logn",
        progress=lambda done, total: with_progress.append((done, total)),
        n_threads=1,
        n_threads_batch=1,
    )

    def count(text: str) -> int:
        return len(llm.tokenize(text.encode(), special=True))

    try:
        found = 0
        for seed in range(2):
            document = build_document(count, length, 10, seed)
            heard: list[str] = []
            reading = interview(llm, document, on_text=heard.append)
            assert "".join(heard).strip() == "".join(answer.text for answer in reading.answers)
            assert {answer.fact for answer in reading.answers} == set(document.facts)
            assert reading.prefill_tps > 0 and reading.decode_tps > 0
            found += reading.found
        assert found >= 17
        assert 0.1 < llm.attention_stats()["share_of_keys"] < 0.9
        assert max(done for done, _ in with_progress) > length
    finally:
        llm.close()


def test_the_command_ends_with_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(["demo", "--length", "1024", "--facts", "5"])
    printed = capsys.readouterr().out.rstrip().splitlines()
    report = json.loads(printed[-1])
    assert code == (0 if report["facts_found"] >= 4.5 else 1)
    assert report["facts"] == 5 and report["trained_length"] == 512
    assert report["document_length"] >= 1024 and report["upstream_document_length"] >= 1024
    assert report["plan"] == "prefill: sinks(4)+window(508) | tail: exact"
    assert report["rope"] == "rerope(128)+logn"
    for key in ("share_of_keys", "prefill_tps", "decode_tps", "upstream_prefill_tps", "upstream_facts_found"):
        assert report[key] >= 0
    assert any("pyllama-long chat -m model.gguf" in line for line in printed)
