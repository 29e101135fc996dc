"""The policies, plans and lengths to compare, and one cell of that table: measuring what is not known yet of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from pyllama_long import lengths
from pyllama_long.errors import DecodeError
from pyllama_long.evals import EvalError
from pyllama_long.evals.journal import Journal
from pyllama_long.evals.measure import Cell, Found, Row, Task
from pyllama_long.evals.statistics import mean_of_groups
from pyllama_long.rope import RopeError, RopePolicy

if TYPE_CHECKING:
    from pyllama_long.llama import LongLlama

__all__ = [
    "POLICIES",
    "Cell",
    "Row",
    "Watch",
    "cells",
    "compare",
    "means",
    "parse_lengths",
    "policies",
    "run",
    "so_far",
]

# `--rope all`; policies that this version does not know are left out.
POLICIES = (
    "native",
    "native+logn",
    "linear",
    "ntk",
    "yarn",
    "dynamic-ntk",
    "dynamic-yarn",
    "dca",
    "dca+logn",
    "dca+yarn",
    "self-extend",
    "self-extend+logn",
    "rerope",
    "rerope+logn",
)
_MAX_TOKENS = 1 << 28


def parse_lengths(text: str, n_train: int) -> tuple[int, ...]:
    """`1x,4x,8192,16k` in tokens, ascending; n_train: the trained length, 0 when unknown. Raises EvalError."""
    found = set()
    for piece in text.split(","):
        try:
            found.add(max(1, lengths.in_tokens(lengths.parse(piece, most=_MAX_TOKENS), n_train, _MAX_TOKENS)))
        except lengths.LengthError as error:
            raise EvalError(str(error)) from None
    return tuple(sorted(found))


def policies(asked: Iterable[str], n_train: int, at: Sequence[int]) -> tuple[str, ...]:
    """The requested policies; `all` means POLICIES. Raises RopeError for one that cannot be read."""
    found: list[str] = []
    for text in asked:
        if text.strip() == "all":
            found += [policy for policy in POLICIES if _is_known(policy, n_train, at[0])]
        else:
            for length in at:
                RopePolicy.parse(text, n_train=n_train or None, n_ctx=length)
            found.append(text)
    return tuple(dict.fromkeys(found))


def _is_known(text: str, n_train: int, length: int) -> bool:
    try:
        RopePolicy.parse(text, n_train=n_train or None, n_ctx=length)
    except RopeError:
        return False
    return True


def cells(
    ropes: Iterable[str], plans: Iterable[str], at: Sequence[int], tasks: Sequence[str] = ("needle",)
) -> list[Cell]:
    """Short lengths first, so that a stopped run has compared all plans at some; tasks last, so that they share a
    model."""
    return [
        Cell(rope, plan, length, task) for length in at for rope in ropes for plan in plans for task in tasks
    ]


class Watch(Protocol):
    """Follows the units of a cell."""

    def document(self, i: int, n: int) -> None:
        """The i-th of n begins."""

    def finished(self, i: int, n: int, seconds: float) -> None:
        """The i-th of n took so long."""


def run(
    cell: Cell,
    task: Task,
    open_model: Callable[[Cell], LongLlama],
    watch: Watch,
    journal: Journal,
    asked: int,
) -> list[Row]:
    """The rows of one cell: those of its task, and what ran. Units that are in the journal are not measured again.
    asked: the number of samples or windows that was asked for. If the model, the policy or the length is refused:
    one row with the reason as `error`. Raises EvalError for a journal that cannot be used.
    """
    empty = {
        **_start(cell),
        "depth": None,
        "samples": 0,
        "accuracy": None,
        "share_of_keys": None,
        "seconds": None,
    }
    lines = journal.units(cell)
    n = _units(lines, asked)
    if n is None:
        try:
            llm = open_model(cell)
            n = task.count(llm, cell.length)
            used = {"rope_used": str(llm.rope), "plan_used": "upstream" if llm.upstream else str(llm.plan)}
        except (ValueError, DecodeError) as error:
            return [{**empty, "error": " ".join(str(error).split())}]
        for line in lines.values():
            _check_same(journal, cell, line, used)
        for i in range(n):
            if i in lines:
                continue
            watch.document(i, n)
            try:
                line = _measured(task, llm, cell, i)
            except (ValueError, DecodeError) as error:
                return [{**empty, "error": " ".join(str(error).split())}]
            journal.add(cell, {"unit": i, "units": n, "asked": asked, **used, **line})
            watch.finished(i, n, line["seconds"])
    return _rows(cell, task, journal, n)


def so_far(cell: Cell, task: Task, journal: Journal) -> list[Row]:
    """The rows of a cell that was stopped, of the units that it has from the first one on; `documents_in_all` says how
    many there were to be."""
    lines = journal.units(cell)
    n = next(i for i in range(len(lines) + 1) if i not in lines)
    if n == 0:
        return []
    return [{**row, "documents_in_all": lines[0]["units"]} for row in _rows(cell, task, journal, n)]


def _rows(cell: Cell, task: Task, journal: Journal, n: int) -> list[Row]:
    """The rows of a cell's first n units."""
    mine = [journal.units(cell)[i] for i in range(n)]
    try:
        measured = task.rows([line["found"] for line in mine])
    except (KeyError, TypeError, IndexError, ZeroDivisionError):
        raise EvalError(f"{journal.path} is damaged: name another file") from None
    order = ("depth", "samples", "accuracy")
    start, ran = _start(cell), {**_ran(mine), "documents": n}
    return [
        {**start, **{k: row[k] for k in order}, **ran, **{k: v for k, v in row.items() if k not in order}}
        for row in measured
    ]


def _start(cell: Cell) -> Row:
    return {"task": cell.task, "rope": cell.rope, "plan": cell.plan, "length": cell.length}


def compare(rows: Sequence[Row], tasks: Mapping[str, Task], journal: Journal) -> None:
    """Adds `difference` to each row: by how much its cell has more than the first measured one of the same task and
    length, which got the same documents. It is paired by question; its error is half of the 95% interval over
    documents."""
    first: dict[tuple[str, int], tuple[Cell, list[dict[str, list[float]]]]] = {}
    for row in rows:
        if "error" in row:
            continue
        cell, task = Cell(row["rope"], row["plan"], row["length"], row["task"]), tasks[row["task"]]
        units = journal.units(cell)
        mine = [task.figures(units[i]["found"]) for i in range(row["documents"])]
        other, theirs = first.setdefault((cell.task, cell.length), (cell, mine))
        if other == cell:
            continue
        found: Row = {"rope": other.rope, "plan": other.plan}
        for key in mine[0]:
            more = [
                [a - b for a, b in zip(ours[key], others[key], strict=True)]
                for ours, others in zip(mine, theirs, strict=False)
            ]
            found[key], found[f"{key}_error"] = mean_of_groups(more)
        row["difference"] = found


def means(rows: Sequence[Row]) -> list[Row]:
    """The means over tasks with questions, as RULER reports them: for each policy, plan and length for which all such
    tasks were measured, if they are several."""
    tasks = {row["task"] for row in rows if "total" in row}
    cells: dict[tuple[str, str, int], dict[str, Row]] = {}
    for row in rows:
        if "total" in row and "documents_in_all" not in row:
            cells.setdefault((row["rope"], row["plan"], row["length"]), {})[row["task"]] = row
    found = []
    for (rope, plan, length), mine in cells.items():
        if len(tasks) > 1 and mine.keys() == tasks:
            totals = [row["total"] for row in mine.values()]
            shown = {key: sum(total[key] for total in totals) / len(totals) for key in ("accuracy", "nats")}
            n = sum(total["samples"] for total in totals)
            found.append({"rope": rope, "plan": plan, "length": length, **shown, "samples": n})
    return found


def _units(lines: dict[int, Found], asked: int) -> int | None:
    """How many units a cell has whose lines are all there; None when some are missing, or that is unknown."""
    for line in lines.values():
        if line["asked"] == asked and all(i in lines for i in range(line["units"])):
            return int(line["units"])
    return None


def _check_same(journal: Journal, cell: Cell, line: Found, used: dict[str, str]) -> None:
    for key, what in (("rope_used", "RoPE"), ("plan_used", "attention")):
        if line[key] != used[key]:
            raise EvalError(
                f"{journal.path} has units of {cell.rope}, {cell.plan} at {cell.length:,} tokens under {what} "
                f"{line[key]}, which is {used[key]} now: name another file"
            )


def _measured(task: Task, llm: LongLlama, cell: Cell, i: int) -> Found:
    """The fields of a unit's line that its measurement gives."""
    llm.attention_stats(reset=True)
    began = time.perf_counter()
    found = task.unit(llm, cell, i)
    seconds = round(time.perf_counter() - began, 3)
    stats = {"keys_read": 0, "keys_visible": 0} if llm.upstream else llm.attention_stats()
    return {
        "keys_read": stats["keys_read"],
        "keys_visible": stats["keys_visible"],
        "seconds": seconds,
        "found": found,
    }


def _ran(lines: Sequence[Found]) -> Row:
    read, visible = (sum(line[key] for line in lines) for key in ("keys_read", "keys_visible"))
    return {
        "share_of_keys": read / visible if visible else None,
        "seconds": round(sum(line["seconds"] for line in lines), 2),
        "rope_used": lines[0]["rope_used"],
        "plan_used": lines[0]["plan_used"],
    }
