"""`eval`: what a model finds or predicts at several lengths, RoPE policies and attention plans."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from pyllama_long.cli.checks import one_of
from pyllama_long.cli.command_error import CommandError
from pyllama_long.cli.eval_options import TASKS, FixedModelOptions, TaskOptions
from pyllama_long.cli.eval_table import show
from pyllama_long.cli.eval_view import LENGTHS, MAX_MINUTES, View
from pyllama_long.cli.options import Json
from pyllama_long.cli.texts import read_text, writing
from pyllama_long.evals import EvalError, grid
from pyllama_long.evals.grid import Cell, Row
from pyllama_long.evals.phrasings import PAIRS
from pyllama_long.evals.plot import check_plot, write_plot
from pyllama_long.plan import AttentionPlan

if TYPE_CHECKING:
    from pyllama_long.llama import LongLlama

EXAMPLES = """\b
[b]Examples[/b]
  pyllama-long eval needle --lengths 1x,16x,100x
  pyllama-long eval needle -m model.gguf --rope all --lengths 4x --depths 11
  pyllama-long eval pairs --pairs 0 --rope rerope+logn --rope dca+yarn
  pyllama-long eval perplexity --text book.txt --lengths 512,8192 --json
"""
Measure = Callable[["LongLlama", int], list[Row]]


def command(
    task: Annotated[
        str,
        typer.Argument(
            callback=one_of(tuple(TASKS)), metavar="TASK", help=f"{', '.join(TASKS)}.", show_default=False
        ),
    ],
    *,
    fixed: FixedModelOptions,
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="In times the trained length (4x) or in tokens (8192, 8k).",
            show_default=f"{LENGTHS}, as far as {MAX_MINUTES} minutes go",
        ),
    ] = None,
    rope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="POLICY", help="Repeatable; all: every one worth comparing.", show_default="auto"
        ),
    ] = None,
    attention: Annotated[
        list[str] | None,
        typer.Option(metavar="PLAN", help="Repeatable; upstream: llama.cpp's own.", show_default="auto"),
    ] = None,
    chosen: TaskOptions,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Another seed, other documents.")] = 0,
    answers_to: Annotated[
        Path | None,
        typer.Option(
            "--answers", metavar="FILE", help="Keep the questions and the model's answers, as JSON."
        ),
    ] = None,
    plot_to: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw it (needs matplotlib).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what a model finds (needle, pairs) or predicts (perplexity) beyond its trained length."""
    own = chosen.of(task)
    info = fixed.under().info()
    try:
        tokens = grid.parse_lengths(LENGTHS if lengths is None else lengths, info.n_train)
    except EvalError as error:
        raise typer.BadParameter(str(error), param_hint="--lengths") from None
    if plot_to is not None:
        try:
            check_plot(plot_to)
        except EvalError as error:
            raise CommandError(str(error)) from None
    plans = tuple(dict.fromkeys(attention or ["auto"]))
    for plan in plans:
        if plan != "upstream":
            AttentionPlan.parse(plan, n_train=info.n_train or None)
    cells = grid.cells(grid.policies(rope or ["auto"], info.n_train, tokens), plans, tokens)
    view = View(cells, bounded=lengths is None)
    answers: list[dict[str, Any]] = []
    measure = measure_of(task, own, tokens, seed, view, answers)
    if answers_to is not None:
        if task == "perplexity":
            raise typer.BadParameter("--answers belongs to needle and pairs, not to perplexity")
        write_answers(answers_to, answers)

    def open_model(cell: Cell) -> LongLlama:
        return fixed.under(cell.plan, cell.rope).open(max(cell.length, info.n_train), view.progress)

    rows: list[Row] = []
    stopped = False
    try:
        with view.bar:
            for cell in cells:
                if not view.begin(cell):
                    continue
                first = len(answers)
                rows += grid.run(cell, open_model, measure)
                for answer in answers[first:]:
                    answer.update(rope=cell.rope, plan=cell.plan, length=cell.length)
                if answers_to is not None:
                    write_answers(answers_to, answers)
    except KeyboardInterrupt:
        stopped = True
    if not as_json:
        show(Console(highlight=False), cells, rows, info.n_train)
    if plot_to is not None and any("error" not in row for row in rows):
        write_plot(plot_to, task, rows, info.n_train)
    print(json.dumps({"task": task, "model": info.path, "trained_length": info.n_train, "rows": rows}))
    if stopped:
        raise KeyboardInterrupt
    if all("error" in row for row in rows):
        raise CommandError(f"nothing could be measured: {rows[0]['error']}")


def write_answers(path: Path, answers: Sequence[dict[str, Any]]) -> None:
    with writing(path):
        path.write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def measure_of(
    task: str,
    own: dict[str, Any],
    lengths: Sequence[int],
    seed: int,
    view: View,
    answers: list[dict[str, Any]],
) -> Measure:
    """What a task does with a model at a length. answers: where the model's are kept."""
    text = None if own["text"] is None else read_text(own["text"])
    if task == "perplexity":
        from pyllama_long.evals import perplexity

        windows = perplexity.Perplexity(text or "", tuple(lengths), own["windows"], own["last"], seed)
        return lambda llm, length: perplexity.measure(windows, llm, length, view.document)
    from pyllama_long.evals import retrieval
    from pyllama_long.evals.documents import Retrieval
    from pyllama_long.evals.haystack import Haystack

    try:
        haystack = Haystack.of_filler() if text is None else Haystack.of_text(text)
    except EvalError as error:
        raise CommandError(f"{own['text']}: {error}") from None
    needles = Retrieval(
        haystack, own.get("phrasings", PAIRS), own["depths"], own["samples"], own.get("pairs"), seed
    )
    return lambda llm, length: retrieval.measure(needles, llm, length, view.document, answers.append)
