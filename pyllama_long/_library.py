"""Finds the native library and makes llama_cpp load it. Neither llama_cpp nor ctypes is imported here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_SPINS = "300"
_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "KMP_LIBRARY")
_PATTERNS = {"win32": ("{}.dll", "lib{}.dll"), "darwin": ("lib{}.dylib", "lib{}.so")}


def folder() -> Path:
    """The folder of libllama and the ggml libraries: `lib` in the package, or PYLLAMA_LONG_LIB for
    developers."""
    override = os.environ.get("PYLLAMA_LONG_LIB")
    return Path(override) if override else Path(__file__).parent / "lib"


def find(name: str) -> Path | None:
    """The file of a library (`llama`, `ggml-base`, `ggml-cpu`) in the folder, or None."""
    paths = (folder() / pattern.format(name) for pattern in _PATTERNS.get(sys.platform, ("lib{}.so",)))
    return next((path for path in paths if path.is_file()), None)


def claim() -> None:
    """Points llama_cpp at our folder. llama_cpp reads the variable once, when it is first imported."""
    if "llama_cpp" not in sys.modules and find("llama") is not None:
        os.environ["LLAMA_CPP_LIB_PATH"] = str(folder().resolve())
        spin_shortly()


def spin_shortly() -> None:
    """Lets libgomp's waiting threads sleep after spinning some hundred times, unless the user has said how they are
    to wait. Its own default is billions of times: when other processes are busy, that takes processors away from the
    threads that are waited for. When no others are, a low number costs nothing. libgomp reads it once, when it is
    loaded, so an earlier import decides for the process. Child processes inherit it."""
    if not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = _SPINS


def require() -> Path:
    """The path of our libllama; raises ImportError when it is missing or llama_cpp has already loaded
    another."""
    path = find("llama")
    if path is None:
        raise ImportError(
            f"no libllama in {folder()}: install the pyllama-long wheel, "
            "or run `make build` in a source checkout"
        )
    loaded = getattr(sys.modules.get("llama_cpp.llama_cpp"), "_lib", None)
    if loaded is not None and not os.path.samefile(loaded._name, path):
        raise ImportError(
            f"llama_cpp was imported before pyllama_long and has loaded {loaded._name}: "
            "import pyllama_long first, then llama_cpp"
        )
    claim()
    return path
