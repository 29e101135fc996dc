"""/health."""

from __future__ import annotations

from typing import Literal

from .common import Reply


class Health(Reply):
    status: Literal["ok", "loading", "failed", "draining", "stuck"]
    progress: float | None = None
