"""Each model in a process of its own, which may crash or hang: workers fork once per model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from fuzzing.child import forked

from tiny_models.check import Found, check
from tiny_models.library import Library, Tiny

SECONDS = 120  # of one model, which takes a second
SCRIPT = Path(__file__).resolve().parents[1] / "models_table.py"


def check_all(tinies: Sequence[Tiny], jobs: int, plan: str = "exact") -> list[Found]:
    """What was found of each, in order; a worker takes every jobs-th. plan: of the op."""

    def worker(first: int) -> list[Found]:
        asked = {"plan": plan, "models": [asdict(tiny) for tiny in tinies[first::jobs]]}
        command = [sys.executable, str(SCRIPT), "--worker", json.dumps(asked)]
        environment = os.environ | {"GGML_NO_BACKTRACE": "1"}
        with tempfile.TemporaryFile("w+") as complaints:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=complaints, text=True, env=environment
            )
            complaints.seek(0)
            if done.returncode:
                raise RuntimeError(f"a worker gave {done.returncode}: {complaints.read()[-500:].strip()}")
        return [Found(**json.loads(line)) for line in done.stdout.splitlines()]

    with ThreadPoolExecutor(jobs) as pool:
        parts = list(pool.map(worker, range(jobs)))
    return [parts[i % jobs][i // jobs] for i in range(len(tinies))]


def work(text: str) -> None:
    """The process of a worker: a JSON line per model."""
    library, asked = Library(), json.loads(text)
    for row in asked["models"]:
        print(json.dumps(asdict(one(library, Tiny(**row), asked["plan"]))), flush=True)


def one(library: Library, tiny: Tiny, plan: str) -> Found:
    """A model in a fork of this process, which itself computes nothing."""
    with tempfile.TemporaryDirectory() as name:
        errors = Path(name, "stderr")

        def run() -> str:
            file = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1)  # upstream prints there too
            os.dup2(file, 2)
            return json.dumps(asdict(check(library, tiny, Path(name), plan)))

        how, said = forked(run, SECONDS)
        if how == "ok":
            return Found(**json.loads(said))
        lines = errors.read_text(errors="replace").splitlines() if errors.exists() else []
        reasons = [line for line in lines if "GGML_ASSERT" in line or "Error" in line or "error" in line]
        why = f": {(reasons or lines)[-1].strip()[:200]}" if lines else ""
        return Found(tiny.arch, tiny.moe, problem=f"ended with {how}{why}")
