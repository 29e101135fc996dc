"""docs/models.md: which layers of each of upstream's architectures the op takes, and how close its logits are.

    python scripts/models_table.py [--only REGEX] [--jobs 2] [--check | --print]

Upstream's own tests/test-llama-archs.cpp makes a tiny random model per architecture. Each is evaluated in a process
of its own with the op, with upstream's flash attention and with upstream's other way, through a prompt in chunks,
single tokens, two sequences, a removed tail, and a saved and restored state. The op's logits may be as far from the
nearer of upstream's two ways as these are from each other. Takes half a minute on two cores. Prints the table and
writes docs/models.md; --print does not write it; --check compares it with the file. The last line is JSON:
{"architectures", "causal_text", "whole", "share", "problems"}. Exit status 1 if an architecture has a problem.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from tiny_models import children, page  # noqa: E402
from tiny_models.library import WITHOUT, Library  # noqa: E402

PAGE = ROOT / "docs" / "models.md"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=re.compile, default=re.compile(""), help="architectures, as a regex")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2, help="processes (%(default)s)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--print", action="store_true", help="do not write docs/models.md")
    what.add_argument("--check", action="store_true", help="compare with docs/models.md, and do not write it")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    if args.worker:
        children.work(args.worker)
        return 0
    tinies = [tiny for tiny in Library().all() if args.only.search(tiny.arch)]
    found = children.check_all(tinies, max(1, args.jobs))
    total = page.Totals.of(found, {} if args.only.pattern else WITHOUT)
    for line in page.lines(total):
        print(line)
    changed = False
    if args.check:
        changed = page.rows(PAGE.read_text()) != page.rows(page.page(total))
        if changed:
            print("docs/models.md says something else: run scripts/models_table.py")
    elif not args.print and not args.only.pattern:
        PAGE.write_text(page.page(total))
    print(json.dumps(total.json()))
    return 1 if total.problems or changed else 0


if __name__ == "__main__":
    sys.exit(main())
