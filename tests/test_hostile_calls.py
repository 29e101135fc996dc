"""No argument of a LongLlama's methods ends the process, and none spoils what comes after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_calls import CALLS

SHARE = {"more": 1.0, "eval": 0.5, "constructor": 0.03}


@pytest.mark.parametrize("method", [*CALLS, "constructor"])
def test_hostile_arguments(method: str) -> None:
    program = [sys.executable, str(Path(__file__).with_name("hostile_calls.py")), method]
    environment = {**os.environ, "GOMP_SPINCOUNT": "300"}
    run = subprocess.run(
        [*program, str(SHARE.get(method, 0.05))], capture_output=True, text=True, timeout=120, env=environment
    )
    last = run.stdout.splitlines()[-1:]
    assert run.returncode == 0, f"exit code {run.returncode} at {last}: {run.stderr[-2000:]}"
    found = json.loads(last[0])
    assert found["calls"] > 10 and found["errors"] > 3
    assert not found["wrong"]
