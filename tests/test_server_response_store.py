"""Responses that are kept: within bounds, and dropped as whole conversations."""

from __future__ import annotations

from pyllama_long.server.response_store import Kept, ResponseStore


def kept(id: str, before: str | None = None, size: int = 1000, salt: str = "s") -> Kept:
    return Kept(id, salt, before, b"[]", b"x" * size, [f"{id}-item"])


def test_the_store_is_bounded_and_keeps_conversations_whole() -> None:
    store = ResponseStore(most_bytes=16_000, most=5)  # five of about 3 kB
    for id, before in (("a", None), ("b", "a"), ("c", None), ("d", None)):
        assert store.keep(kept(id, before))
    assert store.keep(kept("e", "b")) and len(store) == 5  # makes a and b new
    assert store.keep(kept("f")) and store.get("s", "c") is None
    assert [one.id for one in store.chain("s", "e") or ()] == ["a", "b", "e"]
    assert (
        store.chain("other", "e") is None and not store.delete("other", "e") and not store.delete("s", "no")
    )
    assert not store.keep(kept("g", "c")) and not store.keep(kept("h", size=20_000))
    assert not store.keep(kept("i", "e", salt="other"))
    for id in ("j", "k", "l"):  # d and f are dropped, then a, with those that continue it
        assert store.keep(kept(id))
    assert [store.get("s", id) is None for id in "dfabe"] == [True] * 5
    for id in "jkl":
        assert store.delete("s", id)
    assert len(store) == store.n_bytes == 0
    assert not ResponseStore(0).keep(kept("a"))


def test_long_conversations_go_at_once() -> None:
    store = ResponseStore(most_bytes=1 << 30)
    before = None
    for i in range(3000):
        assert store.keep(kept(f"r{i}", before, size=10))
        before = f"r{i}" if i % 100 else None
    assert store.delete("s", "r2901") and len(store) == 2901
