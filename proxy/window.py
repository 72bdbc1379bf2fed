"""Counts of what happened lately, in ten buckets that age out one by one: pure."""

from __future__ import annotations

BUCKETS = 10


class Window:
    """Two counts over the last `seconds`. An idle window costs nothing: buckets are emptied when next used.

    `roll(now)` comes first, at least where `now` is not before `until`; then `first` and `second` may be added to.
    """

    __slots__ = ("_bucket", "_firsts", "_seconds", "_width", "first", "second", "until")

    def __init__(self, seconds: float) -> None:
        self._width = seconds / BUCKETS
        self._bucket = 0  # number of the present one, since the epoch of the clock
        self.until = 0.0  # its end
        self._firsts = [0] * BUCKETS
        self._seconds = [0] * BUCKETS
        self.first = 0  # of the present bucket
        self.second = 0

    def roll(self, now: float) -> None:
        """Makes the bucket of `now` the present one."""
        bucket = int(now / self._width)
        if bucket == self._bucket:
            return
        self._firsts[self._bucket % BUCKETS] = self.first
        self._seconds[self._bucket % BUCKETS] = self.second
        for passed in range(max(self._bucket + 1, bucket - BUCKETS + 1), bucket + 1):
            self._firsts[passed % BUCKETS] = self._seconds[passed % BUCKETS] = 0
        self._bucket = bucket
        self.until = (bucket + 1) * self._width
        self.first = self.second = 0

    def totals(self) -> tuple[int, int]:
        """Both counts over the window, up to the last `roll`."""
        return sum(self._firsts) + self.first, sum(self._seconds) + self.second

    def clear(self) -> None:
        self._firsts = [0] * BUCKETS
        self._seconds = [0] * BUCKETS
        self.first = self.second = 0
