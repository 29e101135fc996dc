"""Which keys layers read of a text, recorded and drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from pyllama_long import LongLlama, cli, pattern, reads
from pyllama_long.plan import AttentionPlan

N, LAYERS, HEADS = 900, 6, 4
README = str(Path(__file__).parents[1] / "README.md")


@contextmanager
def opened(demo_model: str, plan: str) -> Iterator[LongLlama]:
    with closing(LongLlama(model_path=demo_model, n_ctx=1024, attention=plan, verbose=False)) as llm:
        yield llm


@pytest.mark.parametrize(
    "plan",
    [
        "exact",
        "sinks(4)+window(100)",
        "dilated(segments=64/256, rates=1/4, weight=none)",
        "window(64); dense_layers=2",
    ],
)
def test_a_plan_without_topk_reads_what_it_says(demo_model: str, plan: str) -> None:
    phase = AttentionPlan.parse(plan).prefill
    dense = AttentionPlan.parse(plan).dense_layers
    expected = np.zeros(N)
    for p in range(N):
        for head in range(HEADS):
            expected[pattern.keys(phase, p, head)] += 1 / HEADS
    with opened(demo_model, plan) as llm:
        found = reads.of_text(llm, list(range(300, 300 + N)))
    later = np.arange(N, 0, -1)
    assert list(found.shares) == list(range(LAYERS))
    for layer, share in found.shares.items():
        if "dilated" in plan:  # a key that two branches read counts twice
            assert np.array_equal(share > 0, expected > 0)
        else:
            assert share == pytest.approx(np.ones(N) if layer < dense else expected / later)


def test_chosen_blocks_are_counted_where_they_are(demo_model: str) -> None:
    """The recorded keys of all layers are those that the statistics count."""
    with opened(demo_model, "sinks(4)+window(64)+topk(3)") as llm:
        found = reads.of_text(llm, list(range(300, 300 + N)))
        stats = llm.attention_stats()
    total = sum(float((share * np.arange(N, 0, -1)).sum()) * HEADS for share in found.shares.values())
    assert total == pytest.approx(stats["keys_read"])
    assert len({share.tobytes() for share in found.shares.values()}) == LAYERS  # each layer chooses its own


def test_reads_need_an_empty_cache(demo_model: str) -> None:
    with opened(demo_model, "exact") as llm:
        with pytest.raises(ValueError, match="some tokens"):
            reads.of_text(llm, [])
        llm.eval([300, 301])
        with pytest.raises(ValueError, match="not read anything yet"):
            reads.of_text(llm, [300])


def test_the_command_draws_layers_and_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    png = tmp_path / "reads.png"
    options = ["-m", "demo", "--text", README, "--length", "700"]
    assert cli.run(["plan", "sinks(4)+window(64)+topk(3)", *options, "--png", str(png)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("█") > LAYERS and "check=64" in shown and "relative error of attention 0." in shown
    assert png.read_bytes().startswith(b"\x89PNG")
    assert cli.run(["plan", "window(64); check=16", *options, "--json", "--width", "10"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tokens"] == 700 and 0 < report["error"] < 1
    assert [len(row) for row in report["layers"].values()] == [10] * LAYERS
    assert list(report["errors"]) == [str(i) for i in range(LAYERS)]
    assert cli.run(["plan", "window(64)", "-m", "demo"]) == 2
    assert "belong to --text" in capsys.readouterr().err
