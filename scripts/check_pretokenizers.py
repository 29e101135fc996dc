"""Tokenizers against upstream's own: every pre-tokenizer, eight kinds of long runs, and short texts of all sorts.

    python scripts/check_pretokenizers.py [--runs 20k,1M] [--texts 200] [--only gpt-4o]

Run by hand: about 15 minutes on two cores. Upstream's unpatched tokenizer runs in child processes, which may end by a
signal or run out of time (30 s). Ours may not, and its tokens must be the same wherever upstream returns some. Prints
a line per vocabulary, then one JSON line. Exit status 1 when anything differs, ends or takes over 30 s.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pretokenizers import files, texts, upstream

WORKER = Path(__file__).parent / "pretokenizers" / "worker.py"
SECONDS = 30


def answers(path: Path, inputs: list[str], library: Path | None) -> list[list[Any]]:
    """The worker's result for each text; library: upstream's tokenizer, in place of ours."""
    environment = os.environ | ({"LD_PRELOAD": str(library)} if library else {})
    command = [sys.executable, str(WORKER), str(path), str(SECONDS)]
    done = subprocess.run(
        command,
        input=json.dumps(inputs),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line]
    if len(found) != len(inputs):
        raise SystemExit(f"{path.name}: the worker ended with {done.returncode} after {found[-1:]}")
    return found


def compare(path: Path, inputs: list[str], library: Path) -> dict[str, Any]:
    """Counts of one vocabulary, and its first difference as text."""
    ours, theirs = answers(path, inputs, None), answers(path, inputs, library)
    differ = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if len(b) == 3 and a[:2] != b[:2]]
    ended = [i for i, a in enumerate(ours) if len(a) != 3]
    bad = (differ + ended)[:1]
    return {
        "vocabulary": path.stem,
        "same": sum(len(b) == 3 for b in theirs) - len(differ),
        "differ": len(differ),
        "ended": len(ended),
        "upstream_ended": sum(len(b) != 3 for b in theirs),
        "slowest_s": max((a[2] for a in ours if len(a) == 3), default=0),
        "first": [f"{inputs[i][:60]!r}: {ours[i]} for {theirs[i]}" for i in bad],
    }


def vocabularies(folder: Path, only: str) -> list[Path]:
    """GPT-2's vocabulary with each pre-tokenizer, the real ones of the tree, and small ones of the other models."""
    models = upstream.TREE / "models"
    names = [name for name in upstream.pre_tokenizers() if only in name]
    out = files.each_pre(models / "ggml-vocab-gpt-2.gguf", folder, names)
    out += [path for path in sorted(models.glob("ggml-vocab-*.gguf")) if only in path.name]
    kinds = ("llama", "t5", "bert", "rwkv", "plamo2", "test")
    return out + [
        files.small(folder / f"small-{kind}.gguf", kind) for kind in kinds if only in f"small-{kind}"
    ]


def number(text: str) -> int:
    return int(text.removesuffix("k").removesuffix("M")) * {"k": 1000, "M": 1_000_000}.get(text[-1], 1)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", default="20k,1M", help="lengths of the runs, in characters")
    parser.add_argument("--texts", type=int, default=200, help="short texts per vocabulary")
    parser.add_argument("--only", default="", help="vocabularies whose name has this in it")
    parser.add_argument(
        "--after", default="", help="only vocabularies after this one, to go on where a run ended"
    )
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    sizes = [number(size) for size in args.runs.split(",")]
    inputs = [texts.run(kind, n) for n in sizes for kind in texts.KINDS] + texts.short(args.texts)
    with tempfile.TemporaryDirectory() as name:
        library = upstream.build(Path(name))
        paths = vocabularies(Path(name), args.only)
        paths = paths[[path.stem for path in paths].index(args.after) + 1 if args.after else 0 :]
        rows = []
        with ThreadPoolExecutor(args.jobs) as pool:
            for row in pool.map(lambda path: compare(path, inputs, library), paths):
                rows.append(row)
                print(*(f"{key} {value}" for key, value in row.items()), sep="  ", flush=True)
    total = {key: sum(row[key] for row in rows) for key in ("same", "differ", "ended", "upstream_ended")}
    slowest = max((row["slowest_s"] for row in rows), default=0)
    print(json.dumps({"vocabularies": len(rows), "texts": len(inputs), **total, "slowest_s": slowest}))
    return 1 if total["differ"] or total["ended"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
