"""The contents of a GGUF file's header."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

DEFAULT_ALIGNMENT = 32  # bytes


class GGUFError(ValueError):
    """The file is not a readable GGUF file; the message says what is wrong with it."""


class RepeatedToken(GGUFError):
    """A vocabulary contains a token twice, at which llama.cpp ends the process."""


@dataclass(frozen=True)
class Array:
    """An array of strings, or a long one of numbers, which is counted and left in the file."""

    count: int


Value = int | float | bool | str | tuple[int | float | bool, ...] | Array


@dataclass(frozen=True)
class Tensor:
    """shape in ggml's order, the fastest first; offset in bytes from the start of the tensor data."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        block, size = GGML_QUANT_SIZES[self.type]
        return self.elements // block * size


@dataclass(frozen=True)
class GGUFFile:
    """The header of a model's file, or of all files of a split model: the values of the first, the tensors of all,
    and their total size. It can be passed in place of a path to open the model, and is then not read again.
    alignment: of the tensor data, in bytes, the least of all files. wrong: what is wrong with the tensors, or "".
    """

    path: Path
    size: int
    version: int
    values: dict[str, Value]
    tensors: tuple[Tensor, ...]
    alignment: int = DEFAULT_ALIGNMENT
    wrong: str = ""

    def __fspath__(self) -> str:
        return str(self.path)
