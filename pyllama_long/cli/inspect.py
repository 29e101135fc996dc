"""`inspect`: what a model file contains, how much memory its contexts take, and what would be chosen for it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyllama_long import memory
from pyllama_long.cli.checks import MAX_CTX
from pyllama_long.cli.model_options import MIN_CTX, ModelOptions
from pyllama_long.cli.options import Attention, Ctx, Hub, Json, KvType, Model, Rope
from pyllama_long.cli.texts import size
from pyllama_long.context_options import KV_TYPES
from pyllama_long.context_options import kv_type as number_of
from pyllama_long.gguf_file import GGUFError
from pyllama_long.layers import Reasons, by_reason, describe
from pyllama_long.model_info import ModelInfo
from pyllama_long.plan import ALL, choose_plan
from pyllama_long.rope import Takes, choose_rope

EXAMPLES = """\b
[b]Examples[/b]
  pyllama-long inspect model.gguf
  pyllama-long inspect --hf ggml-org/gemma-3-1b-it-GGUF
  pyllama-long inspect model.gguf --ctx 128k
  pyllama-long inspect model.gguf --kv-type q8_0 --json
"""
_STEPS = (1, 4, 16, 100)  # times the trained length


def command(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", help="A GGUF file, as -m has it; the embedded model without it."),
    ] = None,
    named: Model = None,
    hub: Hub = None,
    attention: Attention = "auto",
    rope: Rope = "auto",
    kv_type: KvType = "f16",
    ctx: Ctx = 0,
    as_json: Json = False,
) -> None:
    """Show a model's architecture, trained length, RoPE keys, memory needs, and what would be chosen."""
    if model is not None and named is not None:
        raise typer.BadParameter("give MODEL or -m FILE, not both")
    options = ModelOptions(model=model or named, hub=hub, ctx=ctx)
    info = options.info()
    steps = [min(MAX_CTX, step * info.n_train) for step in _STEPS if info.n_train]
    lengths = [options.n_ctx(0)] if ctx else steps
    takes, sizes, refused = _ask(info, lengths, kv_type)
    report = {
        **asdict(info),
        "kv_bytes_per_token": {kind: info.kv_bytes_per_token(kind) for kind in KV_TYPES},
        "refused_layers": by_reason(refused),
    }
    report["choices"] = [choice(info, n, attention, rope, kv_type, takes, sizes.get(n)) for n in lengths]
    if as_json:
        print(json.dumps(report))
    else:
        _show(info, report["choices"], kv_type, describe(refused))


def _ask(info: ModelInfo, lengths: list[int], kv_type: str) -> tuple[Takes, dict[int, int], Reasons]:
    """What llama.cpp and our hooks report about the model: the policies that it supports, the bytes of K, V and states
    of contexts, and the layers that the op does not compute. For a file that llama.cpp refuses, the header is shown.
    Raises ModelError for one that ends a process."""
    from pyllama_long.keywords import options
    from pyllama_long.params import context_params
    from pyllama_long.probe import probe

    kind = number_of(kv_type)
    params = context_params(options({}), MIN_CTX, kind, kind)
    found = probe(info.path, params, tuple(lengths))
    if found.refused:
        print(f"llama.cpp does not load this file: {found.refused}", file=sys.stderr)
        return Takes(rope=not info.alibi), {}, []
    sizes = {n: size for n, size in zip(lengths, found.memory, strict=True) if size >= 0}
    return Takes(not info.alibi, found.no_map, found.no_scaling), sizes, found.layers


def choice(
    info: ModelInfo,
    n: int,
    attention: str,
    rope: str,
    kv_type: str,
    takes: Takes | None = None,
    kv_bytes: int | None = None,
) -> dict[str, Any]:
    """What LongLlama would choose for a context of n tokens, and the bytes that it needs. kv_bytes: from llama.cpp;
    None: computed from the header."""
    takes = takes or Takes(rope=not info.alibi)
    kv_bytes = int(n * info.kv_bytes_per_token(kv_type)) if kv_bytes is None else kv_bytes
    try:
        plan_text, plan_reason, reach = "upstream", "asked for", ALL
        if attention != "upstream":
            plan, plan_reason = choose_plan(attention, info.n_train, info.dilated)
            plan_text, reach = str(plan), plan.reach
        policy, rope_reason = choose_rope(
            rope, info.n_train, n, info.rope_scaling, info.rope_extension, reach, takes
        )
    except OverflowError as error:
        raise GGUFError(f"{info.path} is damaged: {error}") from None
    return {
        "n_ctx": n,
        "kv_bytes": kv_bytes,
        "memory_bytes": info.file_bytes + kv_bytes,
        "attention": plan_text,
        "attention_reason": plan_reason,
        "rope": str(policy),
        "rope_reason": rope_reason,
    }


def _show(info: ModelInfo, choices: list[dict[str, Any]], kv_type: str, refused: str) -> None:
    console = Console()
    facts = Table(box=None, show_header=False, pad_edge=False)
    rows = _facts(info)
    if refused:
        rows.append(("llama.cpp's own attention", f"layers {refused}"))
    for name, value in rows:
        facts.add_row(name, Text(value))
    console.print(facts)
    if not choices:
        console.print(
            "The file does not say at which length the model was trained: give --ctx and --rope yourself."
        )
        return
    console.print()
    table = Table("context", f"KV {kv_type}", "with weights", "RoPE", box=None, pad_edge=False)
    available = memory.available()
    for row in choices:
        fits = "" if row["memory_bytes"] <= available else " (more than is free)"
        table.add_row(
            f"{row['n_ctx']:,}",
            size(row["kv_bytes"]),
            size(row["memory_bytes"]) + fits,
            Text(row["rope"]),
        )
    console.print(table)
    console.print()
    first, last = choices[0], choices[-1]
    reasons = [f"attention: {first['attention']} ({first['attention_reason']})"]
    reasons += [f"RoPE: {row['rope']} ({row['rope_reason']})" for row in (first, last)]
    for reason in dict.fromkeys(reasons):
        console.print(Text(reason), soft_wrap=True)


def _facts(info: ModelInfo) -> list[tuple[str, str]]:
    kv_heads = sorted(set(info.kv_heads))
    heads = f"{info.n_head} query, {' or '.join(map(str, kv_heads)) or 'unknown'} KV"
    per_token = ", ".join(f"{kind} {size(info.kv_bytes_per_token(kind))}" for kind in KV_TYPES)
    found = [
        ("file", f"{info.path}, {size(info.file_bytes)}"),
        ("name", info.name or "(none)"),
        ("architecture", info.architecture),
        (
            "parameters",
            f"{info.parameters / 1e6:,.1f} M, mostly {info.weights}" if info.parameters else "none here",
        ),
        ("trained length", f"{info.n_train:,} tokens" if info.n_train else "unknown"),
        ("vocabulary", f"{info.n_vocab:,}"),
        ("layers", f"{info.n_layer}"),
        ("heads", f"{heads}, sizes {info.key_length} (K) and {info.value_length} (V)"),
        (
            "RoPE keys",
            ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in info.rope.items())
            or "none",
        ),
        ("RoPE scaling", info.rope_scaling or "none"),
        ("KV per token", per_token if info.kv_bytes_per_token() else "unknown"),
        ("chat template", "yes" if info.chat_template else "no"),
    ]
    if info.sliding_window:
        found.append(
            ("sliding window", f"{info.sliding_window:,} tokens in some layers: their KV takes less")
        )
    if info.dilated:
        found.append(("dilated", f"segments {list(info.dilated[0])}, rates {list(info.dilated[1])}"))
    return found
