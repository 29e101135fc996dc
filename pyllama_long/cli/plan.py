"""`plan`: what an attention plan reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyllama_long.cli import checks
from pyllama_long.cli.command_error import CommandError
from pyllama_long.cli.options import Hub, Json, Model
from pyllama_long.cli.texts import writing
from pyllama_long.plan import AttentionPlan

EXAMPLES = """\b
[b]Examples[/b]
  pyllama-long plan 'sinks(64)+window(4096)'
  pyllama-long plan longnet --length 65536 --heads 4 --png longnet.png
  pyllama-long plan longnet --length 4k --heads 4 --from 1000
  pyllama-long plan 'sinks(64)+window(4096)' --length 64k --work 512 --heads 32 --kv-heads 8
  pyllama-long plan 'sinks(4)+window(508)+topk(3%)' -m demo --text README.md --png reads.png
  pyllama-long plan skim --trained 512 --length 4096
  pyllama-long plan 'prefill: sinks(4)+window(508) | tail: exact; dense_layers=2' --json
"""
_SHARE_LENGTHS = (1024, 4096, 16384, 65536, 262144)
_MAX_TOKENS = 1 << 24
_MAX_WORK = 1 << 20  # tokens; no batch is larger


def command(
    plan: Annotated[
        str, typer.Argument(metavar="PLAN", help="A plan or the name of a preset.", show_default=False)
    ],
    length: Annotated[
        int,
        typer.Option(
            parser=checks.length(1, _MAX_TOKENS, times=False), metavar="N", help="Tokens of the text."
        ),
    ] = 16384,
    head: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1023,
            metavar="H",
            help="The head that is drawn, by its number (docs/plans.md).",
            show_default="0",
        ),
    ] = None,
    heads: Annotated[int, typer.Option(min=1, max=1024, metavar="N", help="Query heads.")] = 8,
    tail: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="How many queries at the end are in the tail phase; not used for shares and paths.",
            show_default="an eighth; with --work: 1 if it is alone, else 0",
        ),
    ] = None,
    trained: Annotated[
        int | None,
        typer.Option(
            parser=checks.length(times=False), metavar="N", help="Trained length of the model, for `skim`."
        ),
    ] = None,
    start: Annotated[
        int | None,
        typer.Option(
            "--from", min=0, metavar="T", help="Show the distances in layers from token T to all others."
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(min=8, max=512, metavar="N", help="Characters per line.", show_default="64"),
    ] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the drawing as a PNG too.")] = None,
    work: Annotated[
        int | None,
        typer.Option(
            parser=checks.length(1, _MAX_WORK, times=False),
            metavar="N",
            help="Print how the last N tokens of --length are computed instead: tiles, key ranges and the rows "
            "that read them.",
        ),
    ] = None,
    kv_heads: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Of --work: the K/V heads that the query heads share.",
            show_default="as many as --heads",
        ),
    ] = None,
    head_size: Annotated[
        int | None,
        typer.Option(min=4, max=512, metavar="N", help="Of --work: dimensions.", show_default="128"),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=512, metavar="N", help="Of --work: CPU threads.", show_default="1"),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw what each layer of a model (-m) reads of the first --length tokens of this text instead, "
            "and the error that is measured.",
        ),
    ] = None,
    model: Model = None,
    hub: Hub = None,
    as_json: Json = False,
) -> None:
    """Draw which keys an attention plan reads: a map, the share of keys per length, the longest path; or what the
    layers of a model really read of a text."""
    from pyllama_long import viz

    if tail is not None and tail > length:
        raise typer.BadParameter(f"--tail {tail} is more than the {length} tokens of --length")
    if text is None and (model is not None or hub is not None):
        raise typer.BadParameter("-m and --hf belong to --text FILE")
    drawing = {"--head": head, "--width": width, "--from": start, "--png": png}
    planning = {"--kv-heads": kv_heads, "--head-size": head_size, "--threads": threads}
    for name, value in (planning if work is None else drawing).items():
        if value is not None:
            where = "--work N" if work is None else "the drawing, which --work replaces"
            raise typer.BadParameter(f"{name} belongs to {where}")
    head, width = head or 0, width or 64
    if head >= heads:
        raise typer.BadParameter(f"--head {head} is not one of --heads {heads}, which are 0 to {heads - 1}")
    if png is not None and png.suffix.lower() != ".png":
        raise CommandError(f"--png writes PNG: {png} does not end in .png")
    if text is not None:
        from pyllama_long.cli.model_options import ModelOptions
        from pyllama_long.cli.plan_reads import Drawing, show

        show(ModelOptions(model=model, hub=hub, attention=plan), Drawing(text, length, width, png, as_json))
        return
    found = AttentionPlan.parse(plan, n_train=trained)
    if work is not None:
        from pyllama_long.cli.plan_work import Batch, work_text

        kv_heads = heads if kv_heads is None else kv_heads
        if work > length:
            raise typer.BadParameter(f"--work {work} is more than the {length} tokens of --length")
        if heads % kv_heads:
            raise typer.BadParameter(f"--kv-heads {kv_heads} does not divide --heads {heads}")
        default = 1 if work == 1 else 0  # a token that is evaluated alone belongs to the answer
        batch = Batch(length, work, default if tail is None else tail)
        try:
            listed = work_text(found, batch, (heads, kv_heads), head_size or 128, threads or 1)
        except MemoryError:
            raise CommandError(f"not enough memory for --work {work}: take fewer tokens or --heads") from None
        print(json.dumps({"plan": str(found), "work": listed}) if as_json else listed.removesuffix("\n"))
        return
    shares = viz.shares(found, sorted({*_SHARE_LENGTHS, length}), heads)
    path = viz.longest_path(found, length, heads)
    if start is not None and start >= length:
        raise typer.BadParameter(f"--from {start} is not a token from 0 to {length - 1}")
    away = None if start is None else viz.distances(found, length, start, heads)
    if png is not None:
        with writing(png):
            viz.pattern_png(found, png, length, head, tail=tail)
    if as_json:
        result = {
            "plan": str(found),
            "length": length,
            "heads": heads,
            "shares": {str(n): share for n, share in shares.items()},
            "longest_path": path,
            **({} if away is None else {"from": start, "distances": away.tolist()}),
            "png": str(png) if png else None,
        }
        print(json.dumps(result))
        return
    console = Console()
    console.print(Text(str(found), style="bold"), soft_wrap=True)
    console.print(Text(found.explain()))
    console.print()
    console.print(Text(viz.pattern_text(found, length, width, head=head, tail=tail)), soft_wrap=True)
    console.print(
        f"rows: queries 0 to {length - 1:,}; columns: keys; head {head}; █ ▓ ▒ ░ all to some read, · none",
        soft_wrap=True,
    )
    if found.prefill.chooses or found.tail.chooses:
        console.print(
            "not drawn: what topk, lsh, sample and verified choose in each layer; shares count as many keys as they "
            "may read"
        )
    console.print()
    table = Table("prompt", "share of keys read", box=None, pad_edge=False)
    for n, share in shares.items():
        table.add_row(f"{n:,}", f"{share:.2%}")
    console.print(table)
    hops = "some tokens never reach the last one, however many layers"
    if path is not None:
        by_topk = " without the keys that are chosen in each layer" if found.prefill.chooses else ""
        hops = (
            f"{path} layer{'s' if path != 1 else ''} join{'' if path != 1 else 's'} any token to the last one"
            f"{by_topk}"
        )
    console.print(f"\nlongest path at {length:,}: {hops}", soft_wrap=True)
    if away is not None and length > 1:
        _show_distances(console, away, start or 0, width)
    if png is not None:
        console.print(f"wrote {png}", markup=False, soft_wrap=True)


def _show_distances(console: Console, away: npt.NDArray[np.int32], start: int, width: int) -> None:
    """A line with the largest distances of neighbours, and how many tokens are at which distance."""
    parts = [part for part in np.array_split(away, min(width, len(away))) if len(part)]
    digits = "".join(
        "∞" if (part < 0).any() else str(part.max()) if part.max() < 10 else "+" for part in parts
    )
    console.print(
        f"\nlayers between token {start:,} and the others (largest of {len(away) / len(parts):.3g} tokens):"
    )
    console.print(Text(digits), soft_wrap=True)
    table = Table("layers", "tokens before", "tokens after", box=None, pad_edge=False)
    for hops in sorted(set(away.tolist()), key=lambda n: (n < 0, n)):
        if hops:
            name = f"{hops}" if hops > 0 else "never"
            before, after = (int((part == hops).sum()) for part in (away[:start], away[start + 1 :]))
            table.add_row(name, f"{before:,}", f"{after:,}")
    console.print(table)
