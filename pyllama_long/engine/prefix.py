"""The longest common prefix of a prompt with many texts, by hashes of their blocks."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

import numpy as np

from pyllama_long.arrays import MIN_PREFILL as MIN_PREFILL
from pyllama_long.arrays import IntArray, common_prefix

BLOCK = 64  # tokens


def chain(ids: IntArray, known: list[bytes], salt: str) -> list[bytes]:
    """A hash for each whole block of ids, computed over the block and everything before it. known: the first
    hashes."""
    hashes = list(known)
    last = hashes[-1] if hashes else salt.encode()
    raw = np.ascontiguousarray(ids, np.int32).data.cast("B")
    for i in range(len(hashes), len(ids) // BLOCK):
        digest = hashlib.blake2b(last, digest_size=16)
        digest.update(raw[4 * BLOCK * i : 4 * BLOCK * (i + 1)])
        last = digest.digest()
        hashes.append(last)
    return hashes


def common_blocks(a: list[bytes], b: list[bytes]) -> int:
    """The number of tokens in the whole blocks in which two texts agree, by their hashes."""
    n = min(len(a), len(b))
    return BLOCK * bisect_right(range(n), 0, key=lambda k: a[k] != b[k])


class Entry(Protocol):
    """A text whose keys are kept: ids [n], and the hashes of its whole blocks."""

    salt: str
    factor: float
    hashes: list[bytes]

    @property
    def text(self) -> IntArray: ...


E = TypeVar("E", bound=Entry)
K = TypeVar("K")


class Index(Generic[E]):
    """Finds texts by their prefixes, but never those with another salt or RoPE factor."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[float, bytes], dict[E, None]] = {}
        self._roots: dict[tuple[str, float], dict[E, None]] = {}
        self._known: dict[E, int] = {}  # blocks of the text that are in the index

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[E]:
        return iter(list(self._known))

    def add(self, entry: E) -> None:
        """Adds a text, or updates one that has grown."""
        if entry not in self._known:
            self._roots.setdefault((entry.salt, entry.factor), {})[entry] = None
        for h in entry.hashes[self._known.get(entry, 0) :]:
            self._blocks.setdefault((entry.factor, h), {})[entry] = None
        self._known[entry] = len(entry.hashes)

    def remove(self, entry: E) -> None:
        """Removes a text; to be called before its hashes or its factor change."""
        n = self._known.pop(entry, None)
        if n is None:
            return
        _discard(self._roots, (entry.salt, entry.factor), entry)
        for h in entry.hashes[:n]:
            _discard(self._blocks, (entry.factor, h), entry)

    def factors(self, salt: str) -> list[float]:
        return [factor for known, factor in self._roots if known == salt]

    def find(
        self,
        ids: IntArray,
        hashes: list[bytes],
        salt: str,
        factor: float,
        least_blocks: int = 0,
        wanted: Callable[[E, int], bool] = lambda entry, n: True,
    ) -> tuple[E | None, int]:
        """The text that shares most tokens with ids, and how many; among equals, the one added last. wanted(text, n):
        whether its first n tokens can be used. Texts that share fewer blocks than the best one are not checked."""
        blocks = self._blocks
        n = bisect_right(range(len(hashes)), 0, key=lambda k: (factor, hashes[k]) not in blocks)
        if n < least_blocks:
            return None, 0
        found = blocks[factor, hashes[n - 1]] if n else self._roots.get((salt, factor), {})
        best, most = None, 0
        end = BLOCK * (n + 1)  # they differ within the next block, or one of them ends
        for entry in found:
            shared = common_prefix(entry.text[:end], ids[:end], BLOCK * n)
            if shared >= max(1, most) and wanted(entry, shared):
                best, most = entry, shared
        return best, most

    def prefixes(self, ids: IntArray, hashes: list[bytes], salt: str, factor: float) -> list[E]:
        """The texts that ids begin with, the shortest first. hashes: of the whole blocks of ids."""
        found = []
        for entry in self._roots.get((salt, factor), {}):
            n, blocks = len(entry.text), len(entry.hashes)
            if n > len(ids) or (blocks and entry.hashes[-1] != hashes[blocks - 1]):
                continue
            if common_prefix(entry.text, ids, BLOCK * blocks) == n:
                found.append(entry)
        return sorted(found, key=lambda entry: len(entry.text))

    def find_whole(
        self,
        ids: IntArray,
        salt: str,
        factor: float,
        limit: int,
        wanted: Callable[[E], bool] = lambda entry: True,
    ) -> tuple[E | None, int]:
        """The longest text of at most limit tokens that ids begin with."""
        best, most = None, 0
        for entry in self._roots.get((salt, factor), {}):
            n = len(entry.text)
            if most < n <= limit and common_prefix(entry.text, ids) == n and wanted(entry):
                best, most = entry, n
        return best, most


def _discard(table: dict[K, dict[E, None]], key: K, entry: E) -> None:
    of_key = table[key]
    del of_key[entry]
    if not of_key:
        del table[key]
