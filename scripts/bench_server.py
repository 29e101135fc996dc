"""Our server and llama-server, on the same model and through the same requests, one after the other in one run.

    python scripts/bench_server.py                                    # conversations, and streams during a prompt
    python scripts/bench_server.py --preset llama-3.2-1b --type q8_0 --only depth
    python scripts/bench_server.py --only prompt --streams 4 --prompt 30000
    python scripts/bench_server.py --only short                       # short prompts during one of 30,000 tokens

conversation: time to the first token of a prompt, and of the turn after it. prompt: the share of their speed that
streams keep while a prompt is read, and the longest pause. short: time to the first token of short prompts while a
long one is read, without streams and with. depth: tokens per second of streams together, each with a context of its
own, filled with copies. llama-server is built from the package that vendor/llama.cpp pins, once; both sides have
exact attention and f16 K/V. Prints a table, then one JSON line: {"model", "threads", "rows": [{"side", "what",
...}]}.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from context_bench import models
from context_bench.job import BenchError as ModelError
from rich import box
from rich.console import Console
from rich.table import Table
from server_bench import measure
from server_bench.client import SILENT
from server_bench.sides import OURS, UPSTREAM, Setup, serving
from server_bench.upstream import BenchError, llama_server

from pyllama_long.gguf_file import GGUFError
from pyllama_long.model_info import model_info
from pyllama_long.params import cpus

ROOT = Path(__file__).parents[1]
KINDS = ("conversation", "prompt", "short", "depth")
SHOWN = {
    "conversation": ("first_turn_s", "second_turn_s", "reuse"),
    "prompt": ("prompt_s", "alone_tps", "beside_tps", "kept", "longest_gap_s"),
    "short": ("streams", "prompt_s", "shorts", "alone_ms", "beside_ms", "worst_ms", "times"),
    "depth": ("depth", "streams", "tps"),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-m", "--model", default=models.EMBEDDED, help="GGUF file (%(default)s)")
    parser.add_argument("--preset", help="in place of a file: a random model of a known shape")
    parser.add_argument("--type", default="q8_0", help="of the preset's weights (%(default)s)")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/models"), help="of preset files (%(default)s)"
    )
    parser.add_argument("--only", default=",".join(KINDS[:3]), help=f"of {','.join(KINDS)} (%(default)s)")
    parser.add_argument("--sides", default=f"{UPSTREAM},{OURS}", help="(%(default)s)")
    parser.add_argument("--prompt", type=int, default=30_000, help="tokens of the long prompt (%(default)s)")
    parser.add_argument(
        "--streams", type=int, default=0, help="4 beside a prompt, 2 beside short ones, 8 at a depth"
    )
    parser.add_argument("--depths", default="4096,32768", help="of depth (%(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="that streams write at a depth (%(default)s)")
    parser.add_argument("--threads", type=int, default=cpus()[0], help="(%(default)s)")
    parser.add_argument("--llama-server", type=Path, help="a program that is there already")
    args = parser.parse_args(argv)
    console = Console(stderr=True)
    try:
        rows = run(args, console)
    except (BenchError, ModelError, GGUFError, OSError, RuntimeError) as error:
        print(f"bench_server: error: {error}", file=sys.stderr)
        return 1
    report(args, rows)
    return 0


def run(args: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    kinds, sides = args.only.split(","), args.sides.split(",")
    if not set(kinds) <= set(KINDS) or not set(sides) <= {OURS, UPSTREAM}:
        raise BenchError(f"--only takes {','.join(KINDS)}, --sides {UPSTREAM},{OURS}")
    if args.preset:
        model = models.preset(args.preset, args.type, args.folder, lambda done, total: None)
    else:
        model = Path(models.embedded_model() if args.model == models.EMBEDDED else args.model)
    args.model = str(model)
    n_vocab = model_info(model).n_vocab
    SILENT[:] = (n_vocab - 4, n_vocab - 3, n_vocab - 1)  # the embedded models' marks come last
    program = args.llama_server
    if UPSTREAM in sides and program is None:
        program = llama_server(ROOT, console.print)
    rows = []
    for kind in kinds:
        for depth in [int(depth) for depth in args.depths.split(",")] if kind == "depth" else [args.prompt]:
            with tempfile.TemporaryDirectory(dir=args.folder if args.folder.is_dir() else None) as folder:
                streams = args.streams or {"depth": 8, "short": 2}.get(kind, 4)
                longest = depth + args.tokens + 2048
                cells = longest * (streams if kind == "depth" else 1) + 4096 * streams
                slots = streams + {"depth": 0, "short": 2}.get(kind, 1)
                setup = Setup(model, longest, cells, slots, args.threads, Path(folder), program)
                if kind == "depth":
                    depth = contexts(model, folder, depth, streams)
                for side in sides:
                    console.print(f"{kind} {depth:,}: {side}", highlight=False)
                    with serving(setup, side) as client:
                        found: dict[str, Any]
                        if kind == "conversation":
                            found = measure.conversation(client, depth)
                        elif kind == "prompt":
                            found = measure.beside_a_prompt(client, depth, streams)
                        elif kind == "short":
                            found = measure.short_beside_a_prompt(client, depth, 0)
                            rows.append({"side": side, "what": kind} | found)
                            found = measure.short_beside_a_prompt(client, depth, streams)
                        else:
                            found = measure.at_depth(client, side, n_vocab, depth, streams, args.tokens)
                    rows.append({"side": side, "what": kind} | found)
                    console.print(rows[-1], highlight=False)
    return rows


def contexts(model: Path, folder: str, depth: int, streams: int) -> int:
    command = [sys.executable, "-m", "server_bench.contexts", str(model), folder, str(depth), str(streams)]
    path = f"{ROOT}:{ROOT / 'scripts'}"
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": path}, check=False
    )
    if done.returncode:
        raise BenchError(f"contexts could not be made: {done.stderr.strip().splitlines()[-1:]}")
    return int(json.loads(done.stdout)["tokens"])


def shown(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.4g}"


def report(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    console = Console()
    for kind, fields in SHOWN.items():
        mine = [row for row in rows if row["what"] == kind]
        if not mine:
            continue
        table = Table(title=kind, box=box.SIMPLE_HEAD, title_justify="left")
        for name in ("side", *fields):
            table.add_column(name, justify="right" if name != "side" else "left")
        for row in mine:
            table.add_row(row["side"], *(shown(row[name]) for name in fields))
        console.print(table)
    print(json.dumps({"model": Path(args.model).name, "threads": args.threads, "rows": rows}))


if __name__ == "__main__":
    sys.exit(main())
