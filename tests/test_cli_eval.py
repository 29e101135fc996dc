"""`eval`: its tasks, tables and JSON, and what ends it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pyllama_long import cli, filler
from pyllama_long.cli.eval_options import choose_phrasings
from pyllama_long.evals import grid
from pyllama_long.evals.phrasings import PHRASINGS, Phrasing

COLUMNS = ["task", "rope", "plan", "length", "depth", "samples", "accuracy", "share_of_keys", "seconds"]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(filler.sentences()[:300]))
    return path


def report(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    """Runs `eval` and returns its JSON line, the last one."""
    assert cli.run(["eval", *arguments]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out.rstrip().splitlines()[-1])
    assert found["task"] == arguments[0] and found["trained_length"] == 512
    assert all(list(row)[:9] == COLUMNS for row in found["rows"])
    return found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hay"], "unknown task 'hay'; known: needle, pairs, passkey, niah_single_1"),
        (["multikeys"], "unknown task 'multikeys': did you mean multikey? known: needle"),
        (["perplexity"], "needs --text"),
        (["perplexity", "--text", "x", "--samples", "3"], "fwe, not to perplexity"),
        (["needle", "--windows", "3"], "--windows belongs to perplexity and agreement, not to needle"),
        (["vt", "fwe", "--text", "x"], "cwe, perplexity and agreement, not to vt and fwe"),
        (["agreement", "perplexity", "--text", "x", "--answers", "y"], "--answers belongs to tasks with"),
        (["pairs", "--phrasings", "code"], "--phrasings belongs to needle"),
        (["needle", "--phrasings", "code,cod"], "unknown phrasing 'cod'; known: pass-key"),
        (["needle", "--resume", "x", "--answers", "./x"], "--resume and --answers are the same file"),
        (["needle", "--plot", "x.png", "--answers", "x.png"], "--answers and --plot are the same file"),
        (["needle", "--text", "x", "--answers", "x"], "--text and --answers are the same file"),
        (["vt", "--questions", "1001"], "--questions"),
        (["needle", "--lengths", "4y"], "--lengths: '4y' is no length"),
        (["needle", "--depths", "0"], "--depths"),
        (["needle", "--rope", "spiral"], "unknown policy 'spiral'"),
        (["needle", "--attention", "slash(4)"], "unknown part 'slash'"),
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
    head, short, long, *_, line = capsys.readouterr().out.rstrip().splitlines()
    titles = ["task", "tokens", "RoPE", "attention", "result", "nats", "keys", "time", "reading", "n", "docs"]
    assert head.split() == titles
    assert "512 (1x)" in short and "1,024 (2x)" in long and "% [" in long and " ±" in long
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
    assert rows[0]["seconds"] == rows[1]["seconds"] > rows[0]["reading"]["seconds"] > 0
    assert rows[2]["reading"]["share_of_keys"] < rows[2]["share_of_keys"]  # skim answers exactly
    assert long.split()[-2:] == ["8", str(rows[2]["documents"])]


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


def test_lengths_that_nobody_asked_for_end_with_the_time(capsys: pytest.CaptureFixture[str]) -> None:
    from pyllama_long.cli.eval_view import View

    cells = grid.cells(["auto"], ["auto"], [512, 2048, 819_200])
    for bounded, allowed in ((True, {512, 2048}), (False, {512, 2048, 819_200})):
        view = View(cells, {"needle": 10}, bounded)
        assert view.begin(cells[0])
        view.document(0, 10)
        view.finished(0, 10, 1.0)
        assert view.allowed == allowed
        said = " ".join(capsys.readouterr().err.split())
        assert "about 4 hours in all" in said
        assert view.remaining() == (", about 49 s left" if bounded else ", about 4 hours left")
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


def test_phrasings_are_chosen_by_name() -> None:
    assert choose_phrasings("all") == PHRASINGS
    chosen: tuple[Phrasing, ...] = choose_phrasings("room,code,room")
    assert [phrasing.name for phrasing in chosen] == ["room", "code"]


def test_several_tasks_and_plans_in_one_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["passkey", "vt", "--lengths", "700", "--samples", "2", "--threads", "1"]
    options += ["--attention", "exact", "--attention", "window(64)", "--plot", str(tmp_path / "p.png")]
    assert cli.run(["eval", *options]) == 0
    *table, line = capsys.readouterr().out.rstrip().splitlines()
    found = json.loads(line)
    rows = found["rows"]
    assert {(row["task"], row["plan"]) for row in rows} == {
        (task, plan) for task in ("passkey", "vt") for plan in ("exact", "window(64)")
    }
    shown = [line.split()[0] for line in table if line.startswith(("passkey", "vt"))]
    assert shown == ["passkey", "passkey", "vt", "vt"]
    for mean in found["means"]:
        mine = [row for row in rows if row["plan"] == mean["plan"]]
        assert mean["accuracy"] == np.mean([row["accuracy"] for row in mine]) and mean["samples"] == 4
        assert any(line.startswith("mean") and f"{mean['nats']:.3f}" in line for line in table)
    assert [mean["plan"] for mean in found["means"]] == ["exact", "window(64)"]
    exact, narrow = (row for row in rows if row["task"] == "passkey")
    assert exact["share_of_keys"] == 1.0 > 0.5 > narrow["share_of_keys"]
    assert exact["nats"] + 1 < narrow["nats"] and "difference" not in exact
    more = narrow["difference"]
    assert (more["rope"], more["plan"]) == ("auto", "exact") and "Δ nats" in table[0]
    assert more["nats"] == pytest.approx(narrow["nats"] - exact["nats"]) and more["nats_error"] > 0
    assert more["accuracy"] == narrow["accuracy"] - exact["accuracy"]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_agreement_begins_with_exact(capsys: pytest.CaptureFixture[str], book: Path) -> None:
    options = ["--text", str(book), "--lengths", "512", "--windows", "2", "--last", "20"]
    found = report(
        capsys, "agreement", *options, "--attention", "sinks(4)+window(64)", "--attention", "exact"
    )
    exact, narrow = found["rows"]
    assert (exact["plan"], exact["kl"], exact["same"], exact["nats_more"]) == ("exact", 0, 1, 0)
    assert narrow["kl"] > 0.001 and narrow["same"] < 1 and narrow["samples"] == 2


def test_a_stopped_run_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "run.jsonl"
    options = ["passkey", "--lengths", "512,600", "--samples", "3", "--threads", "1"]
    whole = report(capsys, *options)
    measured: list[tuple[int, int]] = []
    most = 4
    real = grid._measured

    def measure(task: Any, llm: Any, cell: Any, i: int) -> Any:
        if len(measured) == most:
            raise KeyboardInterrupt
        measured.append((cell.length, i))
        return real(task, llm, cell, i)

    monkeypatch.setattr(grid, "_measured", measure)
    options += ["--resume", str(path)]
    assert cli.run(["eval", *options]) == 130
    printed = capsys.readouterr()
    stopped = json.loads(printed.out.rstrip().splitlines()[-1])
    assert [(row["length"], row["documents"]) for row in stopped["rows"]] == [(512, 3), (600, 1)]
    assert "documents_in_all" not in stopped["rows"][0] and stopped["rows"][1]["documents_in_all"] == 3
    assert stopped["means"] == [] and " 1 of 3\n" in printed.out
    assert f"what is measured is in {path}: the same command goes on" in printed.err
    with path.open("a") as file:
        file.write('{"task": "passkey", "rope": "au')  # cut by a crash
    most = 99
    assert cli.run(["eval", *options]) == 0
    printed = capsys.readouterr()
    assert measured == [(512, 0), (512, 1), (512, 2), (600, 0), (600, 1), (600, 2)]
    assert "(1 documents from the file)" in printed.err
    found = json.loads(printed.out.rstrip().splitlines()[-1])

    def figures(report: dict[str, Any]) -> list[Any]:
        for row in report["rows"]:
            assert row["reading"].pop("seconds") <= row["seconds"]
        return [{key: row[key] for key in row if key != "seconds"} for row in report["rows"]]

    first = figures(whole)
    assert figures(found) == first
    with monkeypatch.context() as patched:
        patched.setattr(grid, "_measured", None)
        assert figures(report(capsys, *options)) == first  # nothing is measured, no model opened
    more = report(capsys, *["4" if option == "3" else option for option in options])
    assert [row["samples"] for row in more["rows"]] == [4, 4] and len(measured) == 8
    kept = tmp_path / "answers.json"
    assert cli.run(["eval", *options, "--answers", str(kept)]) == 0 and len(measured) == 8
    assert len(json.loads(kept.read_text())) == 6
    capsys.readouterr()
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text(path.read_text().replace('"score"', '"scores"'))
    assert cli.run(["eval", *options[:-1], str(damaged)]) == 1
    assert f"pyllama-long: {damaged} is damaged: name another file" in capsys.readouterr().err
    assert cli.run(["eval", *options, "--seed", "1"]) == 1
    assert "other settings (seed 0, now 1)" in capsys.readouterr().err
    assert cli.run(["eval", "vt", *options[1:]]) == 1
    assert "other settings (tasks" in capsys.readouterr().err


def test_nothing_overwrites_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    link = tmp_path / "l.json"
    link.symlink_to(path)
    assert cli.run(["eval", "needle", "-m", str(path), "--answers", str(link)]) == 2
    assert "--model and --answers are the same file" in capsys.readouterr().err
    assert path.read_bytes() == b"GGUF"


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of file sizes")
def test_a_full_disk_loses_nothing_that_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import resource

    path = tmp_path / "run.jsonl"
    options = ["passkey", "--lengths", "512", "--samples", "9", "--resume", str(path)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        assert cli.run(["eval", *options]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    printed = capsys.readouterr()
    assert f"{path} cannot be written: " in printed.err
    [row] = json.loads(printed.out.rstrip().splitlines()[-1])["rows"]
    kept = path.read_bytes().count(b"\n") - 1
    assert 0 < kept < row["documents"] < 9 and row["documents_in_all"] == 9
    [row] = report(capsys, *options)["rows"]
    assert row["documents"] == 9 and path.read_bytes().count(b"\n") == 10
