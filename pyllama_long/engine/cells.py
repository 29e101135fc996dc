"""Counts the cells of the cache that each sequence holds. Forks share the cells of their common prefix."""

from __future__ import annotations

from collections.abc import Collection


class _Segment:
    """n cells that are held by the same sequences; refs: how many."""

    __slots__ = ("n", "refs")

    def __init__(self, n: int, refs: int) -> None:
        self.n, self.refs = n, refs


class Cells:
    """A count of our own, since llama.cpp does not report how full its cache is. Lengths are in cells."""

    def __init__(self, total: int) -> None:
        self.total, self.used = total, 0
        self._of: dict[int, list[_Segment]] = {}

    @property
    def free(self) -> int:
        return self.total - self.used

    def extend(self, seq: int, n: int) -> None:
        """Gives a sequence n more cells."""
        assert n <= self.free, f"{n} cells wanted, {self.free} free"
        segments = self._of.setdefault(seq, [])
        if n == 0:
            return
        if segments and segments[-1].refs == 1:
            segments[-1].n += n
        else:
            segments.append(_Segment(n, 1))
        self.used += n

    def fork(self, src: int, dst: int, n: int) -> None:
        """Lets dst, which holds nothing, share the first n cells of src."""
        assert not self._of.get(dst), f"sequence {dst} holds cells"
        shared = self._split(src, n)
        for segment in shared:
            segment.refs += 1
        self._of[dst] = list(shared)

    def truncate(self, seq: int, n: int) -> None:
        """Takes all but its first n cells from a sequence."""
        kept = self._split(seq, n)
        for segment in self._of.get(seq, [])[len(kept) :]:
            segment.refs -= 1
            if segment.refs == 0:
                self.used -= segment.n
        self._of[seq] = list(kept)

    def drop(self, seq: int) -> None:
        self.truncate(seq, 0)
        del self._of[seq]

    def held(self, seq: int) -> int:
        return sum(segment.n for segment in self._of.get(seq, ()))

    def is_shared(self, seq: int) -> bool:
        return any(segment.refs > 1 for segment in self._of.get(seq, ()))

    def freed_by(self, seqs: Collection[int], keep: tuple[int, int] | None = None) -> int:
        """The number of cells that become free when these sequences are dropped. keep: (one of them, how many of its
        first cells stay)."""
        seen: dict[_Segment, int] = {}
        stays: dict[_Segment, int] = {}
        for seq in seqs:
            begin = 0
            for segment in self._of.get(seq, ()):
                seen[segment] = seen.get(segment, 0) + 1
                if keep is not None and seq == keep[0]:
                    stays[segment] = min(segment.n, max(0, keep[1] - begin))
                begin += segment.n
        return sum(s.n - stays.get(s, 0) for s, refs in seen.items() if refs == s.refs)

    def _split(self, seq: int, n: int) -> list[_Segment]:
        """The segments that hold the first n cells; cuts one in two if necessary."""
        begin = 0
        for i, segment in enumerate(self._of.get(seq, ())):
            if begin == n:
                return self._of[seq][:i]
            if begin + segment.n > n:
                rest = _Segment(begin + segment.n - n, segment.refs)
                segment.n = n - begin
                for segments in self._of.values():
                    if segment in segments:
                        segments.insert(segments.index(segment) + 1, rest)
                return self._of[seq][: i + 1]
            begin += segment.n
        assert begin == n, f"sequence {seq} holds {begin} cells, not {n}"
        return self._of.get(seq, [])[:]
