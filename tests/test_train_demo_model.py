"""scripts/train_demo_model.py: its data without torch, and a few steps of a tiny model with it."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import train_demo_model
from minute import MINUTE, make_books, with_branches
from train_demo import corpus as corpora
from train_demo import export, model, needles
from train_demo.corpus import Corpus, Sentences
from train_demo.errors import TrainError, need
from train_demo.grow import grow_rows, grow_tokenizer
from train_demo.model import Config
from train_demo.tasks import Tasks
from train_demo.writer import ANSWER, Writer

CHATS = {f"chat_{chat.__name__}": chat for chat, _ in needles.MIXTURE}


def make(tasks: Tasks, name: str, n: int) -> Any:
    return CHATS[name](tasks, n) if name in CHATS else getattr(tasks, name)(n)


def answers_of(out: Writer) -> list[list[int]]:
    """The tokens of each answer."""
    whole = groupby(zip(out.ids, out.weights, strict=True), lambda pair: pair[1] == ANSWER)
    return [[token for token, _ in pairs] for is_answer, pairs in whole if is_answer]


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_books(tmp_path_factory.mktemp("corpus") / "books")


@pytest.fixture(scope="module")
def corpus(books: Path) -> Corpus:
    pytest.importorskip("tokenizers", reason="the tokenizer of the trainer is made with it")
    return corpora.prepare(books, n_vocab=400)


@pytest.fixture
def tasks(corpus: Corpus) -> Tasks:
    return Tasks(corpus, corpus.train, seed=1)


# ---- without torch -----------------------------------------------------------------------------------------


def test_clean_takes_headers_and_wrapping_away() -> None:
    text = "junk\n*** START OF THIS BOOK ***\nmore junk\n\n“It’s\r\nlong” — _so_\tthere.\n\n\nNew   one…\n\n"
    text += "End of Project Gutenberg's book"
    assert corpora.clean(text) == '"It\'s long" -- so there.\nNew one...\n'
    assert corpora.clean("verse one\nverse two\n") == "verse one\nverse two\n"


def test_sentences_are_found_in_order(corpus: Corpus, books: Path) -> None:
    sentences = corpus.train.sentences
    first = (books / "one.txt").read_text().split(". ")[0] + "."
    assert corpus.tokenizer.decode(sentences[0]) == " " + first
    assert len(sentences) > 2500 and sentences.start[-1] == len(sentences.flat)


def test_the_corpus_survives_its_files(corpus: Corpus, tmp_path: Path) -> None:
    corpus.save(tmp_path)
    again = Corpus.load(tmp_path)
    assert again.tokenizer.to_str() == corpus.tokenizer.to_str()
    for a, b in ((again.train, corpus.train), (again.held, corpus.held)):
        assert a.words == b.words and np.array_equal(a.tokens, b.tokens)
        assert isinstance(a.sentences, Sentences) and a.sentences[7] == b.sentences[7]


def test_nothing_held_out_is_trained_on(corpus: Corpus, books: Path) -> None:
    assert not set(corpus.train.words) & set(corpus.held.words)
    text = corpus.tokenizer.decode(corpus.train.tokens.tolist())
    assert (books / "heldout-three.txt").read_text()[:60] not in text
    assert (books / "one.txt").read_text()[:60] in text


def test_without_a_held_out_file_the_ends_are(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 200_000)
    texts, held = corpora.read_folder(tmp_path)
    assert abs(len(held) - 2000) < 5 and len(texts[0]) + len(held) >= 200_000


def test_too_little_text_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="less than 100,000 characters"):
        corpora.read_folder(tmp_path / "none")


def test_the_tokenizer_splits_digits_and_ends_with_the_marks(corpus: Corpus) -> None:
    tok = corpus.tokenizer
    assert tok.encode("7041").tokens == list("7041")
    assert [tok.id_to_token(396 + i) for i in range(4)] == list(corpora.MARKS)
    for text in ("Hello  world\n\n\tx", "caf\u00e9 \u4f60\u597d \U0001f600", "a\r\nb"):
        assert tok.decode(tok.encode(text).ids) == text


def test_a_vocabulary_grows(corpus: Corpus, books: Path) -> None:
    tok, (texts, _) = corpus.tokenizer, corpora.read_folder(books)
    grown = grow_tokenizer(tok, texts, 430, corpora.MARKS)
    assert [grown.id_to_token(i) for i in range(396)] == [tok.id_to_token(i) for i in range(396)]
    assert [grown.id_to_token(426 + i) for i in range(4)] == list(corpora.MARKS)
    before, after = tok.encode(texts[0]).ids, grown.encode(texts[0]).ids
    assert len(after) < len(before) and max(after) > 396 and grown.decode(after) == texts[0]
    assert len(grown.encode("<|im_end|>").ids) == 1
    with pytest.raises(TrainError, match="give that as --vocab"):
        grow_tokenizer(tok, ["one two three " * 9], 1000, corpora.MARKS)


def test_a_model_brings_its_tokenizer(corpus: Corpus, tmp_path: Path) -> None:
    corpus.save(tmp_path)
    weights = {name: np.zeros(shape, np.float32) for name, shape in model.shapes(MINUTE).items()}
    export.write(tmp_path / "model.gguf", "q8_0", weights, MINUTE, tmp_path / "tokenizer.json")
    read = corpora.read_tokenizer(tmp_path / "model.gguf")
    text = "Hello  world\n\n\tx 7041 caf\u00e9 " + corpus.tokenizer.decode(corpus.train.tokens[:400].tolist())
    assert (
        read.encode(text).ids == corpus.tokenizer.encode(text).ids
        and read.decode(read.encode(text).ids) == text
    )
    assert [read.id_to_token(396 + i) for i in range(4)] == list(corpora.MARKS)
    assert read.encode("<|im_end|>").ids == corpus.tokenizer.encode("<|im_end|>").ids


@pytest.mark.parametrize(
    ("word", "others"),
    [
        ("codecs", {"codec", "codecing"}),
        ("reversing", {"reverse", "reversed"}),
        ("walks", {"walk", "walked", "walking"}),
    ],
)
def test_a_word_has_other_forms(word: str, others: set[str]) -> None:
    found = corpora.forms(word)
    assert others <= set(found) and word not in found and all(other[:2] == word[:2] for other in found)


def test_other_forms_of_an_answer_stand_around_it(tasks: Tasks) -> None:
    lures = [tasks.tok.decode(ids) for _ in range(20) for ids in tasks.lures(["reversing"], 400)]
    said = {word.strip(".,") for lure in lures for word in lure.split()}
    assert {"reverse", "reversed"} & said and "reversing" not in said
    assert all(lure.startswith(" ") for lure in lures)
    kin = [needles.kin(tasks, 8) for _ in range(20)]
    assert any(a in corpora.forms(b) for words in kin for a in words for b in words)


def test_new_tokens_are_near_their_pieces_and_apart(corpus: Corpus, books: Path) -> None:
    tok = grow_tokenizer(corpus.tokenizer, corpora.read_folder(books)[0], 430, corpora.MARKS)
    old = np.random.default_rng(0).standard_normal((400, 64)).astype(np.float32)
    rows = grow_rows(old, tok, 4)
    assert np.array_equal(rows[:396], old[:396]) and np.array_equal(rows[426:], old[396:])
    new = rows[396:426]
    assert 0.7 < new.std() / old.std() < 1.3
    unit = new / np.linalg.norm(new, axis=1, keepdims=True)
    assert (np.triu(unit @ unit.T, 1) < 0.95).all()
    text = corpus.tokenizer.encode(tok.decode([396])).ids  # the pieces of the first new token
    near = [float(old[i] @ new[0] / np.linalg.norm(old[i]) / np.linalg.norm(new[0])) for i in text]
    assert len(text) > 1 and min(near) > 0.2


@pytest.mark.parametrize("name", ["passkey", "pairs", "copy", "repeat", "prose", *CHATS])
def test_tasks_fit_their_size(tasks: Tasks, name: str) -> None:
    for n in (96, 200, 500):
        for _ in range(20):
            out = make(tasks, name, n)
            assert len(out.ids) == len(out.weights) == len(out.kept) > 20
            assert name in CHATS or len(out.ids) <= n + 250  # long needles in so small a vocabulary
            assert out.ids[0] == tasks.bos and out.kept[0]
            assert min(out.ids) >= 0 and max(out.ids) < tasks.tok.get_vocab_size()


@pytest.mark.parametrize("name", ["passkey", "chat_facts", "chat_pairs", "chat_two_hops"])
def test_an_answer_stands_in_what_is_kept_before_it(tasks: Tasks, name: str) -> None:
    for _ in range(50):
        out = make(tasks, name, 400)
        answers = [tasks.tok.decode(ids) for ids in answers_of(out)]
        first = out.weights.index(ANSWER)
        before = tasks.tok.decode([i for i, kept in zip(out.ids[:first], out.kept, strict=False) if kept])
        assert answers and all(answer.strip() in before for answer in answers), (answers, before)
        assert not any(kept for kept, w in zip(out.kept, out.weights, strict=True) if w == ANSWER)


def test_what_is_counted_comes_that_often(tasks: Tasks) -> None:
    for _ in range(20):
        out = make(tasks, "chat_counting", 300)
        text, asked = tasks.tok.decode(out.ids).split("How many letters came for ")
        said = tasks.tok.decode(answers_of(out)[0])
        assert text.count(f"A letter came for {asked.split('?')[0]}.") == int(said)


@pytest.mark.parametrize("name", ["passkey", "pairs", *CHATS])
def test_pieces_are_tokenized_as_the_whole_text_is(tasks: Tasks, name: str) -> None:
    for _ in range(40):
        ids = make(tasks, name, 300).ids
        text = tasks.tok.decode(ids, skip_special_tokens=False)
        assert tasks.tok.encode(text).ids == ids


def test_batches_are_full_and_repeatable(corpus: Corpus) -> None:
    a, b = (Tasks(corpus, corpus.train, seed=3) for _ in range(2))
    for phase in (0, 1):
        a.phase = b.phase = phase
        (ids, weights, kept), again = a.batch(6, 161, 0.4), b.batch(6, 161, 0.4)
        assert ids.shape == weights.shape == kept.shape == (6, 161)
        assert np.array_equal(ids, again[0])
        assert np.array_equal(weights, again[1])
        assert np.array_equal(kept, again[2])


@pytest.mark.parametrize(("plain", "phase", "low", "high"), [(1, 0, 60, 60), (0.75, 1, 36, 54), (0, 0, 0, 0)])
def test_as_much_is_prose_as_is_asked_for(
    corpus: Corpus, plain: float, phase: int, low: int, high: int
) -> None:
    tasks = Tasks(corpus, corpus.train, seed=3, plain=plain)
    tasks.phase = phase
    _, weights, kept = tasks.batch(60, 161)
    prose = (weights == 1).all(1) & (kept.sum(1) == 1)  # only BOS is kept
    assert low <= prose.sum() <= high


def test_a_missing_package_is_named_with_its_command() -> None:
    with pytest.raises(TrainError, match=r'pip install "no-such-package>=1"'):
        need("no-such-package", "1")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n_head": 3}, "n_embd must be a multiple of n_head"),
        ({"n_ff": 100}, "multiples of 32"),
        ({"n_ctx": 64}, "at least 128"),
    ],
)
def test_impossible_shapes_are_said(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainError, match=said):
        dataclasses.replace(MINUTE, **wrong)


# ---- with torch --------------------------------------------------------------------------------------------


@pytest.fixture
def trainer(corpus: Corpus, tmp_path: Path) -> Callable[..., Any]:
    """A trainer of a tiny model that keeps its files in tmp_path."""
    pytest.importorskip("torch", minversion="2.9", reason="training needs it")
    from train_demo.train import Settings, Trainer

    def make(steps: int, config: Config = MINUTE, **settings: Any) -> Any:
        how = Settings(steps=steps, batch=2, compile=False, threads=1, **settings)
        return Trainer(tmp_path, corpus, config, how, say=lambda line: None)

    return make


def test_the_structured_start_finds_what_came_before(corpus: Corpus) -> None:
    torch = pytest.importorskip("torch", minversion="2.9", reason="training needs it")
    c = Config()
    params, tables = model.initial(c), model.make_tables(c, 128)
    piece = torch.randint(0, 3068, (4, 60), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([piece, piece], 1)
    with torch.no_grad():
        logits = model.forward(params, ids, tables, c)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    assert loss[:, 63:].mean() < loss[:, :59].mean() - 0.2


@pytest.mark.parametrize("branches", ["", "16,24,160:1,1,2"])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(trainer: Callable[..., Any], branches: str) -> None:
    config, far = (with_branches(branches), 0.0) if branches else (MINUTE, 0.5)
    whole = trainer(6, config, far=far)
    losses = [whole.step() for _ in range(6)]
    first = trainer(6, config, far=far)
    assert [first.step() for _ in range(3)] == losses[:3]
    first.save()
    second = trainer(6, config, far=far)
    second.resume()
    assert [second.step() for _ in range(3)] == losses[3:]
    assert second.state.tokens == whole.state.tokens == 6 * 2 * MINUTE.n_ctx
    assert len(set(losses)) == 6


def test_a_model_goes_on_with_a_grown_vocabulary(
    trainer: Callable[..., Any], corpus: Corpus, books: Path, tmp_path: Path
) -> None:
    from train_demo.train import Settings, Trainer

    small = trainer(2).weights()
    corpus.save(tmp_path / "small")
    more = corpora.prepare(books, n_vocab=430, tokenizer=tmp_path / "small" / "tokenizer.json")
    config = dataclasses.replace(MINUTE, n_vocab=430)
    run = Trainer(tmp_path, more, config, Settings(steps=2, batch=2, compile=False, threads=1), say=print)
    run.start_from(small)
    assert np.array_equal(run.weights()["token_embd"][:396], small["token_embd"][:396])
    assert np.isfinite(run.step())
    with pytest.raises(TrainError, match="has no token_embd of shape"):
        trainer(2).start_from(run.weights())


def test_ctrl_c_keeps_a_checkpoint(trainer: Callable[..., Any], tmp_path: Path) -> None:
    run = trainer(1000)
    run.say = lambda line: signal.raise_signal(signal.SIGINT)
    assert run.run() is False
    assert 0 < run.state.step < 1000 and (tmp_path / "checkpoint.pt").is_file()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert " left" in run.progress() and f"step {run.state.step}" in run.progress()


def test_resume_says_what_is_missing_or_does_not_fit(
    trainer: Callable[..., Any], corpus: Corpus, tmp_path: Path
) -> None:
    with pytest.raises(TrainError, match="nothing to resume"):
        trainer(2).resume()
    trainer(2).save()
    from train_demo.train import Settings, Trainer

    other = Trainer(tmp_path, corpus, dataclasses.replace(MINUTE, n_ff=64), Settings(compile=False))
    with pytest.raises(TrainError, match="another shape"):
        other.resume()


def test_the_command_line_ends_with_files_that_hold_the_weights(
    books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch", minversion="2.9", reason="training needs it")
    pytest.importorskip("tokenizers", reason="the tokenizer of the trainer is made with it")

    numbers = {"vocab": MINUTE.n_vocab, **MINUTE.as_dict()}
    for name in ("n_vocab", "rope_base", "rms_eps", "segments", "rates"):
        numbers.pop(name)
    shape = [word for name, n in numbers.items() for word in ("--" + name.replace("_", "-"), str(n))]
    out = tmp_path / "run"
    options = [
        str(books),
        "--out",
        str(out),
        "--steps",
        "2",
        "--batch",
        "2",
        *shape,
        "--no-compile",
        "--threads",
        "1",
    ]
    assert train_demo_model.main(options) == 0
    assert "held_loss" in capsys.readouterr().out
    assert train_demo_model.main([*options, "--resume", "--steps", "3"]) == 0

    kept = torch.load(out / "checkpoint.pt", weights_only=True)["params"]
    for kind, error in (("f16", 1e-3), ("q8_0", 8e-3)):
        reader = gguf.GGUFReader(out / f"model-{kind}.gguf")
        assert reader.fields["tokenizer.ggml.pre"].contents() == "qwen2"
        assert reader.fields["tokenizer.ggml.eos_token_id"].contents() == MINUTE.n_vocab - 2
        there = {
            t.name.removesuffix(".weight"): gguf.quants.dequantize(t.data, t.tensor_type)
            for t in reader.tensors
        }
        assert {name: value.shape for name, value in there.items()} == model.shapes(MINUTE)
        for name, value in there.items():
            want = kept[name].numpy()
            if name.endswith(
                ("attn_q", "attn_k")
            ):  # row 2 i of a head holds the first of pair i, 2 i + 1 the second
                heads = value.reshape(-1, MINUTE.head_dim // 2, 2, MINUTE.n_embd)
                value = np.concatenate([heads[:, :, 0], heads[:, :, 1]], 1).reshape(want.shape)
            assert np.abs(value - want).max() <= error * np.abs(want).max(), name


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", minversion="2.9", reason="training needs it")
    assert train_demo_model.main([str(tmp_path), "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("train_demo_model: error:") and said.count("\n") == 1
