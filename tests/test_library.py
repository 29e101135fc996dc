"""What is settled before the native library is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SHOWS = "import os, pyllama_long; print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    ("given", "spins"),
    [
        ({}, "300"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "passive"}, "None"),
        ({"KMP_BLOCKTIME": "0"}, "None"),
    ],
)
def test_threads_spin_shortly_unless_the_user_has_said_otherwise(given: dict[str, str], spins: str) -> None:
    command = [sys.executable, "-c", _SHOWS]
    done = subprocess.run(command, env=given, cwd=sys.path[0], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == spins
