"""Tokens of a training sequence with what the trainer needs to know about each."""

from __future__ import annotations

ANSWER = 5.0  # weight of the tokens that answer a question


class Writer:
    """ids, their weights in the loss, and whether an answer needs them (kept), in parallel lists."""

    def __init__(self, ids: list[int] | None = None, weight: float = 1.0, kept: bool = False) -> None:
        self.ids: list[int] = []
        self.weights: list[float] = []
        self.kept: list[bool] = []
        self.add(ids or [], weight, kept)

    def add(self, ids: list[int], weight: float = 1.0, kept: bool = False) -> Writer:
        self.ids += ids
        self.weights += [weight] * len(ids)
        self.kept += [kept] * len(ids)
        return self

    def extend(self, other: Writer) -> None:
        self.ids += other.ids
        self.weights += other.weights
        self.kept += other.kept

    def cut(self, n: int) -> Writer:
        """The first n tokens."""
        self.ids, self.weights, self.kept = self.ids[:n], self.weights[:n], self.kept[:n]
        return self
