"""RoPE policies on each of upstream's architectures: that they run in all layers with full attention, or are refused.

    python scripts/check_policies.py [--only REGEX]

Each of upstream's tiny models (see models_table.py) reads a text under nine policies in a process of its own. Position
maps that are wider than the text must give the model's own logits; linear scaling, on models without windows, those of
upstream's own scaling; both within twice what upstream's two kinds of attention differ by. A refusal must say what to
do. Prints the refusals and the layers that keep their own positions, then a line of JSON: {"models", "accepted",
"refused", "problems"}. Exit status 1 if there are problems.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from fuzzing.child import forked  # noqa: E402
from tiny_models.library import Library, Tiny  # noqa: E402
from tiny_models.policies import NARROW, SCALED, WIDE, Policies, check  # noqa: E402

SECONDS = 120  # of one model


def one(library: Library, tiny: Tiny) -> Policies:
    """A model in a fork of this process, which itself computes nothing."""
    with tempfile.TemporaryDirectory() as folder:
        how, said = forked(lambda: json.dumps(asdict(check(library, tiny, Path(folder)))), SECONDS)
    if how == "ok":
        return Policies(**json.loads(said))
    return Policies(tiny.arch, tiny.moe, problem=f"ended with {how} {said}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", type=re.compile, default=re.compile(""), help="architectures, as a regex")
    only = parser.parse_args(argv).only
    library, found = Library(), []
    for tiny in library.all():
        if not only.search(tiny.arch):
            continue
        row = one(library, tiny)
        found.append(row)
        refused = dict.fromkeys(row.refused.values())
        reasons = [f"{[rope for rope in row.refused if row.refused[rope] == why]}: {why}" for why in refused]
        print(f"{row.arch}{' moe' if row.moe else ''} [{row.kind}] kept: {row.kept or 'none'}", flush=True)
        for line in (*reasons, *([f"PROBLEM {row.problem}"] if row.problem else [])):
            print(f"    {line}", flush=True)
    n_refused = sum(len(row.refused) for row in found)
    n_all = len(SCALED + WIDE + NARROW) * len(found)
    problems = [f"{row.arch}: {row.problem}" for row in found if row.problem]
    print(
        json.dumps(
            {"models": len(found), "accepted": n_all - n_refused, "refused": n_refused, "problems": problems}
        )
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
