"""`pyllama-long serve` as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def serving(
    *arguments: str, before: Callable[[], None] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address. before: called in the process before the program starts."""
    command = [sys.executable, "-m", "pyllama_long", "serve", "--port", "0", "--threads", "1", *arguments]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=before,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert " is ready at http" in line, (line, process.stderr and process.stderr.read())
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()
