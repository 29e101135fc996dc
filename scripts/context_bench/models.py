"""The model of a bench: a file, the embedded one, or a random one of a well-known shape, kept in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import make_random_gguf
from make_random_gguf import PRESETS

from context_bench.job import BenchError
from pyllama_long import memory
from pyllama_long.cli.embedded import embedded_model
from pyllama_long.cli.texts import size
from pyllama_long.model_info import ModelInfo

__all__ = ["EMBEDDED", "PRESETS", "check_memory", "embedded_model", "preset"]

EMBEDDED = "embedded"


def preset(name: str, kind: str, folder: Path, progress: Callable[[int, int], None]) -> Path:
    """The file of a preset with weights of a type, written if the folder does not have it yet."""
    if name not in PRESETS:
        known = ", ".join((EMBEDDED, *PRESETS))
        raise BenchError(f"unknown preset {name!r}; known: {known}")
    if kind not in make_random_gguf.TYPES:
        raise BenchError(f"unknown type {kind!r}; known: {', '.join(make_random_gguf.TYPES)}")
    file = folder / f"{name}-{kind}.gguf"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        try:
            make_random_gguf.write(part, preset=name, type=kind, progress=progress)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
    return file


def check_memory(info: ModelInfo, n_ctx: int, kv_type: str) -> None:
    """Raises BenchError if weights and cache do not fit into free memory."""
    need, there = info.memory(n_ctx, kv_type), memory.available()
    if need <= there or info.sliding_window:
        return
    room = max(0, int((there - info.file_bytes) / info.kv_bytes_per_token(kv_type))) // 1024 * 1024
    advice = f"--lengths up to {room}" if room else "a smaller model"
    cheaper = ", or --kv-type q8_0" if kv_type in ("f16", "f32", "bf16") and room else ""
    raise BenchError(
        f"{n_ctx} tokens need {size(need)} ({size(info.file_bytes)} of it weights), and {size(there)} are free: "
        f"give {advice}{cheaper}"
    )
