"""The error of plans."""

from __future__ import annotations

__all__ = ["PlanError"]


class PlanError(ValueError):
    """An attention plan that cannot be read or run; the message says what to change."""
