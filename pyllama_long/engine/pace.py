"""How many prompt tokens a step may take, so that running streams go on."""

from __future__ import annotations

_FIRST_CHUNK = 32  # tokens, while nothing is known
_KEEP = 0.7  # of an estimate when a new measurement comes
_DEEPER = 1.3  # how much a token costs at most when the depth has doubled, where it was never measured


class Pace:
    """Running estimates of the seconds that a prompt token takes, by depth, and a step without any.

    While streams run, a step lasts at most step_s seconds, and prompts get `share` of the time: what a chunk
    takes is owed to steps without one.
    """

    def __init__(self, step_s: float, share: float) -> None:
        self._step_s, self._share = step_s, share
        self._per_token: dict[int, float] = {}  # by the number of bits of the depth
        self.plain_s = 0.0  # a step that only writes
        self._owed = 0.0

    def room(self, depth: int, streams: int, n_batch: int) -> int:
        """Prompt tokens for the next step, of which the first is at position depth."""
        room = n_batch - streams
        if not streams:
            self._owed = 0.0
            return room
        if self._owed > 0:
            return 0
        per_token = self._estimate(depth.bit_length())
        if per_token is None:
            return min(room, _FIRST_CHUNK)
        return max(1, min(room, int((self._step_s - self.plain_s) / per_token)))

    def measured(self, streams: int, n_prompt: int, depth: int, seconds: float) -> None:
        """A step of one token of each of `streams` and n_prompt prompt tokens from position depth on."""
        if not n_prompt:
            self.plain_s = _mix(self.plain_s, seconds)
            self._owed = max(0.0, self._owed - seconds)
            return
        spent = max(seconds - self.plain_s, 0.1 * seconds) if streams else seconds
        bits = depth.bit_length()
        self._per_token[bits] = _mix(self._per_token.get(bits, 0.0), spent / n_prompt)
        if streams:
            self._owed += spent * (1 - self._share) / self._share

    def seconds(self, depth: int, n: int) -> float:
        """About how long a prompt of n more tokens at this depth takes."""
        return n * (self._estimate(depth.bit_length()) or 0.0)

    def _estimate(self, bits: int) -> float | None:
        if bits in self._per_token:
            return self._per_token[bits]
        if not self._per_token:
            return None
        near = min(self._per_token, key=lambda known: abs(known - bits))
        return float(self._per_token[near] * _DEEPER ** max(0, bits - near))


def _mix(old: float, new: float) -> float:
    return _KEEP * old + (1 - _KEEP) * new if old else new
