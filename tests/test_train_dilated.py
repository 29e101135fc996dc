"""Training with dilated attention: the matrix, the files that carry it, and what LongLlama chooses for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import train_demo_model
from minute import MINUTE, make_books, with_branches
from train_demo import corpus as corpora
from train_demo import dilated, export, model
from train_demo.corpus import Corpus
from train_demo.errors import TrainError
from train_demo.model import Config

from pyllama_long import LongLlama, _native, pattern
from pyllama_long.gguf_file import read_header
from pyllama_long.hints import read_hints
from pyllama_long.model_info import model_info
from pyllama_long.phase import Phase
from pyllama_long.plan import choose_plan

BRANCHES = [((4, 12, 40), (1, 2, 3)), ((8, 12), (1, 1)), ((3, 7, 32, 64), (1, 2, 4, 8))]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    pytest.importorskip("tokenizers", reason="the tokenizer of the trainer is made with it")
    return corpora.prepare(make_books(tmp_path_factory.mktemp("corpus") / "books"), n_vocab=400)


@pytest.mark.parametrize("n_head_kv", [1, 2, 6])
@pytest.mark.parametrize(("segments", "rates"), BRANCHES)
def test_dilated_attention_is_that_of_the_plan(
    segments: tuple[int, ...], rates: tuple[int, ...], n_head_kv: int
) -> None:
    text = [f"{name}={'/'.join(map(str, n))}" for name, n in (("segments", segments), ("rates", rates))]
    phase = Phase.parse(f"dilated({', '.join(text)})")
    n = 100
    counts = dilated.log_counts(segments, rates, 6, n_head_kv, n)
    assert np.isfinite(counts).any(2).all(), "a row reads nothing"
    for h in range(6):
        number = _native.head_number(h, 6, n_head_kv)
        for p in range(n):
            pos, log_w = _native.phase_keys(phase, p, number)
            want = np.full(n, -np.inf)
            want[pos] = log_w
            assert np.array_equal(np.flatnonzero(np.isfinite(counts[h, p])), pattern.keys(phase, p, number))
            np.testing.assert_allclose(counts[h, p], want, atol=1e-6)
    assert (np.abs(counts[np.isfinite(counts)]) > 0.5).any(), "no key is in two branches"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("128,256", "write segments and rates"),
        ("128,x:1,2", "write segments and rates"),
        ("64,128:1", "2 segments but 1 rates"),
        ("128,64:1,2", "must ascend"),
        ("2,64:1,0", "from 1 to its segment"),
        ("64,128:2,4", "one rate must be 1"),
        ("64,256:1,2", "beyond n_ctx"),
    ],
)
def test_impossible_branches_are_said(text: str, said: str) -> None:
    with pytest.raises(TrainError, match=said):
        with_branches(text)


def test_the_command_line_turns_far_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(train_demo_model, "train", lambda *options: given.append(options[2:4]))
    shape = [str(tmp_path), "--out", str(tmp_path), "--n-layer", "2", "--prose", "0.9"]
    for more, far in (([], 0.6), (["--far", "0"], 0), (["--dilated", "16,40:1,2"], 0)):
        assert train_demo_model.main([*shape, *more]) == 0
        config, settings = given.pop()
        branches = (16, 40), (1, 2)
        assert (config.segments, config.rates) == (branches if "--dilated" in more else ((), ()))
        assert (config.n_layer, settings.prose, settings.far) == (2, 0.9, far)


def test_a_file_carries_its_plan(corpus: Corpus, tmp_path: Path) -> None:
    c = with_branches("16,24,160:1,1,2")
    draw = np.random.default_rng(0)
    tensors = {name: draw.normal(size=shape).astype(np.float32) for name, shape in model.shapes(c).items()}
    corpus.save(tmp_path)
    for config, plan in ((c, "dilated(segments=16/24/160, rates=1/1/2)"), (MINUTE, "exact")):
        file = tmp_path / "model.gguf"
        export.write(file, "f16", tensors, config, tmp_path / "tokenizer.json")
        for found in (read_hints(read_header(file), "llama").dilated, model_info(file).dilated):
            assert str(choose_plan("auto", c.n_ctx, found)[0]) == plan
    back = export.read(file)
    assert all(np.abs(back[name] - tensors[name]).max() < 4e-3 for name in tensors) and len(back) == len(
        tensors
    )


# ---- with torch --------------------------------------------------------------------------------------------


def test_dilated_attention_refuses_to_stand_for_longer_texts(corpus: Corpus, tmp_path: Path) -> None:
    pytest.importorskip("torch", minversion="2.9", reason="training needs it")
    from train_demo.train import Settings, Trainer

    with pytest.raises(TrainError, match="--far 0"):
        Trainer(tmp_path, corpus, with_branches("16:1"), Settings(compile=False, far=0.5))


@pytest.fixture(scope="module")
def sharp() -> Callable[[Config], Any]:
    """Random weights that are large enough for attention to choose."""
    torch = pytest.importorskip("torch", minversion="2.9", reason="training needs it")

    def weights(c: Config) -> dict[str, Any]:
        g = torch.Generator().manual_seed(3)
        return {
            name: torch.randn(shape, generator=g) / shape[-1] ** 0.5 * (4 if name.endswith("_k") else 1)
            if len(shape) > 1
            else torch.ones(shape)
            for name, shape in model.shapes(c).items()
        }

    return weights


def test_one_segment_is_dense_and_each_segment_stands_alone(sharp: Callable[[Config], Any]) -> None:
    torch = pytest.importorskip("torch", minversion="2.9", reason="training needs it")
    ids = torch.randint(0, 400, (2, 160), generator=torch.Generator().manual_seed(0))
    params = sharp(MINUTE)

    def logits(c: Config, of: Any = ids) -> Any:
        return model.forward(params, of, model.make_tables(c, 160), c)

    dense = logits(MINUTE)
    assert (logits(with_branches("160:1")) - dense).abs().max() < 1e-4
    short = logits(with_branches("40:1"))
    assert (short[:, :40] - dense[:, :40]).abs().max() < 1e-4 < (short - dense).abs().max()
    assert (short[:, 80:120] - logits(MINUTE, ids[:, 80:120])).abs().max() < 1e-4
    assert torch.isfinite(logits(with_branches("8,160:1,4"))).all()


@pytest.mark.parametrize("name", ["dense", "far", "dilated"])
def test_compile_sees_one_graph(sharp: Callable[[Config], Any], name: str) -> None:
    torch = pytest.importorskip("torch", minversion="2.9", reason="training needs it")
    c = with_branches("16,24,160:1,1,2") if name == "dilated" else MINUTE
    ids = torch.randint(0, 400, (2, 160), generator=torch.Generator().manual_seed(0))
    window, copies = torch.tensor([50, 90]), torch.tensor([2.0, 30.0])
    far = model.Far(window, copies, ids % 3 == 0) if name == "far" else None
    whole = torch.compile(model.forward, backend="eager", fullgraph=True)
    given = sharp(c), ids, model.make_tables(c, 161), c, far
    assert torch.equal(whole(*given), model.forward(*given))


def test_a_dilated_model_runs_as_it_was_trained(
    sharp: Callable[[Config], Any], corpus: Corpus, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", minversion="2.9", reason="training needs it")
    c = Config(400, 2, 128, 2, 1, 96, 128, segments=(24, 40, 96), rates=(1, 1, 2))
    tensors = {name: tensor.half().float() for name, tensor in sharp(c).items()}
    corpus.save(tmp_path)
    file = tmp_path / "model.gguf"
    export.write(
        file, "f16", {name: t.numpy() for name, t in tensors.items()}, c, tmp_path / "tokenizer.json"
    )
    ids = torch.randint(0, 396, (1, 400), generator=torch.Generator().manual_seed(0))
    want, dense = (
        model.forward(tensors, ids, model.make_tables(each, 400), each)[0].numpy()
        for each in (c, dataclasses.replace(c, segments=(), rates=()))
    )
    options: dict[str, Any] = {
        "n_ctx": 512,
        "rope": "native",
        "precision": "f32",
        "kv_type": "f32",
        "logits_all": True,
    }
    with closing(LongLlama(str(file), **options)) as llm:
        assert str(llm.plan) == "dilated(segments=24/40/96, rates=1/1/2)"
        llm.eval(ids[0].tolist())
        error = np.abs(llm.scores[:400] - want).max()
        share = llm.attention_stats()["share_of_keys"]
    assert error < 0.02 < 1 < np.abs(dense - want).max()
    assert share < 0.25
