"""Prefill and decode speed and memory of a whole model over depths: ours and upstream's attention in one run.

    python scripts/bench_context.py [-m MODEL | --preset NAME --type q8_0] [--lengths 1k,4k,16k]
    python scripts/bench_context.py --mode at --preset llama-3.1-8b --type q8_0 --lengths 128k
    python scripts/bench_context.py --mode at --attention --preset gpt-oss-20b,gemma-4-12b --lengths 8k,32k,128k

ladder: one prefill per side; at each depth its tokens per second from 0 on, those of the last chunk, and the
decode at that depth, whose tokens are removed again. at: the cache is filled to each depth with copies, then a
chunk and the decode are timed. --attention also times the attention of each layer alone, in another process.
Each side runs in processes of its own through llama_decode. Prints a table per model, each followed by one JSON
line: {"model", "mode", "plan", "rope", "kv_type", "threads", "chunk", "rows": [{"side", "depth",
"prefill_tokens", "prefill_tps", "last_chunk_tps", "decode_tokens", "decode_tps", "kv_mib", "peak_rss_mib"}],
"ratios": [{"depth", "prefill", "decode"}], "attention": [{"side", "depth", "kind", "layers", "prefill_ms",
"decode_ms"}], "attention_ratios": [{"depth", "kind", "prefill", "decode"}]}.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from context_bench import models, report
from context_bench.job import OURS, UPSTREAM, Attention, BenchError, Job, Row
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from pyllama_long.context_options import KV_TYPES
from pyllama_long.model_info import model_info

SIDES = (UPSTREAM, OURS)
LADDER = tuple(1024 << i for i in range(8))


def lengths(text: str) -> tuple[int, ...]:
    """`1024,4k,128k` as numbers, ascending."""
    found = set()
    for word in text.lower().split(","):
        digits = word.strip().removesuffix("k")
        if not digits.isascii() or not digits.isdecimal() or int(digits) < 1:
            raise argparse.ArgumentTypeError(f"{word.strip()!r} is not a length: write 1024,4096 or 1k,4k")
        found.add(int(digits) * (1024 if "k" in word else 1))
    return tuple(sorted(found))


def sides(text: str) -> tuple[str, ...]:
    wanted = {word.strip() for word in text.split(",")}
    if not wanted or not wanted.issubset(SIDES):
        raise argparse.ArgumentTypeError(f"{text!r} names no sides; known: {','.join(SIDES)}")
    return tuple(side for side in SIDES if side in wanted)


def at_least(low: int) -> Any:
    def number(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} on")
        return int(text)

    return number


class Bench:
    """The processes of a run, and what they found so far."""

    def __init__(self, console: Console, jobs: list[Job]) -> None:
        self.console, self.jobs = console, jobs
        self.rows: list[Row] = []
        self.attention: list[Attention] = []
        self.spent: list[float] = []  # seconds of finished processes

    def run(self) -> None:
        with show(self.console) as progress:
            for i, job in enumerate(self.jobs):
                task = progress.add_task(
                    f"{job.side} up to {job.depths[-1]:,}", total=job.depths[-1], left=""
                )
                begin, after = time.monotonic(), len(self.jobs) - i - 1
                if self.spent:
                    progress.update(task, left=clock((after + 1) * sum(self.spent) / len(self.spent)))
                with closing(events(job)) as told:
                    for event in told:
                        if event["event"] != "progress":
                            self.take(event, job)
                            continue
                        done, left = event["done"], event["left"]
                        left += after * (time.monotonic() - begin + left)
                        name = f"{job.side} {done:,} of {job.depths[-1]:,}"
                        progress.update(task, completed=done, description=name, left=clock(left))
                self.spent.append(time.monotonic() - begin)
                progress.remove_task(task)

    def take(self, event: dict[str, Any], job: Job) -> None:
        kind = event.pop("event")
        if kind == "error":
            raise BenchError(f"{job.side}: {event['text']}")
        if kind == "note":
            self.console.print(f"{job.side}: {event['text']}", highlight=False, markup=False, soft_wrap=True)
            return
        if kind == "attention":
            self.attention.append(Attention(**event))
            return
        row = Row(**event)
        self.rows.append(row)
        speeds = f"prefill {report.speed(row.prefill_tps)}, decode {report.speed(row.decode_tps)} tokens/s"
        self.console.print(f"{row.side:8} {row.depth:>9,}  {speeds}", highlight=False)


def events(job: Job) -> Generator[dict[str, Any], None, None]:
    """The results that the process of a job reports. Raises BenchError when it dies."""
    command = [sys.executable, __file__, "--job", json.dumps(asdict(job))]
    with tempfile.TemporaryFile("w+") as complaints:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True)
        assert child.stdout is not None
        try:
            for line in child.stdout:
                yield json.loads(line)
            code = child.wait()
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
        if code:
            complaints.seek(0)
            words = complaints.read().strip().splitlines()[-3:]
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"gave exit code {code}"
            memory = " (out of memory?)" if code == -signal.SIGKILL else ""
            raise BenchError(
                f"{job.side}: its process {how}{memory}{': ' if words else ''}{' | '.join(words)}"
            )


@contextmanager
def show(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    # Drawn seldom: the processor is what is measured.
    hidden = not console.is_terminal
    with Progress(
        *columns, console=console, transient=True, refresh_per_second=1, disable=hidden
    ) as progress:
        yield progress


def complain(console: Console, error: Exception) -> int:
    line = f"bench_context: error: {error}"
    console.print(line, style="red", highlight=False, markup=False, soft_wrap=True)
    return 1


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left" if hours else f"{minutes}:{rest:02} left"


def find_model(args: argparse.Namespace, name: str, console: Console) -> Path:
    if name == models.EMBEDDED:
        return models.embedded_model()
    if args.model:
        return Path(args.model)
    with show(console) as progress:
        task = progress.add_task(f"writing {name}", total=None, left="")

        def written(done: int, total: int) -> None:
            progress.update(
                task, completed=done, total=total, left=f"{done / 1e9:.2f} of {total / 1e9:.2f} GB"
            )

        return models.preset(name, args.type, args.cache, written)


def measure(args: argparse.Namespace, console: Console) -> int:
    """Runs the models one after another; their results are reported even if one of them ends early."""
    if args.plot:
        report.check_plot(args.plot)
    if args.attention and args.mode != "at":
        raise BenchError("--attention is measured at filled depths: give --mode at")
    if (args.plot or args.csv) and len(names(args)) > 1:
        raise BenchError("--csv and --plot hold one model: give one --preset")
    for file in filter(None, (args.csv, args.plot)):
        if not file.parent.is_dir():
            raise BenchError(f"{file.parent} is no folder: {file.name} cannot be written there")
    if args.threads == 0:
        from pyllama_long.params import cpus

        args.threads = cpus()[1]
    return max(measure_one(args, find_model(args, name, console), console) for name in names(args))


def names(args: argparse.Namespace) -> list[str]:
    return [args.model] if args.model else args.preset.split(",")


def measure_one(args: argparse.Namespace, model: Path, console: Console) -> int:
    """Runs the sides of a model."""
    info = model_info(model)
    if not info.n_layer:
        raise BenchError(f"{model} has no layers: it is not a language model's file")
    at = args.mode == "at"
    groups = [(depth,) for depth in args.lengths] if at else [args.lengths]
    settings = (at, args.plan, args.rope, args.kv_type, args.threads, args.chunk, args.decode_tokens)
    kinds = (False, True) if args.attention else (False,)
    jobs = [
        Job(side, str(model), group, *settings, attention)
        for group in groups
        for attention in kinds
        for side in args.sides
    ]
    models.check_memory(info, jobs[-1].n_ctx, args.kv_type)
    bench = Bench(console, jobs)
    code = 0
    try:
        bench.run()
    except BenchError as error:
        code = complain(console, error)
    except KeyboardInterrupt:
        console.print("stopped; what was measured:" if bench.rows else "stopped")
        code = 130
    if bench.rows:
        tell(args, model, bench.rows, bench.attention)
    return code


def tell(args: argparse.Namespace, model: Path, rows: list[Row], attention: list[Attention]) -> None:
    shown = ("mode", "plan", "rope", "kv_type", "threads", "chunk")
    run = {"model": model.stem, **{name: getattr(args, name) for name in shown}}
    title = (
        f"{run['model']}, {args.kv_type} cache, {args.threads} threads, ours: {args.plan}, rope {args.rope}"
    )
    at = args.mode == "at"
    Console(width=1000, highlight=False).print(report.table(rows, title, at))  # never squeezed
    if attention:
        Console(width=1000, highlight=False).print(report.attention_table(attention))
    if args.csv:
        report.write_csv(args.csv, rows, run)
    if args.plot:
        report.write_plot(args.plot, rows, title, at)
    found = {"rows": [asdict(row) for row in rows], "ratios": report.ratios(rows)}
    alone = {
        "attention": [asdict(row) for row in attention],
        "attention_ratios": report.attention_ratios(attention),
    }
    print(json.dumps({**run, **found, **(alone if attention else {})}))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    from vendor import cache_dir

    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=summary)
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument("-m", "--model", metavar="FILE", help="GGUF file, or embedded")
    which.add_argument(
        "--preset",
        default=models.EMBEDDED,
        help=f"one or more of {', '.join((models.EMBEDDED, *models.PRESETS))} (%(default)s)",
    )
    add("--type", type=str.lower, default="q8_0", help="weights of a preset (%(default)s)")
    add("--cache", type=Path, default=cache_dir() / "bench", help="folder of presets (%(default)s)")
    add(
        "--mode",
        choices=("ladder", "at"),
        default="ladder",
        help="(%(default)s) one prefill, or filled caches",
    )
    add("--lengths", type=lengths, default=LADDER, metavar="N,N", help="depths; 1k,2k,4k ... 128k by default")
    add("--sides", type=sides, default=SIDES, metavar="A,B", help="upstream,ours by default")
    add("--plan", default="exact", help="attention plan of ours (%(default)s)")
    add("--rope", default="native", help="RoPE policy of ours (%(default)s)")
    add("--kv-type", choices=tuple(KV_TYPES), default="f16", help="of the cache (%(default)s)")
    add("--threads", type=at_least(0), default=0, help="0: all that this process may use")
    add("--chunk", type=at_least(1), default=512, help="n_ubatch of the prefill (%(default)s)")
    add("--decode-tokens", type=at_least(5), default=32, help="timed at each depth (%(default)s)")
    add("--attention", action="store_true", help="also the time of each layer's attention; needs --mode at")
    add("--csv", type=Path, metavar="FILE", help="a line per side and depth")
    add("--plot", type=Path, metavar="FILE.png", help="tokens/s over depth; needs matplotlib")
    add("--job", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def work(text: str) -> int:
    """The process of one job."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    found = json.loads(text)
    try:
        from context_bench import side

        side.run(Job(**found | {"depths": tuple(found["depths"])}))
    except (BenchError, ValueError, RuntimeError, OSError, ImportError) as error:
        print(json.dumps({"event": "error", "text": str(error)}), flush=True)
        return 1
    return 0


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    if args.job:
        return work(args.job)
    console = Console(stderr=True)
    try:
        return measure(args, console)
    except (BenchError, ValueError, OSError, ImportError) as error:
        return complain(console, error)
    except KeyboardInterrupt:
        console.print("stopped")
        return 130


if __name__ == "__main__":
    sys.exit(main())
