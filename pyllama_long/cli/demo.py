"""`demo`: the embedded model reads 100 times its trained length and answers questions about hidden facts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyllama_long.cli import checks
from pyllama_long.cli.command_error import CommandError
from pyllama_long.cli.model_options import ModelOptions
from pyllama_long.cli.options import Json
from pyllama_long.cli.prefill import Prefill
from pyllama_long.cli.texts import clean
from pyllama_long.demo import Answer, Fact, Reading, build_document, interview, most_facts, shortest

EXAMPLES = """\b
[b]Examples[/b]
  pyllama-long demo
  pyllama-long demo --length 100000 --facts 20 --seed 7
  pyllama-long demo --json
"""
_TIMES = 100  # the default document has this many times the trained length
_UPSTREAM_LENGTH = 16384  # upstream reads this in a minute; its time grows with the square of the length
_ANSWER_ROOM = 128  # tokens of a question and its answer
_MAX_TOKENS = 1 << 24
_ENOUGH = 0.9  # share of the facts


@dataclass(frozen=True)
class Run:
    reading: Reading
    plan: str
    rope: str
    share_of_keys: float | None


def command(
    length: Annotated[
        int,
        typer.Option(
            parser=checks.length(0, _MAX_TOKENS, times=False),
            metavar="N",
            help="Tokens of the document (100000, 100k); 0: 100 times the trained length.",
        ),
    ] = 0,
    facts: Annotated[
        int, typer.Option(min=1, max=most_facts(), metavar="N", help="Facts to hide in it.")
    ] = 10,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Another seed, another document.")] = 0,
    as_json: Json = False,
) -> None:
    """Let the embedded model read 100 times its trained length, and compare."""
    out = Console(quiet=as_json, highlight=False)
    options = ModelOptions()
    trained = options.info().n_train
    length = length or _TIMES * trained
    with options.vocabulary() as tokens:
        least = shortest(lambda text: len(tokens(text)), facts, seed)
    if length < least:
        raise typer.BadParameter(
            f"--length {length} has no room for --facts {facts}: give at least --length {least}, or fewer facts"
        )
    out.print(f"The embedded model was trained at {trained:,} tokens. Here is a document of {length:,},")
    out.print(f"the reference of the Python language, with {facts} facts hidden in it.\n")
    ours = run(options, "skim", "auto", length, facts, seed, out)
    upstream_length = min(length, _UPSTREAM_LENGTH)
    out.print(f"\nThe same with upstream's own attention and RoPE, at {upstream_length:,} tokens:\n")
    upstream = run(options, "upstream", "native", upstream_length, facts, seed, out)
    enough = ours.reading.found >= _ENOUGH * facts
    show(out, trained, ours, upstream)
    print(json.dumps(summary(trained, seed, ours, upstream)))
    if not enough:
        raise CommandError(f"only {ours.reading.found} of {facts} facts were found")


def run(
    options: ModelOptions, attention: str, rope: str, length: int, facts: int, seed: int, out: Console
) -> Run:
    """Opens the model with a plan and a policy, lets it read a document, and asks about all facts."""
    from pyllama_long.llama import LongLlama

    prefill = Prefill(out)
    llm = LongLlama(
        options.file,
        n_ctx=length + 2 * _ANSWER_ROOM,
        attention=attention,
        rope=rope,
        progress=prefill,
    )
    try:
        document = build_document(
            lambda text: len(llm.tokenize(text.encode(), special=True)), length, facts, seed
        )
        view = View(out, prefill)
        with prefill.reading(llm.n_batch):
            reading = interview(llm, document, view.question, view.text, view.answer)
        share = llm.attention_stats()["share_of_keys"] if attention != "upstream" else None
        return Run(reading, "upstream" if share is None else str(llm.plan), str(llm.rope), share)
    finally:
        llm.close()


class View:
    """Prints questions and answers as they arrive."""

    def __init__(self, out: Console, prefill: Prefill) -> None:
        self.out, self.prefill = out, prefill

    def question(self, fact: Fact) -> None:
        self.prefill.stop()
        self.out.print(Text(f"{fact.depth:4.0%} deep  {fact.question} ", style="dim"), end="", soft_wrap=True)

    def text(self, piece: str) -> None:
        self.out.print(Text(clean(piece)), end="", soft_wrap=True)

    def answer(self, answer: Answer) -> None:
        right = (
            Text("  right", "green") if answer.found else Text(f"  wrong, it is {answer.fact.value}", "red")
        )
        self.out.print(right)


def show(out: Console, trained: int, ours: Run, upstream: Run) -> None:
    table = Table("", "pyllama-long", "upstream", box=None, pad_edge=False)
    for name, ours_cell, upstream_cell in _rows(trained, ours, upstream):
        table.add_row(name, Text(ours_cell), Text(upstream_cell))
    out.print()
    out.print(table)
    out.print("\nWith your own model:\n")
    for line in (
        "pyllama-long inspect model.gguf                          what fits, and what would be chosen",
        "pyllama-long chat -m model.gguf --ctx 131072             then /read FILE, and ask",
        "pyllama-long chat -m model.gguf --ctx 131072 --attention skim     faster reading of long files",
        "from pyllama_long import LongLlama                       in place of llama_cpp.Llama",
    ):
        out.print(Text(f"  {line}"), soft_wrap=True)
    out.print()


def _rows(trained: int, ours: Run, upstream: Run) -> list[tuple[str, str, str]]:
    runs = (ours, upstream)

    def row(name: str, form: str, *values: Any) -> tuple[str, str, str]:
        first, second = (form.format(value) if value is not None else "all" for value in values)
        return name, first, second

    return [
        row("trained length", "{:,} tokens", trained, trained),
        row("document length", "{:,} tokens", *(run.reading.document.n_tokens for run in runs)),
        row("facts found", "{}", *(f"{run.reading.found} of {len(run.reading.answers)}" for run in runs)),
        row("attention", "{}", *(run.plan for run in runs)),
        row("RoPE", "{}", *(run.rope for run in runs)),
        row("keys read", "{:.2%}", *(run.share_of_keys for run in runs)),
        row("reading", "{:,.0f} tokens/s", *(run.reading.prefill_tps for run in runs)),
        row("writing", "{}", *(_writing(run.reading.decode_tps) for run in runs)),
    ]


def _writing(tps: float) -> str:
    return f"{tps:,.1f} tokens/s" if tps else "nothing: its answers ended at once"


def summary(trained: int, seed: int, ours: Run, upstream: Run) -> dict[str, Any]:
    """The contents of the last line."""
    return {
        "trained_length": trained,
        "document_length": ours.reading.document.n_tokens,
        "facts": len(ours.reading.answers),
        "facts_found": ours.reading.found,
        "plan": ours.plan,
        "rope": ours.rope,
        "share_of_keys": ours.share_of_keys,
        "prefill_tps": round(ours.reading.prefill_tps, 1),
        "decode_tps": round(ours.reading.decode_tps, 1),
        "upstream_document_length": upstream.reading.document.n_tokens,
        "upstream_facts_found": upstream.reading.found,
        "upstream_prefill_tps": round(upstream.reading.prefill_tps, 1),
        "upstream_decode_tps": round(upstream.reading.decode_tps, 1),
        "seed": seed,
        "depths_found": {f"{answer.fact.depth:.2f}": answer.found for answer in ours.reading.answers},
    }
