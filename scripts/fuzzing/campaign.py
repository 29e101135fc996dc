"""Shared by campaigns: their options, the files that are kept, and their last line."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyllama_long import log

# The folder for damaged files: in memory, if the system has one there.
SCRATCH = "/dev/shm" if os.path.isdir("/dev/shm") else None


def parser(script: str, doc: str, count: int, limit: float, limited: str) -> argparse.ArgumentParser:
    """The options of a script: --count, --seed, --limit (seconds for one `limited`), --keep."""
    found = argparse.ArgumentParser(description=doc.splitlines()[0])
    name = Path(script).stem
    found.add_argument("--count", type=int, default=count)
    found.add_argument("--seed", type=int, default=1)
    found.add_argument("--limit", type=float, default=limit, help=f"seconds for one {limited}")
    found.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / name)
    return found


def run(seed: int, work: Callable[[], dict[str, Any]]) -> int:
    """Prints the report as the last line and returns the exit code: 1 if its count named bad is above 0."""
    log.install(False)
    start = time.monotonic()
    report = {"seed": seed, **work()}
    print(json.dumps(report | {"seconds": round(time.monotonic() - start)}))
    return int(any(n for name, n in report.items() if name.startswith("bad")))


class Kept:
    """A folder of files that failed. lines: what they did."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lines = folder, list[str]()

    def keep(self, name: str, data: bytes, what: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        path.write_bytes(data)
        self.note(f"{path}: {what}")

    def note(self, line: str) -> None:
        self.lines.append(line)
        print(line, flush=True)
