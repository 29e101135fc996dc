"""The results of `eval` as a table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyllama_long.evals import grid
from pyllama_long.evals.measure import Row


def show(out: Console, rows: Sequence[Row], n_train: int) -> None:
    """A line per cell. Those of one task and length stand together, so that policies and plans can be compared."""
    table = Table("task", box=None, pad_edge=False)
    table.add_column("tokens", no_wrap=True)
    table.add_column("RoPE")
    table.add_column("attention")
    titles = ["result", "nats", "keys", "time", "reading", "n", "docs"]
    if any("difference" in row for row in rows):
        titles += ["Δ result", "Δ nats"]
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    ordered = sorted(rows, key=lambda row: (tasks.index(row["task"]), row["length"]))
    for _, same in groupby(ordered, key=lambda row: (row["task"], row["length"])):
        for _, cell in groupby(same, key=lambda row: (row["rope"], row["plan"])):
            table.add_row(*map(Text, line(list(cell), n_train)))
        table.add_section()
    for _, same in groupby(grid.means(ordered), key=lambda row: row["length"]):
        for mean in same:
            start = ["mean", at(mean, n_train), mean["rope"], mean["plan"]]
            figures = [f"{mean['accuracy']:.1%}", f"{mean['nats']:.3f}", "", "", "", str(mean["samples"])]
            table.add_row(*map(Text, [*start, *figures]))
        table.add_section()
    out.print(table)
    for note in notes(rows):
        out.print(Text(note, style="dim"), soft_wrap=True)
    for reason in dict.fromkeys(row["error"] for row in rows if "error" in row):
        out.print(Text(f"refused: {reason}"), soft_wrap=True)


def line(cell: Sequence[Row], n_train: int) -> list[str]:
    """The columns of one cell, whose rows may be of several depths."""
    row = cell[0]
    start = [row["task"], at(row, n_train), row["rope"], row["plan"]]
    if "error" in row:
        return [*start, "refused"]
    share = row["share_of_keys"]
    keys = "" if share is None else f"{share:.1%}"
    n = sum(one["samples"] for one in cell)
    time = f"{row['seconds']:.1f} s"
    docs = str(row["documents"]) + (f" of {row['documents_in_all']}" if "documents_in_all" in row else "")
    found = [*start, result(cell), nats(cell), keys, time, reading(row), str(n), docs]
    return [*found, *more(row["difference"])] if "difference" in row else found


def reading(row: Row) -> str:
    """Time and keys of the documents alone, without questions and answers."""
    found = row.get("reading")
    if found is None:
        return ""
    share = found["share_of_keys"]
    return f"{found['seconds']:.1f} s" + ("" if share is None else f", {share:.1%}")


def at(row: Row, n_train: int) -> str:
    return f"{row['length']:,}" + (f" ({row['length'] / n_train:.3g}x)" if n_train else "")


def more(difference: Row) -> list[str]:
    """By how much a cell has more than the first: percentage points of the result, and nats."""
    points, error = difference.get("accuracy"), difference.get("accuracy_error")
    half = None if error is None else 100 * error
    shown = "" if points is None else f"{100 * points:+.1f}{around(half, '.1f')}"
    return [shown, f"{difference['nats']:+.3f}{around(difference['nats_error'])}"]


def result(cell: Sequence[Row]) -> str:
    """The accuracy of a cell, its perplexity, or its agreement with exact."""
    row = cell[0]
    if "perplexity" in row:
        return f"{row['perplexity']:.2f}"
    if "kl" in row:
        return f"KL {row['kl']:.2g}{around(row['kl_error'], '.1g')}, same {row['same']:.1%}"
    total = row["total"]
    low, high = total["interval"]
    return f"{total['accuracy']:.1%} [{100 * low:.0f}-{100 * high:.0f}]"


def nats(cell: Sequence[Row]) -> str:
    row = cell[0]
    if "kl" in row:
        return f"{row['nats_more']:+.3f}{around(row['nats_more_error'])}"
    found = row.get("total", row)
    return f"{found['nats']:.3f}{around(found['nats_error'])}"


def around(error: float | None, form: str = ".3f") -> str:
    return "" if error is None else f" ±{error:{form}}"


def notes(rows: Sequence[Row]) -> list[str]:
    """What the columns mean, how many questions a figure is based on, and what `auto` chose."""
    measured = [row for row in rows if "error" not in row]
    found = []
    if any("total" in row for row in measured):
        found.append(
            "nats: of the right answer, per token, 0 is certain; [..] and ± are intervals of 95% over docs"
        )
        found.append("keys, time: of docs, questions and answers; reading: time and keys of the docs alone")
    elif measured:
        found.append("nats: of the text, per token; ± is an interval of 95% over windows")
    if any("difference" in row for row in measured):
        found.append("Δ: more than the first line of the task and length has, on the same questions")
    if any("kl" in row for row in measured):
        found.append("agreement: nats more than under exact; same: the likeliest token is exact's")
    deep = [row for row in measured if row["depth"] is not None]
    if deep:
        keys = ("task", "rope", "plan", "length")
        first = [row for row in deep if all(row[key] == deep[0][key] for key in keys)]
        depths = ", ".join(f"{row['depth']:.0%}" for row in first)
        n = sum(row["samples"] for row in first)
        found.append(f"n = {n} questions per figure, {first[0]['samples']} at each depth: {depths}")
    for row in measured:
        if "auto" in (row["rope"], row["plan"]):
            used = [f"RoPE {row['rope_used']}"] if row["rope"] == "auto" else []
            used += [f"attention {row['plan_used']}"] if row["plan"] == "auto" else []
            found.append(f"auto at {row['length']:,}: {', '.join(used)}")
    return list(dict.fromkeys(found))
