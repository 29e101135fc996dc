"""Options for choosing the tokens of an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from pyllama_long.cli.checks import finite, positive

_PANEL = "Sampling"


def _option(*names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=_PANEL, **more)


@dataclass(frozen=True)
class Sampling:
    max_tokens: Annotated[int, _option(min=1, metavar="N", help="Longest answer.")] = 512
    temperature: Annotated[
        float,
        _option("--temp", min=0.0, callback=finite, metavar="T", help="0: always the likeliest token."),
    ] = 0.7
    top_k: Annotated[int, _option(min=0, metavar="N", help="0: off.")] = 40
    top_p: Annotated[float, _option(min=0.0, max=1.0, metavar="P")] = 0.95
    min_p: Annotated[float, _option(min=0.0, max=1.0, metavar="P")] = 0.05
    repeat_penalty: Annotated[float, _option(callback=positive, metavar="X", help="1: off.")] = 1.0
    seed: Annotated[int, _option(min=-1, metavar="N", help="-1: a new one each time.")] = -1

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of Llama.create_completion and create_chat_completion."""
        found = dict(vars(self))
        found["seed"] = None if self.seed < 0 else self.seed
        return found
