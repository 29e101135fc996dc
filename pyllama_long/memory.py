"""Main memory of this machine."""

from __future__ import annotations

import os
from pathlib import Path


def installed() -> int:
    """Total bytes, 0 if the system does not report them."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def available() -> int:
    """Bytes that can be used without swapping; if the system does not report them, a guess of half of all, or 4
    GiB."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return installed() // 2 or 4 << 30
