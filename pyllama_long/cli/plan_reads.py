"""`plan -m MODEL --text FILE`: what the layers of a model read of a text."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from pyllama_long.cli.command_error import CommandError
from pyllama_long.cli.model_options import ModelOptions
from pyllama_long.cli.prefill import Prefill
from pyllama_long.cli.texts import read_text, writing
from pyllama_long.plan import AttentionPlan

_CHECK = 64  # every how many queries errors are measured if the plan does not say


@dataclass(frozen=True)
class Drawing:
    """text: the file that is read; length: at most so many of its tokens."""

    text: Path
    length: int
    width: int
    png: Path | None
    as_json: bool


def show(options: ModelOptions, drawing: Drawing) -> None:
    """Evaluates the text under the plan, which checks its error even where it was not asked to."""
    from pyllama_long import reads

    with options.vocabulary() as encode:
        tokens = encode(read_text(drawing.text))[: drawing.length]
    if not tokens:
        raise CommandError(f"{drawing.text} is empty")
    plan = AttentionPlan.parse(options.attention, n_train=options.info().n_train)
    if not plan.checked and not (plan.prefill.exact and plan.tail.exact):
        plan = replace(plan, check=_CHECK)
    prefill = Prefill(Console(stderr=True))
    with closing(replace(options, attention=str(plan)).open(len(tokens) + 64, prefill)) as llm:
        with prefill.reading(llm.n_batch):
            found = reads.of_text(llm, tokens)
        shown = str(llm.plan)
        share = llm.attention_stats()["share_of_keys"]
    if not found.shares:
        raise CommandError(
            "llama.cpp computes the attention of all layers of this model: nothing was recorded"
        )
    if drawing.png is not None:
        with writing(drawing.png):
            reads.png(found, drawing.png, shown)
    if drawing.as_json:
        columns = min(drawing.width, found.n)
        result = {
            "plan": shown,
            "tokens": found.n,
            "share_of_keys": share,
            "error": found.meter.error,
            "layers": {
                str(layer): [round(x, 4) for x in row]
                for layer, row in zip(found.shares, found.binned(columns).tolist(), strict=True)
            },
            "errors": {str(layer): error for layer, error in found.meter.layers().items()},
            "png": str(drawing.png) if drawing.png else None,
        }
        print(json.dumps(result))
        return
    console = Console()
    console.print(Text(shown, style="bold"), soft_wrap=True)
    console.print(Text(reads.text(found, drawing.width)), soft_wrap=True)
    console.print(
        f"rows: layers; columns: {found.n:,} keys; █ ▓ ▒ ░ read by all to few of the later queries, · by none; "
        "then the share of keys and the largest error of a head",
        soft_wrap=True,
    )
    console.print(
        f"{share:.1%} of the keys read, checks included; relative error of attention {found.meter.error:.4f}, "
        f"measured at {found.meter.rows:,} rows",
        soft_wrap=True,
    )
    if drawing.png is not None:
        console.print(f"wrote {drawing.png}", markup=False, soft_wrap=True)
