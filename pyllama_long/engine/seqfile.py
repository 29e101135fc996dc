"""A file that holds one sequence: its tokens and the contents of its cells, whole or not at all.

    magic (8 bytes), length of the header (4, little-endian), header (JSON), tokens (int32), state, sha256 (32)

The checksum covers everything before it. Files are written next to their place and then renamed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import stat
import struct
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pyllama_long.arrays import IntArray
from pyllama_long.checkpoints import Bytes as Bytes

_MAGIC = b"PLSEQ\x00\x01\n"
_MAX_HEADER = 1 << 16
_MAX_BYTES = 1 << 48  # the largest state: sizes in headers are checked against it first
_MAX_TOKENS = 1 << 27
HEAD = 1024  # about the bytes of a file besides tokens and state
_PART_SUFFIX = ".plseq-part"
_PART = 1 << 22  # bytes that are hashed and written at a time


class Damaged(ValueError):
    """A file whose contents do not match its header."""


@dataclass(frozen=True)
class Header:
    """model: fingerprint of everything that the state depends on. salt: its hash. name: of a session, else empty.
    created: seconds since 1970. partial: a checkpoint, without the cells that can be cut anywhere. Sizes
    in tokens and bytes."""

    model: str
    salt: str
    factor: float
    n_tokens: int
    n_bytes: int
    created: float
    name: str = ""
    partial: bool = False


def write(path: Path, header: Header, ids: IntArray, state: Bytes) -> int:
    """Writes a file, whole or not at all; returns its size. Raises OSError."""
    text = json.dumps(asdict(header)).encode()
    assert len(text) <= _MAX_HEADER and len(ids) == header.n_tokens and len(state) == header.n_bytes
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:16]}-{os.getpid()}{_PART_SUFFIX}")
    try:
        with beside.open("xb") as f:
            digest, size = hashlib.sha256(), 0
            for part in _parts(_MAGIC + struct.pack("<I", len(text)) + text, ids, state):
                digest.update(part)
                size += f.write(part)
            f.write(digest.digest())
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    return size + 32


def _parts(head: bytes, ids: IntArray, state: Bytes) -> Iterator[memoryview]:
    yield memoryview(head)
    for array in (np.ascontiguousarray(ids, np.int32), state):
        raw = array.data.cast("B")
        for i in range(0, len(raw), _PART):
            yield raw[i : i + _PART]


def clean(folder: Path) -> None:
    """Removes unfinished files of processes that have ended; only those that `write` named. Raises OSError if the
    folder cannot be read."""
    for path in listed(folder, _PART_SUFFIX):
        pid = path.name[: -len(_PART_SUFFIX)].rpartition("-")[2]
        if pid.isdecimal() and int(pid) != os.getpid() and not _runs(int(pid)):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def listed(folder: Path, suffix: str) -> list[Path]:
    """The plain files of a folder whose names have this ending, without links, folders, pipes and sockets. Raises
    OSError."""
    with os.scandir(folder) as entries:
        return sorted(
            Path(entry.path)
            for entry in entries
            if entry.name.endswith(suffix) and entry.is_file(follow_symlinks=False)
        )


def _runs(pid: int) -> bool:
    if os.name == "nt":  # there, signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def peek(path: Path) -> tuple[Header, IntArray]:
    """Reads header and tokens without checking the checksum. Raises Damaged and OSError."""
    with _open(path) as f:
        header, _ = _head(f, path)
        return header, np.frombuffer(_exactly(f, 4 * header.n_tokens), np.int32)


def read(path: Path) -> tuple[Header, IntArray, Bytes]:
    """Reads everything. Raises Damaged and OSError."""
    with _open(path) as f:
        header, head = _head(f, path)
        try:
            data = np.empty(4 * header.n_tokens + header.n_bytes, np.uint8)
        except MemoryError as error:
            raise OSError(errno.ENOMEM, "it does not fit into main memory", str(path)) from error
        digest = hashlib.sha256(head)
        with ThreadPoolExecutor(1) as hashing:  # one part is hashed while the next is read
            for i in range(0, len(data), _PART):
                part = data[i : i + _PART].data
                if f.readinto(part) != len(part):
                    raise Damaged(f"{path} is cut off")
                hashing.submit(digest.update, part)
        if f.read(33) != digest.digest():
            raise Damaged(f"{path} does not have the checksum it was written with")
    return header, data[: 4 * header.n_tokens].view(np.int32), data[4 * header.n_tokens :]


def _open(path: Path) -> io.BufferedReader:
    """Opens a plain file; refuses others, on which reading could block."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Damaged(f"{path} is no plain file")
    return os.fdopen(fd, "rb")


def _head(f: BinaryIO, path: Path) -> tuple[Header, bytes]:
    size = os.fstat(f.fileno()).st_size
    start = f.read(len(_MAGIC) + 4)
    if not start.startswith(_MAGIC):
        raise Damaged(f"{path} is no saved sequence")
    if len(start) < len(_MAGIC) + 4:
        raise Damaged(f"{path} is cut off")
    (length,) = struct.unpack("<I", start[len(_MAGIC) :])
    if length > _MAX_HEADER:
        raise Damaged(f"{path} has a header of {length} bytes, more than there can be")
    text = _exactly(f, length)
    header = _parse(text, path)
    if size != len(start) + length + 4 * header.n_tokens + header.n_bytes + 32:
        raise Damaged(f"{path} has {size} bytes, other than its header says")
    return header, start + text


def _parse(text: bytes, path: Path) -> Header:
    try:
        values: dict[str, Any] = json.loads(text)
        header = Header(**values)
        kinds = {"model": str, "salt": str, "name": str, "n_tokens": int, "n_bytes": int}
        good = all(type(values.get(key, "")) is kind for key, kind in kinds.items())
        good = good and type(header.partial) is bool
        good = good and all(type(values[key]) in (int, float) for key in ("factor", "created"))
        good = good and 1 <= header.factor < 1e6 and 0 <= header.created < 1e15
    except (TypeError, ValueError, AttributeError, KeyError, RecursionError, OverflowError) as error:
        raise Damaged(f"{path} has a header that cannot be read") from error
    if not good or not (1 <= header.n_tokens < _MAX_TOKENS and 1 <= header.n_bytes < _MAX_BYTES):
        raise Damaged(f"{path} has a header that cannot be right")
    return header


def _exactly(f: BinaryIO, n: int) -> bytes:
    data = f.read(n)
    if len(data) != n:
        raise Damaged(f"{f.name} is cut off")
    return data
