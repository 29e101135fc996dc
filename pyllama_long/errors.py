"""Errors that a caller may want to catch by name."""

from __future__ import annotations

__all__ = [
    "Cancelled",
    "ContextOverflow",
    "DecodeError",
    "EngineClosed",
    "EngineFailed",
    "ModelError",
    "NotNumbers",
    "QueueFull",
]


class ModelError(ValueError):
    """A model file that cannot be loaded, or a context that cannot be made for it; names the file and the
    reason."""


class ContextOverflow(ValueError):
    """More tokens than the context window holds. Nothing was cut and nothing was evaluated.

    n_tokens: the requested number; n_ctx: the window. Both in tokens.
    """

    def __init__(self, n_tokens: int, n_ctx: int) -> None:
        super().__init__(
            f"Requested tokens ({n_tokens}) exceed context window of {n_ctx}: shorten the prompt, "
            f"or load the model with n_ctx={n_tokens + 1} or more"
        )
        self.n_tokens = n_tokens
        self.n_ctx = n_ctx


class Cancelled(RuntimeError):
    """`cancel()` stopped the running call; what was evaluated so far stays in the cache."""


class DecodeError(RuntimeError):
    """llama.cpp could not evaluate a batch, or the model gave logits that are not numbers."""


class NotNumbers(DecodeError):
    """The model gave NaN or infinity. what: where a number was expected."""

    def __init__(self, what: str = "logits") -> None:
        super().__init__(
            f"the model gave {what} that are not numbers (NaN or infinite): the file is damaged, or its values "
            "overflow in this KV type; try kv_type='f32'"
        )


class GrammarError(DecodeError):
    """The grammar of an answer grew past its limits, or allows no next token."""

    def __init__(self, why: str = "the grammar allows no token here") -> None:
        super().__init__(why)


class QueueFull(RuntimeError):
    """The queue of waiting requests is full. retry_after_s: seconds after which there is probably room."""

    def __init__(self, n_waiting: int, retry_after_s: float) -> None:
        super().__init__(f"{n_waiting} requests are waiting already: try again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class EngineClosed(RuntimeError):
    """The engine is closing or closed; the request was not finished, or not accepted."""

    def __init__(self, why: str = "the engine is closed") -> None:
        super().__init__(why)


class EngineFailed(EngineClosed):
    """The engine has ended after unexpected errors."""
