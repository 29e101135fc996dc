"""The headers of GGUF files, including those of split models."""

from __future__ import annotations

import mmap
import os
import re
import stat
from dataclasses import replace
from pathlib import Path

from pyllama_long.gguf_header import Array, GGUFError, GGUFFile, RepeatedToken, Tensor, Value
from pyllama_long.gguf_reader import Reader

__all__ = [
    "Array",
    "GGUFError",
    "GGUFFile",
    "RepeatedToken",
    "Tensor",
    "Value",
    "first_part",
    "read_gguf",
    "read_header",
    "read_parts",
    "split_parts",
]

_PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Reads the header of a file.

    Raises GGUFError with one line, also for a file that is missing, empty, a directory or cut off anywhere.
    """
    return _whole(_read(Path(path)))


def read_parts(path: str | os.PathLike[str]) -> GGUFFile:
    """Reads the headers of a model and of all its parts. Raises GGUFError."""
    return _whole(read_header(path))


def read_header(path: str | os.PathLike[str]) -> GGUFFile:
    """As `read_parts`, but errors in tensors are reported in the result: llama.cpp, which loads the file, reports
    them itself, or knows a type that this program does not. Raises GGUFError for values that cannot be read."""
    if isinstance(path, GGUFFile):
        return path
    first = _read(first_part(path))
    files = [first, *(_read(part) for part in split_parts(path)[1:])]
    return replace(
        first,
        size=sum(file.size for file in files),
        tensors=tuple(tensor for file in files for tensor in file.tensors),
        alignment=min(file.alignment for file in files),
        wrong=next((file.wrong for file in files if file.wrong), ""),
    )


def _whole(file: GGUFFile) -> GGUFFile:
    if file.wrong:
        raise GGUFError(file.wrong)
    return file


def _read(path: Path) -> GGUFFile:
    try:
        if path.is_dir():
            raise GGUFError(f"{path} is a directory: give a .gguf file in it")
        if not stat.S_ISREG(path.stat().st_mode):
            raise GGUFError(f"{path} is not a file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise GGUFError(f"{path} is empty: download it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return Reader(path, data, size).read()
    except FileNotFoundError:
        raise GGUFError(f"{path} does not exist") from None
    except OSError as error:
        raise GGUFError(f"{path} cannot be read: {error.strerror or error}") from None


def split_parts(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """All files of a split model, from the name of any of them (NAME-00001-of-00003.gguf); () for other models."""
    path = Path(path)
    match = _PART.fullmatch(path.name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return ()
    n = int(match[3])
    return tuple(path.with_name(f"{match[1]}-{i:05d}-of-{n:05d}.gguf") for i in range(1, n + 1))


def first_part(path: str | os.PathLike[str]) -> Path:
    """The file from which llama.cpp loads a split model; the path itself if the model is one file. Raises GGUFError
    if parts are missing."""
    parts = split_parts(path)
    missing = [part.name for part in parts if not part.exists()]
    if missing and len(missing) < len(parts):
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise GGUFError(f"{path} is one of {len(parts)} parts, and {shown} is missing beside it: download it")
    return parts[0] if parts and not missing else Path(path)
