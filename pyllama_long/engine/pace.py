"""How many prompt tokens a step may take, so that running streams go on and newcomers do not wait for long."""

from __future__ import annotations

from collections.abc import Sequence

_FIRST_CHUNK = 32  # tokens in a step with streams, while nothing has been measured
_FEWEST = (
    64  # tokens of a chunk while nobody writes: with fewer, the prompt would lose more than newcomers gain
)
_KEEP = 0.7  # share of the old estimate that a new measurement leaves
_FULL = 64  # a measurement of this many tokens has full weight
_DEEPER = 1.3  # factor by which a token costs more at twice the depth, where that was not measured


class Pace:
    """Keeps estimates of the seconds that a prompt token takes, by depth, and of a step without any.

    A step lasts about step_s seconds at most. While streams run, prompts get `share` of the time: the time of a chunk
    is owed to the streams, in steps without one.
    """

    def __init__(self, step_s: float, share: float) -> None:
        self._step_s, self._share = step_s, share
        self._per_token: dict[int, float] = {}  # by the number of bits of the depth
        self.plain_s = 0.0  # a step that only writes
        self._owed = 0.0

    def owes(self, streams: int, steps: int = 0) -> bool:
        """Whether streams are owed more time than this many whole-step chunks have cost them."""
        if not streams:
            self._owed = 0.0
        return self._owed > steps * self._step_s * (1 - self._share) / self._share

    def room(self, depth: int, streams: int, n_batch: int) -> int:
        """How many prompt tokens the next step may have, the first at position depth; 0 while streams are owed
        time."""
        return 0 if self.owes(streams) else self.tokens(depth, streams, n_batch)

    def tokens(self, depth: int, streams: int, n_batch: int, part: float = 1.0) -> int:
        """About how many prompt tokens take the given part of a step's time."""
        room = n_batch - streams
        per_token = self._estimate(depth.bit_length())
        if per_token is None:
            return min(room, _FIRST_CHUNK if streams else _FEWEST)
        n = int(part * (self._step_s - (self.plain_s if streams else 0.0)) / per_token)
        return max(1, min(room, n if streams else max(n, int(part * _FEWEST))))

    def measured(self, streams: int, parts: Sequence[tuple[int, int]], seconds: float) -> None:
        """Takes the time of a step with one token of each of `streams`, and with parts (depth, n) of prompts."""
        if not parts:
            self.plain_s = _mix(self.plain_s, seconds)
            self._owed = max(0.0, self._owed - seconds)
            return
        spent = max(seconds - self.plain_s, 0.1 * seconds) if streams else seconds
        expected = [self.seconds(depth, n) or float(n) for depth, n in parts]
        for (depth, n), cost in zip(parts, expected, strict=True):
            bits, weight = depth.bit_length(), min(1.0, n / _FULL)
            old = self._per_token.get(bits, 0.0)
            self._per_token[bits] = _mix(old, spent * cost / sum(expected) / n, weight)
        if streams:
            self._owed += spent * (1 - self._share) / self._share

    def seconds(self, depth: int, n: int) -> float:
        """About how long a prompt of n more tokens at this depth takes; 0 while nothing is known."""
        return n * (self._estimate(depth.bit_length()) or 0.0)

    def _estimate(self, bits: int) -> float | None:
        if bits in self._per_token:
            return self._per_token[bits]
        if not self._per_token:
            return None
        near = min(self._per_token, key=lambda known: abs(known - bits))
        return float(self._per_token[near] * _DEEPER ** max(0, bits - near))


def _mix(old: float, new: float, weight: float = 1.0) -> float:
    keep = 1 - (1 - _KEEP) * weight
    return keep * old + (1 - keep) * new if old else new
