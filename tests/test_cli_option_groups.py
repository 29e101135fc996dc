"""Options as dataclasses: one option per field, wherever the group stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from pyllama_long.cli.option_groups import flat


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option(min=1)] = 3
    height: Annotated[int, typer.Option("--tall")] = 4


LARGE = Size(height=9)


def test_fields_become_options_and_a_group_again() -> None:
    found: list[tuple[str, Size, bool]] = []

    def command(name: str = "a", *, size: Size, last: bool = False) -> None:
        found.append((name, size, last))

    def another(size: Size = LARGE) -> None:
        found.append(("", size, True))

    app = typer.Typer()
    app.command("command")(flat(command))
    app.command("another")(flat(another))
    run = CliRunner()
    assert run.invoke(app, ["command"]).exit_code == 0
    assert run.invoke(app, ["command", "--tall", "7", "--name", "b", "--last", "--width", "1"]).exit_code == 0
    assert run.invoke(app, ["another", "--width", "5"]).exit_code == 0
    assert run.invoke(app, ["another", "--width", "0"]).exit_code == 2
    assert found == [("a", Size(3, 4), False), ("b", Size(1, 7), True), ("", Size(5, 9), True)]
