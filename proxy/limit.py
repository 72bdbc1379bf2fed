"""How much is let through: pure. A gate with a line before it, and token buckets, one or one per client."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

SLOWEST = 1e-9
"""Requests per second that a lower rate is taken for: one in thirty years, which can still be told in Retry-After."""
MAX_KEYS = 10_000
"""Clients whose rate is remembered; beyond that the one not seen for longest is forgotten."""


class Waiter(Protocol):
    """Something that waits before a gate."""

    def admit(self) -> None:
        """It is inside now, and calls `leave` once it is done."""


class Gate:
    """Lets `most` inside at once; up to `queue` more wait in line, first come, first served.

    `free` may be read and, while it is above zero, taken down by one to enter: that is all a request costs where
    there is room.
    """

    __slots__ = ("_line", "_most", "_moving", "_queue", "free", "moved")

    def __init__(self, most: int, queue: int) -> None:
        self._most = self.free = most
        self._queue = queue
        self._line: OrderedDict[Waiter, None] = OrderedDict()
        self._moving = False
        self.moved = 0  # how often the line moved since somebody inside was done

    @property
    def waiting(self) -> int:
        return len(self._line)

    @property
    def shut(self) -> bool:
        """Nobody is let in, however few are inside."""
        return self._most == 0

    def wait(self, waiter: Waiter) -> bool:
        """Puts it in line; False if the line is full."""
        if len(self._line) >= self._queue:
            return False
        self._line[waiter] = None
        return True

    def give_up(self, waiter: Waiter) -> None:
        """It waits no more."""
        del self._line[waiter]

    def leave(self) -> None:
        """One that was inside is done: its place goes to the first in line."""
        self.free += 1
        if self._line:
            self.moved += 1
            self._move_up()

    def resize(self, most: int, queue: int) -> None:
        """Other limits from now on. Nobody is thrown out; whoever waits may come in."""
        self.free += most - self._most
        self._most = most
        self._queue = queue
        self._move_up()

    def open(self) -> None:
        """Lets everyone in who waits now, however full it is."""
        for waiter in list(self._line):
            if self._line.pop(waiter, self) is None:  # else it has given up meanwhile
                self.free -= 1
                waiter.admit()

    def _move_up(self) -> None:
        if self._moving:  # whoever was admitted is done already: the loop that admitted it goes on
            return
        self._moving = True
        try:
            while self.free > 0 and self._line:
                self.free -= 1
                self._line.popitem(last=False)[0].admit()
        finally:
            self._moving = False


class TokenBucket:
    """`rate` per second on average, `burst` at once.

    Kept as the one moment at which the bucket is full again: the generic cell rate algorithm (ITU-T I.371).
    """

    __slots__ = ("_full_at", "_interval", "_slack")

    def __init__(self, rate: float, burst: float = 0) -> None:
        """`burst` 0: as many as come in a second, at least one."""
        rate = max(rate, SLOWEST)
        self._interval = 1 / rate
        self._slack = _slack(rate, burst)
        self._full_at = 0.0

    def take(self, now: float) -> float:
        """Seconds until one more would be let through; 0.0: this one is."""
        full_at = max(self._full_at, now)
        wait = full_at - now - self._slack
        if wait > 0:
            return wait
        self._full_at = full_at + self._interval
        return 0.0


class TokenBuckets:
    """A bucket for each key: a client's address, say, or the value of a header. Memory is bounded by MAX_KEYS."""

    __slots__ = ("_full_at", "_interval", "_slack")

    def __init__(self, rate: float, burst: float = 0) -> None:
        rate = max(rate, SLOWEST)
        self._interval = 1 / rate
        self._slack = _slack(rate, burst)
        self._full_at: OrderedDict[bytes, float] = OrderedDict()  # last used last

    def take(self, key: bytes, now: float) -> float:
        """As `TokenBucket.take`, of the bucket of `key`."""
        full_at = max(self._full_at.pop(key, now), now)
        wait = full_at - now - self._slack
        self._full_at[key] = full_at if wait > 0 else full_at + self._interval
        if len(self._full_at) > MAX_KEYS:
            self._full_at.popitem(last=False)
        return max(wait, 0.0)

    def __len__(self) -> int:
        return len(self._full_at)


def _slack(rate: float, burst: float) -> float:
    """Seconds by which a bucket may run ahead of its rate; a microsecond for what rounding does."""
    return ((burst or max(rate, 1.0)) - 1) / rate + 1e-6
