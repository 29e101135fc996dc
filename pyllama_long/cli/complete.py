"""`complete`: the text that follows a prompt."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pyllama_long.cli import common
from pyllama_long.cli.common import CommandError, Json, ModelOptions, Prefill, Sampling, clean, read_text

EXAMPLES = """\b
[b]Examples[/b]
  pyllama-long complete -m model.gguf 'Once upon a time'
  pyllama-long complete -m model.gguf -f book.txt --attention skim --max-tokens 100
  cat notes.txt | pyllama-long complete -m model.gguf --json
"""


def command(
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The prompt; without it and -f: stdin.", show_default=False),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("-f", "--file", metavar="FILE", help="Read the prompt from a file; -: stdin."),
    ] = None,
    model: common.Model = None,
    hub: common.Hub = None,
    attention: common.Attention = "auto",
    rope: common.Rope = "auto",
    ctx: common.Ctx = 0,
    kv_type: common.KvType = "f16",
    precision: common.Precision = "auto",
    threads: common.Threads = 0,
    tail: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The end of the prompt that a plan's tail phase begins at."),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End the answer here; repeatable.")
    ] = None,
    max_tokens: common.MaxTokens = 256,
    temp: common.Temp = 0.7,
    top_k: common.TopK = 40,
    top_p: common.TopP = 0.95,
    min_p: common.MinP = 0.05,
    repeat_penalty: common.RepeatPenalty = 1.0,
    seed: common.Seed = -1,
    as_json: Json = False,
) -> None:
    """Continue a prompt from an argument, a file or stdin."""
    if prompt is not None and file is not None:
        raise typer.BadParameter("give PROMPT or -f FILE, not both")
    if prompt is None and file is None and sys.stdin.isatty():
        raise typer.BadParameter("give PROMPT or -f FILE, or pipe a text in")
    text = prompt if prompt is not None else read_text(file or Path("-"))
    if not text:
        raise CommandError("the prompt is empty")
    options = ModelOptions(model, hub, attention, rope, ctx, kv_type, precision, threads)
    sampling = Sampling(max_tokens, temp, top_k, top_p, min_p, repeat_penalty, seed)
    prefill = Prefill(Console(stderr=True))
    llm = options.open(0 if ctx else needed_ctx(options, text, max_tokens), prefill)
    said, reason, n, first, ended = "", None, 0, 0.0, 0.0
    with prefill.reading(llm.n_batch):
        stream: Iterator[Any] = llm.create_completion(
            text, tail=tail, stop=stop or [], stream=True, **sampling.arguments()
        )
        for chunk in stream:
            piece = chunk["choices"][0]["text"]
            reason = chunk["choices"][0].get("finish_reason") or reason
            if piece:
                ended = time.perf_counter()
                n, first = n + 1, first or ended
                prefill.stop()
                said += piece
                if not as_json:
                    print(clean(piece), end="", flush=True)
    if not as_json:
        print()
        return
    n_prompt = len(llm.tokenize(text.encode()))
    result = {
        "text": said,
        "finish_reason": reason,
        "usage": {"prompt_tokens": n_prompt, "completion_tokens": llm.n_tokens - n_prompt},
        "plan": str(llm.plan),
        "rope": str(llm.rope),
        "trained_length": llm.n_train,
        "context": llm.n_ctx(),
        "share_of_keys": llm.attention_stats()["share_of_keys"],
        "prefill_tps": round(prefill.rate, 1),
        "decode_tps": round((n - 1) / (ended - first), 1) if n > 1 and ended > first else None,
    }
    print(json.dumps(result))


def needed_ctx(options: ModelOptions, text: str, max_tokens: int) -> int:
    """The trained length, or what the prompt and its answer take where that is more."""
    info = options.info()
    bound = (
        len(text.encode()) + max_tokens + 8
    )  # no tokenizer gives more tokens than bytes, besides BOS and EOS
    if bound <= info.n_train:
        return 0
    from pyllama_long import loading, log
    from pyllama_long.model import Model

    log.install(verbose=False)
    params, _arrays = loading.model_params(loading.options({"vocab_only": True}))
    with closing(Model(info.path, params)) as vocabulary:
        n_prompt = len(vocabulary.tokenize(text.encode(), add_bos=True, special=True))
    return max(info.n_train, n_prompt + max_tokens + 8)
