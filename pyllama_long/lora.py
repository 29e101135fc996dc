"""LoRA adapters: GGUF files of low-rank matrices that are added to a model's weights."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from gguf import GGMLQuantizationType

from pyllama_long import _native, interrupts, log
from pyllama_long._native import llama_cpp
from pyllama_long.errors import ModelError
from pyllama_long.gguf_file import GGUFError, read_gguf
from pyllama_long.model import Model
from pyllama_long.probe import probe

_TEXTS = ("general.type", "general.architecture", "adapter.type")
_NUMBERS = tuple(GGMLQuantizationType[name] for name in ("I8", "I16", "I32", "I64", "F64"))


def attach(model: Model, ctx: Any, adapters: Sequence[tuple[str | os.PathLike[str], float]]) -> None:
    """Adds adapters (file, scale) to what a context computes; they live as long as the model. Each adds
    scale * alpha / rank * B A to a matrix (LoRA, https://arxiv.org/abs/2106.09685). Raises ModelError for files that
    cannot be loaded, ValueError for scales that are not numbers."""
    scales = [_scale(scale) for _, scale in adapters]
    found = [_load(model, os.fspath(path)) for path, _ in adapters]
    if found and llama_cpp.llama_set_adapters_lora(ctx, *_native.adapters(found, scales)):
        raise ModelError(f"{model.path_model} cannot take {', '.join(str(path) for path, _ in adapters)}")


def _scale(given: float) -> float:
    scale = float(given)
    if not math.isfinite(scale):
        raise ValueError(f"the scale of a LoRA is {scale}: give a number, 1 for what it was trained with")
    return scale


def _load(model: Model, path: str) -> Any:
    check(path)
    probe(model.path_model, lora=path)
    log.forget()
    with interrupts.deferred():
        adapter = llama_cpp.llama_adapter_lora_init(model.model, os.fsencode(path))
    if not adapter:
        raise ModelError(f"cannot load the LoRA {path}: {log.complaint()}")
    return adapter


def check(path: str) -> None:
    """Raises ModelError for a file that is not an adapter, or one that llama.cpp cannot compute with."""
    # llama.cpp ends the process at a key of another type, and when it computes with integer matrices.
    try:
        file = read_gguf(path)
    except GGUFError as error:
        raise ModelError(f"cannot load the LoRA {path}: {error}") from None
    if file.values.get("general.type") != "adapter":
        raise ModelError(f"{path} is not a LoRA: give a GGUF file whose general.type is adapter")
    if "adapter.alora.invocation_tokens" in file.values:
        raise ModelError(
            f"cannot use the LoRA {path}: it is an activated one (aLoRA), for a part of a text only"
        )
    wrong = [key for key in _TEXTS if not isinstance(file.values.get(key), str)]
    if not isinstance(file.values.get("adapter.lora.alpha", 0.0), float):
        wrong.append("adapter.lora.alpha")
    wrong += [tensor.name for tensor in file.tensors if tensor.type in _NUMBERS]
    if wrong:
        raise ModelError(f"cannot load the LoRA {path}: {wrong[0]} is missing or of another type")
