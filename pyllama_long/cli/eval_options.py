"""The options of `eval` that only some of its tasks have, and those of its model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer

from pyllama_long import __version__
from pyllama_long.cli.model_options import AdaptedModelOptions
from pyllama_long.cli.options import Hub, KvType, Lora, LoraScale, Model, Precision, Threads
from pyllama_long.evals.phrasings import PHRASINGS, Phrasing
from pyllama_long.evals.tasks import OPTIONS, PREDICTION

_DIGESTED = 1 << 20  # bytes at either end of a model's file that tell it from others
_RETRIEVAL, _PREDICTION = "Questions", "Perplexity and agreement"


def _own(name: str, panel: str, text: str, least: int = 1, most: int = 1_000_000) -> Any:
    """An option of some tasks; its defaults are in OPTIONS."""
    values = dict.fromkeys(str(options[name]) for options in OPTIONS.values() if name in options)
    return typer.Option(
        f"--{name}",
        min=least,
        max=most,
        metavar="N",
        help=text,
        show_default=", ".join(values),
        rich_help_panel=panel,
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
            "needle, pairs: places to hide a needle at, evenly from the beginning to right before the question. A "
            "document has all of them and is read once.",
            most=1000,
        ),
    ] = None
    questions: Annotated[
        int | None,
        _own(
            "questions",
            _RETRIEVAL,
            "passkey, niah_*, vt: questions that share a document, which is read once; niah_multikey_* have 4 or 10.",
            most=1000,
        ),
    ] = None
    samples: Annotated[
        int | None,
        _own("samples", _RETRIEVAL, "Questions: per depth for needle and pairs, else in all.", most=10_000),
    ] = None
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
    windows: Annotated[int | None, _own("windows", _PREDICTION, "Windows of the text.", most=10_000)] = None
    last: Annotated[int | None, _own("last", _PREDICTION, "Tokens at the end of each window that count.")] = (
        None
    )

    def of(self, tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The values of the own options of each task. Raises BadParameter for those of other tasks."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        for name in given:
            if not any(name in OPTIONS[task] for task in tasks):
                others = [other for other, own in OPTIONS.items() if name in own]
                raise typer.BadParameter(f"--{name} belongs to {listed(others)}, not to {listed(tasks)}")
        found = {
            task: {name: given.get(name, value) for name, value in OPTIONS[task].items()} for task in tasks
        }
        for task, own in found.items():
            if task in PREDICTION and own["text"] is None:
                raise typer.BadParameter(f"{task} needs --text FILE, the text that is predicted")
            if "phrasings" in own:
                own["phrasings"] = choose_phrasings(own["phrasings"])
        return found


def listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


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


def settings_of(
    fixed: FixedModelOptions,
    own: dict[str, dict[str, Any]],
    text: str | None,
    lengths: Sequence[int],
    seed: int,
) -> dict[str, Any]:
    """What a measured unit depends on besides its cell, as JSON. How many units there are is no part of it, nor are
    the lengths, unless a text is predicted, whose windows depend on the longest."""
    size, digest = digest_of(fixed.path)
    kept = {
        name: {
            key: _plain(value) for key, value in options.items() if key not in ("samples", "windows", "text")
        }
        for name, options in own.items()
    }
    found = {
        "version": __version__,
        "model": {"name": fixed.path.name, "bytes": size, "digest": digest},
        "kv_type": fixed.kv_type,
        "precision": fixed.precision,
        "lora": None if fixed.lora is None else [*digest_of(fixed.lora), fixed.lora_scale],
        "tasks": kept,
        "text": None if text is None else hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16],
        "seed": seed,
    }
    if any(name in PREDICTION for name in own):
        found["lengths"] = list(lengths)
    return found


def _plain(value: Any) -> Any:
    return [one.name for one in value] if isinstance(value, tuple) else value


def digest_of(path: Path) -> tuple[int, str]:
    """A file's size, and a digest of its beginning and its end."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256()
        for at in (0, max(0, size - _DIGESTED)):
            file.seek(at)
            digest.update(file.read(_DIGESTED))
    return size, digest.hexdigest()[:16]
