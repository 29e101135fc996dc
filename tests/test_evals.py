"""The evaluation tasks: their documents, which answers are right, perplexity, and `pyllama-long eval`."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pyllama_long import cli, demo, filler
from pyllama_long.cli.eval_options import choose_phrasings
from pyllama_long.evals import EvalError, grid, plot
from pyllama_long.evals.documents import Document, Needle, Retrieval
from pyllama_long.evals.haystack import Haystack
from pyllama_long.evals.perplexity import Perplexity, measure, score_end
from pyllama_long.evals.phrasings import PAIRS, PHRASINGS, Phrasing
from pyllama_long.evals.prompt import ANSWER_TOKENS, Prompt
from pyllama_long.evals.retrieval import is_right
from pyllama_long.rope import RopeError

if TYPE_CHECKING:
    from llama_cpp import Llama

    from pyllama_long import LongLlama

HAYSTACK = Haystack.of_filler()
FORMS = {phrasing.name: phrasing for phrasing in PHRASINGS}
COLUMNS = ["rope", "plan", "length", "depth", "samples", "accuracy", "share_of_keys", "seconds"]


@pytest.fixture(scope="module")
def prompt(llm: LongLlama) -> Prompt:
    return Prompt(llm)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(filler.sentences()[:300]))
    return path


def task(pairs: int | None = None, depths: int = 5, samples: int = 3, seed: int = 0) -> Retrieval:
    return Retrieval(HAYSTACK, PHRASINGS if pairs is None else PAIRS, depths, samples, pairs, seed)


def documents(needles: Retrieval, prompt: Prompt, length: int) -> list[Document]:
    return [needles.build(prompt, length, outline) for outline in needles.outlines(prompt, length)]


# ---- the haystack ----


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


# ---- documents ----


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
    with pytest.raises(EvalError, match="does not show"):
        Prompt(llm)
    monkeypatch.setitem(llm.metadata, name, "{{ raise_exception('no') }}")
    with pytest.raises(EvalError, match="cannot be used: no"):
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


# ---- answers ----


@pytest.mark.parametrize(
    ("form", "key", "value", "answer", "right"),
    [
        ("code", "apple", "01234", " The code for apple is 01234.", True),
        ("code", "apple", "01234", "It is 1234.", False),
        ("code", "apple", "01234", "01234 or 5", False),
        ("code", "apple", "01234", "0 1 2 3 4", False),
        ("code", "apple", "01234", "", False),
        ("code", "a-7", "01234", "The code for A-7 is 01234.", True),
        ("code", "7", "77777", "77777", False),
        ("pass-word", "apple", "river", "The password of the apple is River.", True),
        ("pass-word", "apple", "river", "The password of the apple is rivers.", False),
        ("pass-word", "river-stone", "river", "The password of the river-stone is lamp.", False),
        ("pass-word", "apple", "river", "It is river-bed.", False),
    ],
)
def test_which_answers_are_right(form: str, key: str, value: str, answer: str, right: bool) -> None:
    assert is_right(answer, Needle(FORMS[form], key, value, 0.5)) is right


# ---- perplexity ----


def test_perplexity_is_that_of_upstream(llm: LongLlama, upstream: Llama) -> None:
    windows = Perplexity(" ".join(filler.sentences()), (200, 400), windows=2, last=100)
    seen: list[tuple[int, int]] = []
    [row] = measure(windows, llm, 400, lambda i, n: seen.append((i, n)))
    assert seen == [(0, 2), (1, 2)] and row["samples"] == 2 and row["depth"] is row["accuracy"] is None
    logprobs = []
    for i in range(2):
        ids = windows.window(llm, 400, i)
        assert len(ids) == 400 and ids[0] == llm.token_bos()
        upstream.reset()  # type: ignore[no-untyped-call]
        upstream.eval(ids.tolist())
        logits = np.asarray(upstream.scores[:400], np.float64)
        for place in range(300, 400):
            row_before = logits[place - 1]
            logprobs.append(row_before[ids[place]] - np.logaddexp.reduce(row_before))
    assert row["perplexity"] == pytest.approx(np.exp(-np.mean(logprobs)), rel=2e-3)
    assert 2 < row["perplexity"] < 1000


def test_windows_of_all_lengths_end_at_the_same_places(llm: LongLlama) -> None:
    windows = Perplexity(" ".join(filler.sentences()), (200, 400, 10**6), last=100, seed=3)
    ends = [windows.window(llm, 400, i)[-199:].tolist() for i in range(5)]
    assert ends == [windows.window(llm, 200, i)[1:].tolist() for i in range(5)]
    assert len({tuple(end) for end in ends}) == 5
    with pytest.raises(EvalError, match="tokens only"):
        windows.window(llm, 10**6, 0)
    with pytest.raises(EvalError, match="too few to predict the last 100"):
        windows.window(llm, 101, 0)


def test_what_is_scored_is_the_tail_of_a_plan(demo_model: str) -> None:
    from pyllama_long import LongLlama

    found = {}
    for plan in ("exact", "prefill: sinks(4)+window(64) | tail: exact", "sinks(4)+window(64)"):
        model = LongLlama(demo_model, n_ctx=512, attention=plan, precision="f32")
        ids = Perplexity(" ".join(filler.sentences()), (512,), last=100).window(model, 512, 0)
        found[plan] = score_end(model, ids, 100)
        assert model.n_tokens == 511
        model.close()
    assert len({round(value, 3) for value in found.values()}) == 3


# ---- the grid ----


def test_lengths_in_tokens_and_in_times_the_trained_length() -> None:
    assert grid.parse_lengths("4x, 1x,512,0.5x,700,2k,1.5K", 512) == (256, 512, 700, 1536, 2048)
    for text, n_train, message in (
        ("1x", 0, "in tokens"),
        ("0", 512, "is not from 1"),
        ("4q", 512, "no length"),
    ):
        with pytest.raises(EvalError, match=message):
            grid.parse_lengths(text, n_train)


def test_all_policies_are_those_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    known = grid.policies(["all"], 512, [512, 2048])
    assert {"native", "yarn", "dca+yarn", "rerope+logn"} <= set(known) <= set(grid.POLICIES)
    monkeypatch.setattr(grid, "POLICIES", ("native", "spiral"))
    assert grid.policies(["yarn", "all", "native"], 512, [512]) == ("yarn", "native")
    with pytest.raises(RopeError, match="spiral"):
        grid.policies(["spiral"], 512, [512])


# ---- the command ----


def report(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    """Runs `eval` and returns its JSON line, the last one."""
    assert cli.run(["eval", *arguments]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out.rstrip().splitlines()[-1])
    assert found["task"] == arguments[0] and found["trained_length"] == 512
    assert all(list(row)[:8] == COLUMNS for row in found["rows"])
    return found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hay"], "known: needle, pairs, perplexity"),
        (["perplexity"], "needs --text"),
        (["perplexity", "--text", "x", "--samples", "3"], "--samples belongs to needle and pairs, not to"),
        (["needle", "--windows", "3"], "--windows belongs to perplexity"),
        (["pairs", "--phrasings", "code"], "--phrasings belongs to needle"),
        (["needle", "--phrasings", "code,cod"], "unknown phrasing 'cod'; known: pass-key"),
        (["needle", "--lengths", "4y"], "--lengths: '4y' is no length"),
        (["needle", "--depths", "0"], "--depths"),
        (["needle", "--rope", "spiral"], "unknown policy 'spiral'"),
        (["needle", "--attention", "topk(4)"], "unknown part 'topk'"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert cli.run(["eval", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err and printed.err.count("\n") == 1


def test_help_has_examples() -> None:
    shown = CliRunner().invoke(cli.app, ["eval", "--help"]).output
    assert "Examples" in shown and "pyllama-long eval needle" in shown


def test_needles(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--lengths", "1x,2x", "--depths", "2", "--samples", "4", "--phrasings", "pass-key,code"]
    assert cli.run(["eval", "needle", *options, "--attention", "skim"]) == 0
    table, *_, line = capsys.readouterr().out.rstrip().splitlines()
    assert "512 (1x)" in table and "1,024 (2x)" in table
    rows = json.loads(line)["rows"]
    assert [(row["length"], row["depth"], row["samples"]) for row in rows] == [
        (n, depth, 4) for n in (512, 1024) for depth in (0.0, 1.0)
    ]
    assert [row["rope_used"] for row in rows] == ["native"] * 2 + ["rerope(128)+logn"] * 2
    assert all((row["rope"], row["plan"]) == ("auto", "skim") for row in rows)
    for row in rows:
        right, asked = np.sum(list(row["phrasings"].values()), axis=0)
        assert asked == 4 and row["accuracy"] == right / 4 and set(row["phrasings"]) <= {"pass-key", "code"}
    assert sum(row["accuracy"] for row in rows[:2]) > 0.5
    assert rows[0]["share_of_keys"] == 1.0 and 0.5 < rows[2]["share_of_keys"] < 1.0
    assert rows[0]["seconds"] == rows[1]["seconds"] > 0


def test_pairs_and_a_policy_that_is_refused(capsys: pytest.CaptureFixture[str], book: Path) -> None:
    options = ["--lengths", "1x", "--depths", "2", "--samples", "1", "--pairs", "4", "--text", str(book)]
    options += ["--rope", "native", "--rope", "dca", "--attention", "upstream"]
    found = report(capsys, "pairs", *options)
    rows = [row for row in found["rows"] if row["rope"] == "native"]
    assert [(row["depth"], row["samples"], row["share_of_keys"]) for row in rows] == [
        (0.0, 1, None),
        (1.0, 1, None),
    ]
    [refused] = [row for row in found["rows"] if row["rope"] == "dca"]
    assert refused["accuracy"] is None and "cannot run the RoPE policy dca" in refused["error"]
    assert report(capsys, "pairs", *options[:-6], "--lengths", "60", code=1)["rows"][0]["samples"] == 0


def test_perplexity(capsys: pytest.CaptureFixture[str], book: Path) -> None:
    options = ["--text", str(book), "--lengths", "0.5x,2x,99x", "--windows", "2", "--last", "64"]
    assert cli.run(["eval", "perplexity", *options, "--rope", "yarn", "--json"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    short, long, refused = json.loads(printed)["rows"]
    assert (short["depth"], short["accuracy"], short["samples"]) == (None, None, 2)
    assert (short["rope_used"], long["rope_used"]) == ("yarn(1)", "yarn(2)")
    assert 1 < long["perplexity"] < 1000 and long["perplexity"] != short["perplexity"]
    assert "give a longer one" in refused["error"] and "perplexity" not in refused


def test_ctrl_c_prints_what_is_finished(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, done = grid.run, list[grid.Cell]()

    def run(cell: grid.Cell, *arguments: Any) -> list[grid.Row]:
        if done:
            raise KeyboardInterrupt
        done.append(cell)
        return real(cell, *arguments)

    monkeypatch.setattr(grid, "run", run)
    options = ["--lengths", "512,600", "--depths", "1", "--samples", "1"]
    found = report(capsys, "needle", *options, code=130)
    assert [row["length"] for row in found["rows"]] == [512]


def test_phrasings_are_chosen_by_name() -> None:
    assert choose_phrasings("all") == PHRASINGS
    chosen: tuple[Phrasing, ...] = choose_phrasings("room,code,room")
    assert [phrasing.name for phrasing in chosen] == ["room", "code"]


# ---- drawing -----------------------------------------------------------------------------------------------


def test_what_was_measured_is_drawn(tmp_path: Path) -> None:
    row = {"plan": "exact", "samples": 2}
    rows: list[dict[str, Any]] = [
        {**row, "rope": "native", "length": 512, "accuracy": 1.0, "perplexity": 20.0},
        {**row, "rope": "native", "length": 1024, "accuracy": 0.0, "perplexity": 900.0},
        {**row, "rope": "yarn", "length": 1024, "accuracy": None, "error": "no"},
    ]
    for task in ("needle", "perplexity"):
        plot.write_plot(tmp_path / f"{task}.png", task, rows, 512)
        assert (tmp_path / f"{task}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(EvalError, match=r"x\.svg does not end in \.png"):
        plot.check_plot(Path("x.svg"))


def test_lengths_that_nobody_asked_for_end_with_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    from pyllama_long.cli.eval_view import View

    cells = grid.cells(["auto"], ["auto"], [512, 2048, 819_200])
    for bounded, allowed in ((True, {512, 2048}), (False, {512, 2048, 819_200})):
        view = View(cells, bounded)
        assert view.begin(cells[0])
        view.estimate(1.0, 10)
        assert view.allowed == allowed
        said = " ".join(capsys.readouterr().err.split())
        assert "about 4 hours in all" in said
        assert ("819,200 tokens are left out; --lengths 1x,4x,16x,32x,100x takes all" in said) == bounded
        assert view.begin(cells[2]) != bounded


def test_answers_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "answers.json"
    options = ["--lengths", "512", "--samples", "2", "--depths", "2", "--answers", str(path)]
    assert cli.run(["eval", "needle", *options]) == 0
    printed = capsys.readouterr()
    answers = json.loads(path.read_text())
    assert len(answers) == 4 and all(answer["length"] == 512 for answer in answers)
    for answer in answers:
        assert answer["value"] in answer["needle"] and answer["right"] == (
            answer["value"] in answer["answer"]
        )
    assert "n = 4 questions per figure, 2 at each depth: 0%, 100%" in printed.out
    assert "auto at 512: RoPE native, attention exact" in printed.out
    assert "1/1: auto, auto, 512" in printed.err
    assert cli.run(["eval", "needle", "--answers", str(tmp_path / "none" / "a.json")]) == 1


def test_no_key_looks_like_code() -> None:
    text = " ".join(f"{w} class return lambda import public string" for w in "abcd efgh ijkl mnop".split())
    words = "".join(f" {a}{b}{a}{b}" for a in "bdfgklmnprst" for b in "aeiou")
    found = Haystack.of_text(f"{text}. {words}.")
    assert not {"class", "return", "lambda", "import", "public", "string"} & set(found.words)
