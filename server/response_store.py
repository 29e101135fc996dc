"""Responses that their clients may continue, in memory: the oldest are dropped first, and nobody sees those of
another key."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

_MAX_RESPONSES = 4096  # responses
_OBJECT = 1024  # bytes of one besides its texts


@dataclass
class Kept:
    """before: id of the response that it continues. sent: its own items, reply: the answer, both as JSON. items: ids
    of the items of the answer. after: ids of the responses that continue it."""

    id: str
    salt: str
    before: str | None
    sent: bytes
    reply: bytes
    items: Collection[str]
    after: set[str] = field(default_factory=set)

    @property
    def size(self) -> int:
        return len(self.sent) + len(self.reply) + _OBJECT * (1 + len(self.items))


class ResponseStore:
    """For any thread. most_bytes: of all kept responses; 0 keeps none. salt: stands for the key, as in the engine's
    requests. When a response is dropped, those that continue it are dropped too; one that is requested becomes the
    newest."""

    def __init__(self, most_bytes: int, most: int = _MAX_RESPONSES) -> None:
        self._most_bytes, self._most = most_bytes, most
        self._kept: dict[str, Kept] = {}  # the oldest first
        self._of_item: dict[str, str] = {}
        self._lock = threading.Lock()
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, kept: Kept) -> bool:
        """Keeps a response; False if it is too large, or if the one that it continues is gone."""
        with self._lock:
            if kept.size > self._most_bytes:
                return False
            chain = self._chain(kept.salt, kept.before)
            if chain is None:
                return False
            if chain:
                chain[-1].after.add(kept.id)
            self._kept[kept.id] = kept
            self._of_item.update(dict.fromkeys(kept.items, kept.id))
            self.n_bytes += kept.size
            while self.n_bytes > self._most_bytes or len(self._kept) > self._most:
                self._drop(next(iter(self._kept)))
            return kept.id in self._kept

    def get(self, salt: str, id: str) -> Kept | None:
        found = self.chain(salt, id)
        return found[-1] if found else None

    def chain(self, salt: str, id: str) -> list[Kept] | None:
        """A response, preceded by those that it continues; None if it is not there."""
        with self._lock:
            return self._chain(salt, id)

    def items(self, salt: str, wanted: Collection[str]) -> dict[str, dict[str, Any]]:
        """Items of answers by their ids; missing ones are left out."""
        with self._lock:
            ids = {self._of_item[id] for id in wanted if id in self._of_item}
            texts = [chain[-1].reply for id in sorted(ids) if (chain := self._chain(salt, id))]
        found = (item for text in texts for item in json.loads(text)["output"])
        return {item["id"]: item for item in found if item["id"] in wanted}

    def delete(self, salt: str, id: str) -> bool:
        with self._lock:
            kept = self._kept.get(id)
            if kept is None or kept.salt != salt:
                return False
            self._drop(id)
            return True

    def _chain(self, salt: str, id: str | None) -> list[Kept] | None:
        """Finds responses and makes them the newest."""
        found: list[Kept] = []
        while id is not None:
            kept = self._kept.get(id)
            if kept is None or kept.salt != salt:
                return None
            found.append(kept)
            id = kept.before
        found.reverse()
        for kept in found:
            self._kept[kept.id] = self._kept.pop(kept.id)
        return found

    def _drop(self, id: str) -> None:
        first = self._kept[id]
        if first.before is not None and first.before in self._kept:
            self._kept[first.before].after.discard(id)
        going = [id]
        while going:
            kept = self._kept.pop(going.pop())
            going += kept.after
            self.n_bytes -= kept.size
            for item in kept.items:
                self._of_item.pop(item, None)
