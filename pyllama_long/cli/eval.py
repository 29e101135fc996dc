"""`eval`: what a model finds or predicts at several lengths, RoPE policies and attention plans."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from pyllama_long.cli.command_error import CommandError
from pyllama_long.cli.eval_options import FixedModelOptions, TaskOptions, listed, settings_of
from pyllama_long.cli.eval_table import show
from pyllama_long.cli.eval_view import LENGTHS, MAX_MINUTES, View
from pyllama_long.cli.options import Json
from pyllama_long.cli.texts import read_text, writing
from pyllama_long.evals import EvalError, grid, tasks
from pyllama_long.evals.agreement import EXACT, Agreement
from pyllama_long.evals.journal import Journal
from pyllama_long.evals.measure import Cell, Row, Task
from pyllama_long.evals.plot import check_plot, write_plot
from pyllama_long.plan import AttentionPlan

if TYPE_CHECKING:
    from pyllama_long.llama import LongLlama

WIDTH = 200  # columns of a table that is not shown on a terminal
_NAMES = (*tasks.OPTIONS, *tasks.ALIASES)
EXAMPLES = """\b
[b]Examples[/b]
  pyllama-long eval needle --lengths 1x,16x,100x
  pyllama-long eval ruler -m model.gguf --lengths 8k,32k --attention exact --attention skim --resume run.jsonl
  pyllama-long eval niah_multikey_1 vt -m model.gguf --rope all --lengths 4x --samples 50
  pyllama-long eval pairs --pairs 0 --rope rerope+logn --rope dca+yarn
  pyllama-long eval perplexity agreement --text book.txt --attention skim --lengths 512,8192 --json
"""


def _tasks(names: list[str]) -> list[str]:
    for name in names:
        if name not in _NAMES:
            near = difflib.get_close_matches(name, _NAMES, 1)
            meant = f": did you mean {near[0]}?" if near else ";"
            raise typer.BadParameter(f"unknown task {name!r}{meant} known: {', '.join(_NAMES)}")
    return list(tasks.named(names))


def command(
    task: Annotated[
        list[str],
        typer.Argument(
            callback=_tasks,
            metavar="TASK",
            help=f"One or more of {', '.join(_NAMES)}; ruler is all of RULER's.",
            show_default=False,
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
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep what is measured in this file (JSON lines). If the run is stopped, the same command goes on "
            "from there; it may have more lengths, policies, plans and samples.",
        ),
    ] = None,
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
    """Measure what a model finds or predicts beyond its trained length, and under several attention plans: RULER's
    tasks, needles, key-value pairs, perplexity, and how far a plan's predictions are from those of exact attention."""
    own = chosen.of(task)
    check_files(
        {"--resume": resume, "--answers": answers_to, "--plot": plot_to},
        {"--model": fixed.path, "--lora": fixed.lora, "--text": chosen.text},
    )
    info = fixed.under().info()
    try:
        tokens = grid.parse_lengths(LENGTHS if lengths is None else lengths, info.n_train)
    except EvalError as error:
        raise typer.BadParameter(str(error), param_hint="--lengths") from None
    if answers_to is not None and all(name in tasks.PREDICTION for name in task):
        raise typer.BadParameter(f"--answers belongs to tasks with questions, not to {listed(task)}")
    if plot_to is not None:
        try:
            check_plot(plot_to)
        except EvalError as error:
            raise CommandError(str(error)) from None
    plans = tuple(dict.fromkeys(attention or ["auto"]))
    for plan in plans:
        if plan != "upstream":
            AttentionPlan.parse(plan, n_train=info.n_train or None)
    ropes = grid.policies(rope or ["auto"], info.n_train, tokens)
    cells = cells_of(task, ropes, plans, tokens)
    view = View(cells, {name: tasks.asked(own[name]) for name in task}, bounded=lengths is None)
    text = None if chosen.text is None else read_text(chosen.text)
    models = Models(fixed, info.n_train, view)
    measured = {name: made(name, own[name], text, chosen.text, tokens, seed, models) for name in task}
    rows: list[Row] = []
    answers: list[dict[str, Any]] = []
    if answers_to is not None:
        write_answers(answers_to, answers)
    try:
        journal = Journal(settings_of(fixed, own, text, tokens, seed) if resume else {}, resume)
    except EvalError as error:
        raise CommandError(str(error)) from None
    ended: BaseException | None = None
    cell = cells[0]
    try:
        with ExitStack() as stack:
            stack.enter_context(view.bar)
            stack.callback(models.close)
            stack.callback(journal.close)
            for one in measured.values():
                if isinstance(one, Agreement):
                    stack.callback(one.close)
            for cell in cells:
                if not view.begin(cell, journal.units(cell)):
                    continue
                asked = tasks.asked(own[cell.task])
                found = grid.run(cell, measured[cell.task], models.of, view, journal, asked)
                rows += [in_options(row) for row in found]
                if answers_to is not None:
                    answers += answers_of(cell, journal, rows[-1].get("documents", 0))
                    write_answers(answers_to, answers)
    except EvalError as error:
        ended = CommandError(str(error))
    except (Exception, KeyboardInterrupt) as error:  # shown when what is measured has been
        ended = error
    if ended is not None and not any(
        grid.Cell(row["rope"], row["plan"], row["length"], row["task"]) == cell for row in rows
    ):
        with suppress(EvalError):  # of a damaged file, which is what has ended it
            rows += grid.so_far(cell, measured[cell.task], journal)
    if ended is not None and not rows and not isinstance(ended, KeyboardInterrupt):
        raise ended
    grid.compare(rows, measured, journal)
    if not as_json:
        out = Console(highlight=False)
        if not out.is_terminal:
            out = Console(highlight=False, width=WIDTH)
        show(out, rows, info.n_train)
    about = {"task": " ".join(task), "model": info.path, "trained_length": info.n_train}
    print(json.dumps({**about, "rows": rows, "means": grid.means(rows)}))
    if plot_to is not None and any("error" not in row for row in rows):
        with writing(plot_to):
            write_plot(plot_to, rows, info.n_train)
    if ended is not None:
        if resume is not None:
            view.console.print(f"what is measured is in {resume}: the same command goes on", soft_wrap=True)
        raise ended
    if all("error" in row for row in rows):
        raise CommandError(f"nothing could be measured: {rows[0]['error']}")


def check_files(written: dict[str, Path | None], read: dict[str, Path | None]) -> None:
    """Raises BadParameter if an option that writes a file names that of another option."""
    known: dict[Path, str] = {}
    for name, path in (*read.items(), *written.items()):
        if path is None or str(path) == "-":
            continue
        other = known.setdefault(path.resolve(), name)
        if other != name and name in written:
            raise typer.BadParameter(f"{other} and {name} are the same file: name two")


def in_options(row: Row) -> Row:
    """With the option in place of what it becomes, in what an error advises."""
    if "error" not in row:
        return row
    return {**row, "error": row["error"].replace("n_ctx", "--lengths")}


class Models:
    """The model of a cell, opened when it is first asked for, and kept for cells that differ in their task only."""

    def __init__(self, fixed: FixedModelOptions, n_train: int, view: View) -> None:
        self._fixed, self._n_train, self._view = fixed, n_train, view
        self._open: tuple[tuple[str, str, int], LongLlama] | None = None

    def of(self, cell: Cell) -> LongLlama:
        key = (cell.rope, cell.plan, cell.length)
        if self._open is None or self._open[0] != key:
            self.close()
            self._open = key, self.opened(cell, cell.plan)
        return self._open[1]

    def opened(self, cell: Cell, plan: str) -> LongLlama:
        """Another model, under another plan; the caller closes it."""
        return self._fixed.under(plan, cell.rope).open(max(cell.length, self._n_train), self._view.progress)

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None


def cells_of(
    names: Sequence[str], ropes: Sequence[str], plans: Sequence[str], lengths: Sequence[int]
) -> list[Cell]:
    """`agreement` compares with `exact`, which is therefore measured first."""
    if "agreement" not in names:
        return grid.cells(ropes, plans, lengths, names)
    every = grid.cells(ropes, dict.fromkeys((EXACT, *plans)), lengths, names)
    return [cell for cell in every if cell.plan in plans or cell.task == "agreement"]


def made(
    name: str,
    own: dict[str, Any],
    text: str | None,
    path: Path | None,
    lengths: Sequence[int],
    seed: int,
    models: Models,
) -> Task:
    """A task with its options. Raises CommandError when the text cannot be used."""
    try:
        task = tasks.make(name, own, text if "text" in own else None, lengths, seed)
    except EvalError as error:
        raise CommandError(f"{path}: {error}") from None
    if isinstance(task, Agreement):
        task.open_exact = lambda cell: models.opened(cell, EXACT)
    return task


def answers_of(cell: Cell, journal: Journal, n: int) -> list[dict[str, Any]]:
    """The answers about the first n documents of a cell, in order."""
    found = []
    for unit in range(n):
        for answer in journal.units(cell)[unit]["found"].get("answers", ()):
            what = {"task": cell.task, "rope": cell.rope, "plan": cell.plan, "length": cell.length}
            found.append({**what, "document": unit, **answer})
    return found


def write_answers(path: Path, answers: Sequence[dict[str, Any]]) -> None:
    with writing(path):
        path.write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
