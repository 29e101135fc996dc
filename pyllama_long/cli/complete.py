"""`complete`: the text that follows a prompt."""

from __future__ import annotations

import json
import reprlib
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pyllama_long.cli.checks import MAX_CTX
from pyllama_long.cli.command_error import CommandError
from pyllama_long.cli.model_options import AdaptedModelOptions, ModelOptions
from pyllama_long.cli.options import Json
from pyllama_long.cli.prefill import Prefill
from pyllama_long.cli.sampling import Sampling
from pyllama_long.cli.texts import clean, plain, read_text

EXAMPLES = """\b
[b]Examples[/b]
  pyllama-long complete -m model.gguf 'Once upon a time'
  pyllama-long complete -m model.gguf -f book.txt --attention skim --max-tokens 100
  cat notes.txt | pyllama-long complete -m model.gguf --json
"""
_SAMPLING = Sampling(max_tokens=256)


def command(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The prompt; without it and -f: stdin.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("-f", "--file", metavar="FILE", help="Read the prompt from a file; -: stdin."),
    ] = None,
    *,
    options: AdaptedModelOptions,
    tail: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The end of the prompt that a plan's tail phase begins at."),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End the answer here; repeatable.")
    ] = None,
    sampling: Sampling = _SAMPLING,
    as_json: Json = False,
) -> None:
    """Continue a prompt from an argument, a file or stdin."""
    if prompt is not None and file is not None:
        raise typer.BadParameter("give PROMPT or -f FILE, not both")
    if prompt is None and file is None and sys.stdin.isatty():
        raise typer.BadParameter("give PROMPT or -f FILE, or pipe a text in")
    text = plain(prompt) if prompt is not None else read_text(file or Path("-"))
    if not text:
        raise CommandError("the prompt is empty")
    tail = None if tail is None else plain(tail)
    if tail is not None and not text.endswith(tail):
        raise typer.BadParameter(f"--tail must be the end of the prompt, which {reprlib.repr(tail)} is not")
    prefill = Prefill(Console(stderr=True))
    given, n_ctx = (text, 0) if options.ctx else measured(options, text, sampling.max_tokens)
    llm = options.open(n_ctx, prefill)
    from pyllama_long.errors import ContextOverflow

    said, reason, times = "", None, []
    with prefill.reading(llm.n_batch):
        stops = [plain(s) for s in stop or []]
        try:
            run = llm.prepare_completion(given, tail=tail, stop=stops, **sampling.arguments())
        except ContextOverflow:
            raise
        except ValueError as error:
            raise CommandError(str(error)) from None
        for chunk in run.stream():
            piece = chunk["choices"][0]["text"]
            reason = chunk["choices"][0].get("finish_reason") or reason
            if piece:
                times.append((run.usage["completion_tokens"], time.perf_counter()))
                prefill.stop()
                said += piece
                if not as_json:
                    print(clean(piece), end="", flush=True)
    if not as_json:
        print()
        return
    (n_first, first), (n, ended) = (times[0], times[-1]) if times else ((0, 0.0), (0, 0.0))
    result = {
        "text": said,
        "finish_reason": reason,
        "usage": run.usage,
        "plan": str(llm.plan),
        "rope": str(llm.rope),
        "trained_length": llm.n_train,
        "context": llm.n_ctx(),
        "share_of_keys": llm.attention_stats()["share_of_keys"],
        "prefill_tps": round(prefill.rate, 1),
        "decode_tps": round((n - n_first) / (ended - first), 1) if n > n_first else None,
    }
    print(json.dumps(result))


def measured(options: ModelOptions, text: str, max_tokens: int) -> tuple[str | list[int], int]:
    """The prompt, as tokens if they had to be counted, and the context: the trained length, or the length of prompt
    and answer if that is more."""
    info = options.info()
    most = (
        len(text.encode()) + max_tokens + 8
    )  # no tokenizer gives more tokens than bytes, besides BOS and EOS
    if most <= info.n_train:
        return text, 0
    with options.vocabulary() as tokens:
        found = tokens(text)
    n_ctx = max(info.n_train, len(found) + max_tokens + 8)
    if n_ctx > MAX_CTX:
        raise CommandError(
            f"{len(found):,} tokens and an answer of --max-tokens {max_tokens} are more than any context holds"
        )
    return found, n_ctx
