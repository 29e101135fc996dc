"""The trainer's error, and imports of packages that only it needs."""

from __future__ import annotations

import importlib
from typing import Any


class TrainError(Exception):
    """One line that says what is wrong and what to do."""


def need(package: str, at_least: str) -> Any:
    """Imports a package that only training needs; TrainError names the command that installs it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        line = f'pip install "{package}>={at_least}"'
        raise TrainError(f"training needs {package}, which is not installed: {line}") from error
