"""The options of `eval` that only some of its tasks have, and those of its model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer

from pyllama_long.cli.model_options import AdaptedModelOptions
from pyllama_long.cli.options import Hub, KvType, Lora, LoraScale, Model, Precision, Threads
from pyllama_long.evals.phrasings import PHRASINGS, Phrasing

# Each task with its own options and their values.
TASKS: dict[str, dict[str, Any]] = {
    "needle": {"depths": 5, "samples": 10, "text": None, "phrasings": "all"},
    "pairs": {"depths": 5, "samples": 10, "text": None, "pairs": 100},
    "perplexity": {"text": None, "windows": 10, "last": 256},
}
_RETRIEVAL, _PERPLEXITY = "Needle and pairs", "Perplexity"


def _own(name: str, panel: str, text: str, least: int = 1) -> Any:
    """An option of some tasks; its default is in TASKS."""
    value = next(str(options[name]) for options in TASKS.values() if name in options)
    return typer.Option(
        f"--{name}", min=least, metavar="N", help=text, show_default=value, rich_help_panel=panel
    )


@dataclass(frozen=True)
class TaskOptions:
    """None: the task's own default."""

    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The text that needles are hidden in, or that is predicted."),
    ] = None
    depths: Annotated[
        int | None,
        _own(
            "depths",
            _RETRIEVAL,
            "Places to hide a needle at, evenly from the beginning to right before the question.",
        ),
    ] = None
    samples: Annotated[int | None, _own("samples", _RETRIEVAL, "Questions per depth.")] = None
    phrasings: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help=f"needle: all, or some of {', '.join(p.name for p in PHRASINGS)}.",
            show_default="all",
            rich_help_panel=_RETRIEVAL,
        ),
    ] = None
    pairs: Annotated[
        int | None, _own("pairs", _RETRIEVAL, "pairs: lines in a document; 0: nothing but lines.", 0)
    ] = None
    windows: Annotated[int | None, _own("windows", _PERPLEXITY, "Windows of the text.")] = None
    last: Annotated[int | None, _own("last", _PERPLEXITY, "Tokens at the end of each window that count.")] = (
        None
    )

    def of(self, task: str) -> dict[str, Any]:
        """The values of a task's own options. Raises BadParameter for those of other tasks."""
        given = vars(self)
        for name, value in given.items():
            if value is not None and name not in TASKS[task]:
                others = " and ".join(other for other, own in TASKS.items() if name in own)
                raise typer.BadParameter(f"--{name} belongs to {others}, not to {task}")
        own = {name: default if given[name] is None else given[name] for name, default in TASKS[task].items()}
        if task == "perplexity" and own["text"] is None:
            raise typer.BadParameter("perplexity needs --text FILE, the text that is predicted")
        if "phrasings" in own:
            own["phrasings"] = choose_phrasings(own["phrasings"])
        return own


@dataclass(frozen=True)
class FixedModelOptions:
    """What all measurements have in common."""

    model: Model = None
    hub: Hub = None
    kv_type: KvType = "f16"
    precision: Precision = "auto"
    threads: Threads = 0
    lora: Lora = None
    lora_scale: LoraScale = 1.0

    @cached_property
    def path(self) -> Path:
        """The model's file, looked up once for all measurements."""
        return AdaptedModelOptions(model=self.model, hub=self.hub).path()

    def under(self, attention: str = "auto", rope: str = "auto") -> AdaptedModelOptions:
        """The options of a measurement with a plan and a policy."""
        return AdaptedModelOptions(
            model=self.path,
            attention=attention,
            rope=rope,
            kv_type=self.kv_type,
            precision=self.precision,
            threads=self.threads,
            lora=self.lora,
            lora_scale=self.lora_scale,
        )


def choose_phrasings(names: str) -> tuple[Phrasing, ...]:
    known = {phrasing.name: phrasing for phrasing in PHRASINGS}
    asked = list(known) if names == "all" else [name.strip() for name in names.split(",")]
    for name in asked:
        if name not in known:
            raise typer.BadParameter(f"unknown phrasing {name!r}; known: {', '.join(known)}")
    return tuple(known[name] for name in dict.fromkeys(asked))
