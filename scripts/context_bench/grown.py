"""A saved state with more tokens than were computed: cells with the next positions, whose K and V repeat.

Needed where cells cannot be copied inside the cache: layers with sliding windows, and layers with a state.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
HEAD = 8  # bytes before the first cache: a magic number and the sequence
ROW_LIMIT = 1 << 24  # no row of K or V has as many bytes


@dataclass
class _Reader:
    """Takes a state apart, as upstream's llama_kv_cache and llama_memory_recurrent write it."""

    raw: Bytes
    at: int = HEAD
    parts: list[Bytes] = field(default_factory=list)  # of the grown state

    def words(self, n: int) -> NDArray[np.int32]:
        out = self.raw[self.at : self.at + 4 * n].view(np.int32)
        self.at += 4 * n
        return out

    def keep(self, n: int) -> None:
        self.parts.append(self.raw[self.at : self.at + n])
        self.at += n

    def put(self, *values: int) -> None:
        self.parts.append(np.array(values, np.int32).view(np.uint8))


def grown(raw: Bytes, n: int, windows: tuple[int, ...], state: bool) -> Bytes:
    """The state of one sequence of n tokens from that of its first ones.

    windows: tokens that the caches keep, in the order of the state; 0: all. state: whether a recurrent state follows.
    Raises ValueError if the bytes mean something else.
    """
    raw = raw[: len(raw) // 4 * 4]
    reader = _Reader(raw)
    reader.parts.append(raw[:HEAD])
    last = -1
    for window in windows:
        last = _cache(reader, n, window)
    if state:
        _recurrent(reader, n, last)
    if reader.at != len(raw):
        raise ValueError(f"{len(raw) - reader.at} bytes of the state are left over")
    return np.concatenate(reader.parts)


def _cache(reader: _Reader, n: int, window: int) -> int:
    """Grows a K/V cache; returns the position of its last cell."""
    streams, count = (int(word) for word in reader.words(2))
    if streams != 1:
        raise ValueError(f"{streams} streams, not one cache for all sequences")
    cells, last = _cells(reader, count)
    size = min(n, window or n)
    reader.put(streams, size)
    new = np.tile(cells, (-(-size // count), 1))[:size]
    for word in range(cells.shape[1]):
        if (cells[:, word] == cells[:, 0]).all():  # M-RoPE keeps the position three times
            new[:, word] = np.arange(n - size, n)
    reader.parts.append(new.reshape(-1).view(np.uint8))
    transposed, layers = (int(word) for word in reader.words(2))
    if transposed:
        raise ValueError("V is transposed: flash attention is off")
    reader.put(transposed, layers)
    for _ in range(layers):
        _rows(reader, count, size)
    while layers and _is_row(reader, count):
        _rows(reader, count, size)
        layers -= 1
    return last


def _cells(reader: _Reader, count: int) -> tuple[NDArray[np.int32], int]:
    """Cells [count, words], of which the first is the position, and the position of the last one."""
    for words in (3, 6, 5):  # position, number of sequences, what M-RoPE adds, sequence
        cells = reader.raw[reader.at : reader.at + 4 * words * count].view(np.int32).reshape(count, words)
        if (cells[:, 0] == cells[0, 0] + np.arange(count)).all() and (cells[:, 1] == 1).all():
            reader.at += 4 * words * count
            return cells, int(cells[-1, 0])
    raise ValueError("the cells of the state are not in order")


def _is_row(reader: _Reader, count: int) -> bool:
    """Whether rows of a layer's V follow, and not another cache."""
    if reader.at + 12 > len(reader.raw):
        return False
    kind, size = reader.raw[reader.at : reader.at + 4].view(np.int32)[0], _row_size(reader)
    return bool(0 <= kind < 64) and 0 < size < ROW_LIMIT and reader.at + 12 + size * count <= len(reader.raw)


def _row_size(reader: _Reader) -> int:
    low, high = (int(word) for word in reader.raw[reader.at + 4 : reader.at + 12].view(np.uint32))
    return low | high << 32


def _rows(reader: _Reader, count: int, size: int) -> None:
    """Type, size and rows of one layer's K or V."""
    row = _row_size(reader)
    if not 0 < row < ROW_LIMIT:
        raise ValueError(f"a row of {row} bytes")
    reader.keep(12)
    rows = reader.raw[reader.at : reader.at + count * row].reshape(count, row)
    reader.at += count * row
    for start in range(0, size, count):
        reader.parts.append(rows[: min(count, size - start)].reshape(-1))


def _recurrent(reader: _Reader, n: int, last: int) -> None:
    count, position, sequences = (int(word) for word in reader.words(3))
    if (count, position, sequences) != (1, last, 0):
        raise ValueError(f"{count} recurrent states, at {position}, not one at {last}")
    reader.put(count, n - 1, sequences)
    reader.keep(len(reader.raw) - reader.at)
