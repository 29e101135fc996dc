"""What a model still finds and predicts at lengths beyond its training: needles, key-value pairs, perplexity.

The command `pyllama-long eval` is in cli/eval.py; grid.py measures a cell of its table.
"""

from __future__ import annotations

__all__ = ["EvalError"]


class EvalError(ValueError):
    """A task that is not possible with this text, model or length; the message says why."""
