"""The error with which a command ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class CommandError(ValueError):
    """One line for the user; the program ends with exit code 1."""


@contextmanager
def refused() -> Iterator[None]:
    """For options that do not fit together or to the model: turns a ValueError into a CommandError."""
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError:  # errors of a plan, a policy or a context are reported as they are
            raise
        raise CommandError(str(error)) from None
