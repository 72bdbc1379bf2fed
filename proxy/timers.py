"""One coarse timer wheel per worker instead of a timer per request.

A `Timed` thing carries its own `deadline`; moving it costs an assignment and a comparison. The wheel looks at
each thing it watches at least once per turn, so a deadline that moved later needs no call. Deadlines fire up to two
ticks late, never early. What has ended is to be forgotten: dead connections, held until the next look, would fill the
processor's cache and make work for the garbage collector.
"""

from __future__ import annotations

import asyncio
import math
import time

from mypy_extensions import mypyc_attr

TICK = 0.1
"""Seconds between two looks."""
SLOTS = 20
"""A turn takes SLOTS × TICK seconds: longer than most deadlines that do move."""

NEVER = math.inf


@mypyc_attr(allow_interpreted_subclasses=True)
class Timed:
    """Something with a deadline (monotonic seconds; NEVER for none)."""

    __slots__ = ("_look", "deadline", "look_at")

    def __init__(self) -> None:
        self.deadline = NEVER
        self.look_at = NEVER  # about when the wheel looks next; NEVER: not watched
        self._look = 0  # where in the ring it is then

    def expire(self) -> None:
        """The deadline has passed; called once, unless a new one is set."""
        raise NotImplementedError


class Wheel:
    """Watches deadlines; ticks only while there is something to watch."""

    def __init__(self) -> None:
        self._ring: list[set[Timed]] = [set() for _ in range(SLOTS)]
        self._hand = 0
        self._filed = 0
        self._timer: asyncio.TimerHandle | None = None
        self._now = time.monotonic()

    @property
    def now(self) -> float:
        """Monotonic seconds, at most about a tick old: the cheap clock of idle time-outs."""
        return self._now if self._timer is not None else time.monotonic()

    def watch(self, timed: Timed, deadline: float) -> None:
        """Sets `timed`'s deadline. One that only moves later may be assigned directly."""
        timed.deadline = deadline
        if deadline < timed.look_at:
            self._file(timed)

    def watch_for(self, timed: Timed, seconds: float) -> None:
        """Sets `timed`'s deadline to so many seconds from now."""
        deadline = timed.deadline = (self._now if self._timer is not None else time.monotonic()) + seconds
        if deadline < timed.look_at:
            self._file(timed)

    def forget(self, timed: Timed) -> None:
        """Takes its deadline away, and lets go of it."""
        timed.deadline = NEVER
        if timed.look_at != NEVER:
            timed.look_at = NEVER
            self._ring[timed._look].remove(timed)
            self._filed -= 1

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _file(self, timed: Timed) -> None:
        if self._timer is None:
            self._now = time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)
        if timed.look_at != NEVER:
            self._ring[timed._look].remove(timed)
            self._filed -= 1
        ahead = timed.deadline - self._now
        ticks = SLOTS - 1 if ahead >= (SLOTS - 3) * TICK else max(int(ahead / TICK), -1) + 2
        timed.look_at = self._now + (ticks - 2) * TICK
        timed._look = (self._hand + ticks) % SLOTS
        self._ring[timed._look].add(timed)
        self._filed += 1

    def _tick(self) -> None:
        self._now = now = time.monotonic()
        self._hand = (self._hand + 1) % SLOTS
        due = self._ring[self._hand]
        while due:
            timed = due.pop()
            self._filed -= 1
            timed.look_at = NEVER
            if timed.deadline <= now:
                timed.deadline = NEVER
                timed.expire()
            elif timed.deadline != NEVER:
                self._file(timed)
        self._timer = asyncio.get_running_loop().call_later(TICK, self._tick) if self._filed else None
