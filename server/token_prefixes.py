"""A cache of tokenized prompt prefixes: the next turn of a conversation only tokenizes what is new.

Text after a control token is tokenized independently of the text before it, so the tokens up to one can be reused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import numpy as np

from pyllama_long.arrays import IntArray

_MAX_CHARACTERS = 1 << 24  # characters of all prefixes together
_MIN_CHARACTERS = 4096  # fewest characters of one that is kept


class TokenPrefixes:
    """For any thread. encode(text, add_bos, special); ends: control tokens by id, without those that absorb the white
    space after them."""

    def __init__(self, encode: Callable[[bytes, bool, bool], list[int]], ends: Mapping[int, str]) -> None:
        self._encode, self._ends = encode, ends
        self._ids = np.array(sorted(ends), np.int32)
        self._lock = threading.Lock()
        self._known: dict[tuple[str, bool, str], IntArray] = {}  # salt, add_bos, text; the latest used last
        self._characters = 0

    def tokenize(self, text: str, add_bos: bool, salt: str = "") -> list[int]:
        """Tokenizes a text in which names of control tokens become those tokens; the result is that of encode."""
        with self._lock:
            known = [key for key in self._known if key[:2] == (salt, add_bos) and text.startswith(key[2])]
            key = max(known, key=lambda key: len(key[2]), default=None)
            if key is not None:
                self._known[key] = before = self._known.pop(key)
        if key is None:
            tokens = self._encode(text.encode(), add_bos, True)
        else:
            tokens = before.tolist() + self._encode(text[len(key[2]) :].encode(), False, True)
        self._keep(text, tokens, add_bos, salt)
        return tokens

    def _keep(self, text: str, tokens: list[int], add_bos: bool, salt: str) -> None:
        """Keeps the tokens up to the last control token."""
        ids = np.array(tokens, np.int32)
        places = np.flatnonzero(np.isin(ids, self._ids))
        if not len(places):
            return
        last = int(places[-1])
        name = self._ends[tokens[last]]
        end = text.rfind(name) + len(name)
        # Some tokens are added to texts that do not have their names.
        if end < _MIN_CHARACTERS or text.count(name) != int((ids == tokens[last]).sum()):
            return
        key = (salt, add_bos, text[:end])
        with self._lock:
            if self._known.pop(key, None) is None:
                self._characters += end
            self._known[key] = ids[: last + 1]
            while self._characters > _MAX_CHARACTERS:
                oldest = next(iter(self._known))
                self._characters -= len(oldest[2])
                del self._known[oldest]
