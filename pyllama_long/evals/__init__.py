"""What a model still finds and predicts at lengths beyond its training: needles, key-value pairs, perplexity.

The command `pyllama-long eval` is in cli/eval.py; grid.py says how a cell of its table comes about.
"""

from __future__ import annotations

__all__ = ["EvalError"]


class EvalError(ValueError):
    """A task that cannot be set for this text, model or length; the message says why."""
