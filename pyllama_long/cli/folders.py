"""The program's name, and where its users' files are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PROGRAM = "pyllama-long"


def state_folder() -> Path:
    """The folder where this user's programs keep their state (XDG, or the system's own place)."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / PROGRAM
