"""The results of `eval` as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyllama_long.evals.grid import Cell, Row


def show(out: Console, cells: Sequence[Cell], rows: Sequence[Row], n_train: int) -> None:
    """A line per policy and plan, a column per length."""
    lengths = list(dict.fromkeys(cell.length for cell in cells))
    titles = (f"{n:,}" + (f" ({n / n_train:.3g}x)" if n_train else "") for n in lengths)
    table = Table("RoPE", "attention", *titles, box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for rope, plan in dict.fromkeys((cell.rope, cell.plan) for cell in cells):
        mine = [row for row in rows if (row["rope"], row["plan"]) == (rope, plan)]
        shown = [figure([row for row in mine if row["length"] == n]) for n in lengths]
        table.add_row(Text(rope), Text(plan), *shown)
    out.print(table)
    for line in notes(rows):
        out.print(Text(line, style="dim"), soft_wrap=True)
    for reason in dict.fromkeys(row["error"] for row in rows if "error" in row):
        out.print(Text(f"refused: {reason}"), soft_wrap=True)


def notes(rows: Sequence[Row]) -> list[str]:
    """How many questions a figure is based on, and what `auto` chose."""
    found = []
    asked = [row for row in rows if row.get("depth") is not None and "error" not in row]
    if asked:
        first = [row for row in asked if all(row[key] == asked[0][key] for key in ("rope", "plan", "length"))]
        depths = ", ".join(f"{row['depth']:.0%}" for row in first)
        n = sum(row["samples"] for row in first)
        found.append(f"n = {n} questions per figure, {first[0]['samples']} at each depth: {depths}")
    for row in rows:
        if "auto" in (row["rope"], row["plan"]) and "error" not in row:
            used = [f"RoPE {row['rope_used']}"] if row["rope"] == "auto" else []
            used += [f"attention {row['plan_used']}"] if row["plan"] == "auto" else []
            found.append(f"auto at {row['length']:,}: {', '.join(used)}")
    return list(dict.fromkeys(found))


def figure(rows: Sequence[Row]) -> str:
    """The accuracy of one cell over all depths, or its perplexity."""
    if not rows:
        return ""
    if "error" in rows[0]:
        return "refused"
    if "perplexity" in rows[0]:
        return f"{rows[0]['perplexity']:.2f}"
    asked = sum(row["samples"] for row in rows)
    return f"{sum(row['accuracy'] * row['samples'] for row in rows) / asked:.1%}"
