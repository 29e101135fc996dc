"""How many prompt tokens a step may take, so that running streams go on and newcomers do not wait for long."""

from __future__ import annotations

from collections.abc import Sequence

_FIRST_CHUNK = 32  # tokens beside streams, while nothing is known
_FEWEST = (
    64  # tokens of a chunk that nobody writes beside: fewer would cost the prompt more than newcomers win
)
_KEEP = 0.7  # of an estimate when a new measurement comes
_FULL = 64  # tokens of a measurement that counts fully
_DEEPER = 1.3  # how much a token costs at most when the depth has doubled, where it was never measured


class Pace:
    """Running estimates of the seconds that a prompt token takes, by depth, and a step without any.

    A step lasts about step_s seconds at most. While streams run, prompts get `share` of the time: what a chunk
    takes is owed to steps without one.
    """

    def __init__(self, step_s: float, share: float) -> None:
        self._step_s, self._share = step_s, share
        self._per_token: dict[int, float] = {}  # by the number of bits of the depth
        self.plain_s = 0.0  # a step that only writes
        self._owed = 0.0

    def owes(self, streams: int, steps: int = 0) -> bool:
        """Whether streams have steps of their own to come, for more than so many chunks of a whole step."""
        if not streams:
            self._owed = 0.0
        return self._owed > steps * self._step_s * (1 - self._share) / self._share

    def room(self, depth: int, streams: int, n_batch: int) -> int:
        """Prompt tokens for the next step, of which the first is at position depth; 0 while streams are owed."""
        return 0 if self.owes(streams) else self.tokens(depth, streams, n_batch)

    def tokens(self, depth: int, streams: int, n_batch: int, part: float = 1.0) -> int:
        """About how many prompt tokens take a part of a step's time."""
        room = n_batch - streams
        per_token = self._estimate(depth.bit_length())
        if per_token is None:
            return min(room, _FIRST_CHUNK if streams else _FEWEST)
        n = int(part * (self._step_s - (self.plain_s if streams else 0.0)) / per_token)
        return max(1, min(room, n if streams else max(n, int(part * _FEWEST))))

    def measured(self, streams: int, parts: Sequence[tuple[int, int]], seconds: float) -> None:
        """A step of one token of each of `streams` and of parts (depth, n) of prompts."""
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
