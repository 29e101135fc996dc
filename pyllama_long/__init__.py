"""Long contexts for llama.cpp models: the same GGUF files and the same Python class, far beyond the trained
length.

The native library is loaded when `LongLlama` is first used; plans and RoPE policies are plain Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyllama_long import _library
from pyllama_long.plan import AttentionPlan
from pyllama_long.rope import RopePolicy

if TYPE_CHECKING:
    from pyllama_long.llama import LongLlama

__all__ = ["AttentionPlan", "LongLlama", "RopePolicy", "__version__"]
__version__ = "0.1.0"

_library.claim()


def __getattr__(name: str) -> Any:
    if name == "LongLlama":
        from pyllama_long.llama import LongLlama

        return LongLlama
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
