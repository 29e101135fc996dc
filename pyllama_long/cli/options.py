"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pyllama_long.cli.checks import finite, length, one_of
from pyllama_long.cli.embedded import EMBEDDED
from pyllama_long.context_options import KV_TYPES, MAX_THREADS, PRECISIONS

_PANEL = "Model"


def _option(*names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=_PANEL, **more)


Model = Annotated[
    Path | None,
    _option(
        "-m",
        "--model",
        metavar="FILE",
        help=f"A GGUF file, or an embedded model: {', '.join(EMBEDDED)}.",
    ),
]
Hub = Annotated[
    str | None,
    _option(
        "--hf",
        metavar="REPO[:FILE]",
        help="A model of the Hugging Face hub, downloaded once.",
    ),
]
Attention = Annotated[
    str,
    _option(
        metavar="PLAN",
        help="Which keys are read: auto, exact, skim, streaming, 'sinks(64)+window(1024)+topk(3%)', ..., or upstream.",
    ),
]
Rope = Annotated[
    str,
    _option(
        metavar="POLICY",
        help="Positions beyond the trained length: auto, native, yarn, 'rerope(4096)+logn', dca, ...",
    ),
]
Ctx = Annotated[
    int,
    _option(
        parser=length(0),
        metavar="N",
        help="Context: tokens (8192, 128k) or times the trained length (4x); 0: chosen.",
    ),
]
KvType = Annotated[
    str,
    _option(callback=one_of(tuple(KV_TYPES)), metavar="TYPE", help=f"KV cache: {', '.join(KV_TYPES)}."),
]
Precision = Annotated[
    str,
    _option(
        callback=one_of(PRECISIONS),
        metavar="|".join(PRECISIONS),
        help="Of attention. auto: the fastest the processor has; f32: float32 throughout.",
    ),
]
Threads = Annotated[
    int,
    _option(min=0, max=MAX_THREADS, metavar="N", help="CPU threads; 0: chosen."),
]
Checkpoints = Annotated[
    int,
    _option(
        min=0,
        max=65536,
        metavar="N",
        help="Places of a text that recurrent states and sliding windows go back to; 0: none.",
    ),
]
CheckpointEvery = Annotated[
    int,
    _option(min=16, max=2**31 - 1, metavar="N", help="Tokens between two checkpoints at most."),
]
CheckpointRam = Annotated[
    float,
    _option(min=0.0, max=1e6, metavar="N", help="Checkpoints kept in memory, GiB."),
]
Lora = Annotated[
    Path | None,
    _option(metavar="FILE", help="A LoRA adapter, as a GGUF file."),
]
Loras = Annotated[
    list[str] | None,
    _option(
        "--lora",
        metavar="FILE[=SCALE]",
        help="A LoRA adapter, and how much of it; repeatable.",
    ),
]
LoraScale = Annotated[float, _option(callback=finite, metavar="X", help="How much of it.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on stdout.")]
