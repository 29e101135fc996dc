"""A model file tried out in another process before it is loaded in this one.

llama.cpp ends the process on some values that a file can hold (assertions, divisions by zero, unlimited memory), and
loops on others. So a child process loads the file first, without its weights: it reads metadata and vocabulary,
builds graphs, and decodes some tokens. A file that ends or outlasts the child is an error here. The same child
reports which RoPE policies the model supports and how much memory its contexts take.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyllama_long import _library, _probe_child, layers
from pyllama_long._native import llama_cpp
from pyllama_long.errors import ModelError
from pyllama_long.gguf_file import split_parts

__all__ = ["Probed", "probe"]

_WALL_SECONDS = 180  # allows for a slow disk; a busy child reaches its limit of CPU time long before
_ENDS = ("GGML_ASSERT", "GGML_ABORT", "fatal error", "terminate called", "what():", "error:")
_known: dict[tuple[object, ...], Probed] = {}


@dataclass(frozen=True)
class Probed:
    """no_map: why the model supports no position map; no_scaling: why no frequency rule; "" if it does. memory: bytes
    of K, V and states at each requested length, -1 if such a context does not open. refused: llama.cpp's reason for
    refusing the file, or "". layers: those with attention, and why llama.cpp computes it, or ""."""

    no_map: str = ""
    no_scaling: str = ""
    memory: tuple[int, ...] = ()
    refused: str = ""
    layers: tuple[tuple[int, str], ...] = ()


def probe(
    path: str | os.PathLike[str],
    context: llama_cpp.llama_context_params | None = None,
    lengths: tuple[int, ...] = (),
    lora: str | os.PathLike[str] | None = None,
    overrides: bytes = b"",
) -> Probed:
    """Tries a file out; in one process, only once for the same file and questions.

    context: what contexts of it will be opened with; its length is left out. lengths: contexts, in tokens, whose
    memory is wanted. overrides: bytes of an array of llama_model_kv_override. Raises ModelError for a file that ends
    or outlasts the child. One that llama.cpp refuses by itself is reported, so that the caller can load it and quote
    the reason.
    """
    path, adapter = os.fspath(path), os.fspath(lora) if lora else ""
    params = context or llama_cpp.llama_context_default_params()
    raw = bytes(params)
    key = (_stamp(path), _stamp(adapter), _relevant(params), lengths, overrides)
    found = _known.get(key)
    if found is None:
        asked = {
            "path": os.fsencode(path).hex(),
            "lora": os.fsencode(adapter).hex(),
            "context": raw.hex(),
            "overrides": overrides.hex(),
            "lengths": list(lengths),
        }
        found = _known[key] = _run(path, asked)
    return found


def _stamp(path: str) -> tuple[object, ...]:
    """What distinguishes a file, with all of its parts, from an earlier version."""
    if not path:
        return ()
    stamps: list[object] = [os.path.realpath(path)]
    for part in split_parts(path) or (Path(path),):
        try:
            status = part.stat()
        except OSError:
            stamps.append(None)
        else:
            stamps.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(stamps)


def _relevant(params: llama_cpp.llama_context_params) -> bytes:
    """The parameters as bytes, without their lengths, which a probe sets itself."""
    copy = type(params).from_buffer_copy(params)
    copy.n_ctx = copy.n_batch = copy.n_ubatch = copy.n_threads = copy.n_threads_batch = 0
    return bytes(copy)


def _run(path: str, asked: dict[str, Any]) -> Probed:
    library = _library.require().resolve()
    environment = os.environ | {"GGML_NO_BACKTRACE": "1"}
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-S", _probe_child.__file__, str(library)],
            input=json.dumps(asked).encode(),
            capture_output=True,
            timeout=_WALL_SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"cannot load {path}: reading its metadata took longer than {_WALL_SECONDS} s"
        ) from None
    except (OSError, ValueError) as error:
        warnings.warn(f"{path} is loaded without having been tried out: {error}", stacklevel=2)
        return Probed()
    return conclude(path, child.returncode, child.stdout, child.stderr)


def conclude(path: str, code: int, stdout: bytes, stderr: bytes) -> Probed:
    """Reads the child's report, or the reason of its end. Raises ModelError."""
    complaint = stderr.decode(errors="replace")
    if code == 0:
        report = json.loads(stdout)
        said = report["error"]
        if report["code"] == 2:
            raise ModelError(_damaged(path, said))
        if report["code"] == 1 and any(word in complaint for word in ("alloc", "max_size", "vector::")):
            raise ModelError(_damaged(path, f"{_last(complaint)} (at most {_gib()} GiB are allowed)"))
        refused = said if report["code"] else ""
        found = tuple(layers.read(report["layers"]))
        return Probed(report["no_map"], report["no_scaling"], tuple(report["memory"]), refused, found)
    if -code == getattr(signal, "SIGXCPU", None):
        raise ModelError(_damaged(path, f"no end after {_probe_child.CPU_SECONDS} s of computing"))
    reason = _last(complaint)
    if not reason and code < 0:
        reason = f"{signal.Signals(-code).name} while it was tried out"
    raise ModelError(_damaged(path, reason or f"exit code {code} while it was tried out"))


def _last(complaint: str) -> str:
    """The line that says why a process ended, without the place in llama.cpp's source tree."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    for line in reversed(lines):
        if any(mark in line for mark in _ENDS):
            place, _, rest = line.partition(": ")
            return f"{os.path.basename(place)}: {rest}" if rest and os.sep in place else line
    return lines[-1] if lines else ""


def _gib() -> int:
    return _probe_child.MAX_MEMORY >> 30


def _damaged(path: str, reason: str) -> str:
    return f"cannot load {path}: llama.cpp cannot take what is in the file ({reason}): download it again"
