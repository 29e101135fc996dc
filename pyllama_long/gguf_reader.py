"""The header of a GGUF file, read with every length checked against the file's size before it is used.

A file may be truncated, random or hostile: no number in a header is trusted for an allocation or a loop. Tensor data
is not read. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from pyllama_long.gguf_header import (
    DEFAULT_ALIGNMENT,
    Array,
    GGUFError,
    GGUFFile,
    RepeatedToken,
    Tensor,
    Value,
)

_SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
    GGUFValueType.BOOL: "<?",
}
_TOKENS = "tokenizer.ggml.tokens"
_LENGTH = struct.Struct("<Q")  # of a string
_ALIGNMENT = "general.alignment"
_MAX_NAME = 65535
_MAX_TEXT = 1 << 24
_MAX_STRINGS = 1 << 23
_MAX_KEPT = 4096  # numbers of an array
_MAX_TENSOR_NAME = 64
_MAX_DIMS = 4
_MAX_ALIGNMENT = 1 << 20


class UnknownType(GGUFError):
    """A tensor has a type that this program does not know; what follows it can be read."""


class Reader:
    """A cursor over the file; `at` never passes `size`."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self.path, self.data, self.size, self.at = path, data, size, 0

    def read(self) -> GGUFFile:
        version, n_tensors, values = self.metadata()
        tensors, wrong = [], ""
        try:
            for _ in range(n_tensors):
                try:
                    tensors.append(self.tensor())
                except UnknownType as error:
                    wrong = wrong or str(error)
            self.check_extents(values, tensors)
        except GGUFError as error:
            wrong = wrong or str(error)
        alignment = values.get(_ALIGNMENT)
        if not isinstance(alignment, int):
            alignment = DEFAULT_ALIGNMENT
        return GGUFFile(self.path, self.size, version, values, tuple(tensors), alignment, wrong)

    def metadata(self) -> tuple[int, int, dict[str, Value]]:
        """Version, number of tensors, and the values."""
        if self.data[:4] != b"GGUF":
            raise GGUFError(f"{self.path} is not a GGUF file (it does not begin with GGUF)")
        self.at = 4
        version = self.number("<I", "the version")
        if version not in (2, 3):
            swapped = version & 0xFFFF == 0 and version != 0
            why = "written for big-endian machines" if swapped else f"of version {version}"
            raise GGUFError(f"{self.path} is a GGUF file {why}: versions 2 and 3, little-endian, can be read")
        n_tensors = self.count("<Q", 24, "tensors")
        n_values = self.count("<Q", 13, "metadata entries")
        values: dict[str, Value] = {}
        for _ in range(n_values):
            key = self.text("a metadata key", _MAX_NAME)
            if key in values:
                raise GGUFError(f"{self.path} is damaged: the metadata key {key!r} is there twice")
            values[key] = self.value(key)
        return version, n_tensors, values

    def take(self, n: int, what: str) -> int:
        """Moves the cursor past the next n bytes and returns their place."""
        if n > self.size - self.at:
            raise GGUFError(
                f"{self.path} is truncated or damaged: {what} needs {n} bytes at byte {self.at}, "
                f"the file has {self.size}"
            )
        start = self.at
        self.at += n
        return start

    def number(self, form: str, what: str) -> int:
        value: int = struct.unpack_from(form, self.data, self.take(struct.calcsize(form), what))[0]
        return value

    def count(self, form: str, least: int, what: str) -> int:
        """Reads a number of things that take at least `least` bytes each."""
        n = self.number(form, f"the number of {what}")
        if n * least > self.size - self.at:
            raise GGUFError(
                f"{self.path} is truncated or damaged: it announces {n} {what} in {self.size} bytes"
            )
        return n

    def text(self, what: str, longest: int) -> str:
        n = self.number("<Q", f"the length of {what}")
        if n > longest:
            raise GGUFError(f"{self.path} is damaged: {what} of {n} bytes")
        start = self.take(n, what)
        return self.data[start : start + n].decode("utf-8", errors="replace")

    def kind(self, what: str) -> GGUFValueType:
        number = self.number("<I", f"the type of {what}")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise GGUFError(f"{self.path} is damaged: {what} has the unknown type {number}") from None

    def value(self, key: str) -> Value:
        kind = self.kind(key)
        if kind == GGUFValueType.STRING:
            return self.text(key, _MAX_TEXT)
        if kind != GGUFValueType.ARRAY:
            form = _SCALARS[kind]
            scalar: int | float | bool = struct.unpack_from(
                form, self.data, self.take(struct.calcsize(form), key)
            )[0]
            return scalar
        kind = self.kind(key)
        if kind == GGUFValueType.ARRAY:
            raise GGUFError(f"{self.path} is damaged: {key} is an array of arrays")
        if kind == GGUFValueType.STRING:
            n = self.count("<Q", 8, f"strings in {key}")
            if n > _MAX_STRINGS:
                raise GGUFError(f"{self.path} is damaged: {key} has {n} strings")
            words = self.strings(n, key)
            if key == _TOKENS:
                self.check_tokens(words)
            else:
                deque(words, maxlen=0)
            return Array(n)
        form = _SCALARS[kind]
        width = struct.calcsize(form)
        n = self.count("<Q", width, f"numbers in {key}")
        start = self.take(n * width, key)
        return struct.unpack_from(f"<{n}{form[1]}", self.data, start) if n <= _MAX_KEPT else Array(n)

    def strings(self, n: int, key: str) -> Iterator[tuple[int, int]]:
        """Skips n strings and yields where each begins and ends; a vocabulary has some hundred thousand of them."""
        read, data, at, size, width = _LENGTH.unpack_from, self.data, self.at, self.size, _LENGTH.size
        for _ in range(n):
            begin = at + width
            at = begin + read(data, at)[0] if begin <= size else begin
            if at > size:
                raise GGUFError(f"{self.path} is truncated or damaged: {key} ends beyond its {size} bytes")
            yield begin, at
        self.at = at

    def check_tokens(self, words: Iterable[tuple[int, int]]) -> None:
        """Raises RepeatedToken. A word ends at a NUL, and an empty one has the name that llama.cpp gives it."""
        seen: set[bytes] = set()
        for i, (begin, end) in enumerate(words):
            word = self.data[begin:end].partition(b"\0")[0] or b"[EMPTY_%d]" % i
            if word in seen:
                shown = word[:40].decode("utf-8", errors="replace")
                raise RepeatedToken(
                    f"{self.path} is damaged: the token {shown!r} is there twice: download it again"
                )
            seen.add(word)

    def tensor(self) -> Tensor:
        name = self.text("a tensor's name", _MAX_TENSOR_NAME)
        n_dims = self.number("<I", f"the shape of {name!r}")
        if not 1 <= n_dims <= _MAX_DIMS:
            raise GGUFError(f"{self.path} is damaged: tensor {name!r} has {n_dims} dimensions")
        shape = tuple(self.number("<Q", f"the shape of {name!r}") for _ in range(n_dims))
        number = self.number("<I", f"the type of {name!r}")
        offset = self.number("<Q", f"the offset of {name!r}")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise UnknownType(
                f"{self.path} is damaged, or newer than this program: the type of {name!r} is {number}"
            ) from None
        if prod(shape) == 0 or shape[0] % GGML_QUANT_SIZES[kind][0]:
            raise GGUFError(
                f"{self.path} is damaged: tensor {name!r} of {kind.name} has the shape {list(shape)}"
            )
        return Tensor(name, shape, kind, offset)

    def check_extents(self, values: dict[str, Value], tensors: Sequence[Tensor]) -> None:
        alignment = values.get(_ALIGNMENT, DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 1 <= alignment <= _MAX_ALIGNMENT:
            raise GGUFError(f"{self.path} is damaged: general.alignment is {alignment!r}")
        begin = -(-self.at // alignment) * alignment
        end, name = max(((begin + t.offset + t.n_bytes, t.name) for t in tensors), default=(0, ""))
        if end > self.size:
            raise GGUFError(
                f"{self.path} is truncated: tensor {name!r} ends at byte {end}, the file has {self.size}: "
                "download it again"
            )
