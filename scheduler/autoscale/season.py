"""Days and weeks: what the same time asked for before, where it has turned out to say something.

Time is cut into quarters of an hour. For each, of a day and of a week, the need is remembered, and compared with what
then comes. A season is gone by once it has been right, to a quarter, on average over a day. Where today is not like the
days before (a holiday), the last quarter shows it, and the season counts for as much less.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from mesh.scheduler.autoscale.windows import Flags, Floats, Integers

SLOT = 900.0
"""Seconds of a quarter of an hour."""
LEAD = 60.0
"""Seconds before a quarter begins at which what it asks for is there."""
TRUSTED = 0.25
"""The largest mean error, as a part of the need, at which a season is gone by."""
COMPARED = 96
"""Quarters that must have been compared before: a day."""

_NEW = 0.4
"""How much the newest day, or week, counts."""
_SPAN = 1 / 48
"""How much the newest error counts."""


class _Stored(msgspec.Struct, frozen=True):
    """One service's cycles, for the store."""

    day: bytes
    week: bytes
    error: list[float]
    compared: list[int]


class _Cycle:
    """One kind of season: what each of its quarters asks for, NaN where that is not known."""

    def __init__(self, width: int, slots: int) -> None:
        self.expected: NDArray[np.float32] = np.full((width, slots), np.nan, np.float32)
        self.error: Floats = np.ones(width)
        self.compared: Integers = np.zeros(width, np.int64)

    def at(self, slot: int) -> Floats:
        return self.expected[:, slot % self.expected.shape[1]].astype(np.float64)

    def trusted(self, slot: int) -> Flags:
        known: Flags = (self.compared >= COMPARED) & (self.error <= TRUSTED) & ~np.isnan(self.at(slot))
        return known

    def learn(self, slot: int, found: Floats, told: Flags) -> None:
        expected = self.at(slot)
        known = told & ~np.isnan(expected)
        off = np.abs(expected - found) / np.maximum(np.maximum(expected, found), 1.0)
        self.error = np.where(known, self.error + _SPAN * (off - self.error), self.error)
        self.compared = self.compared + known
        learnt = np.where(known, expected + _NEW * (found - expected), np.where(told, found, expected))
        self.expected[:, slot % self.expected.shape[1]] = learnt


class Seasons:
    """The seasons of many services."""

    def __init__(self, width: int) -> None:
        self._cycles = (_Cycle(width, 96), _Cycle(width, 672))
        self._slot = -1
        self._sum: Floats = np.zeros(width)
        self._count: Integers = np.zeros(width, np.int64)
        self._today: Floats = np.ones(width)
        """How today compares with the days before: 1, or less."""
        self._coming: tuple[int, Floats] | None = None
        """What is expected of the quarter that comes, until something is learnt."""
        self.learnt = -math.inf
        """When something was learnt last."""

    def chosen(self, kept: Integers, source: Integers, width: int) -> Seasons:
        """The same for other services: the `source` of this one become those numbered `kept`."""
        chosen = Seasons(width)
        chosen._slot, chosen.learnt = self._slot, self.learnt
        for new, old in zip(chosen._cycles, self._cycles, strict=True):
            new.expected[kept], new.error[kept] = old.expected[source], old.error[source]
            new.compared[kept] = old.compared[source]
        for name in ("_sum", "_count", "_today"):
            getattr(chosen, name)[kept] = getattr(self, name)[source]
        return chosen

    def expect(self, now: float, need: Floats, told: Flags) -> Floats:
        """What the time that begins in LEAD asks for, 0 where nobody knows; remembers what is needed now."""
        slot = int(now // SLOT)
        if slot != self._slot:
            self._close(now)
            self._slot = slot
        self._sum += need * told
        self._count += told
        coming = int((now + LEAD) // SLOT)
        if self._coming is None or self._coming[0] != coming:
            self._coming = coming, self._expected(coming) * self._today
        return self._coming[1]

    def _expected(self, slot: int) -> Floats:
        day, week = self._cycles
        by_week = week.trusted(slot) & (~day.trusted(slot) | (week.error <= day.error))
        found = np.where(by_week, week.at(slot), np.where(day.trusted(slot), day.at(slot), 0.0))
        return np.where(np.isfinite(found), found, 0.0)

    def _close(self, now: float) -> None:
        """A quarter is over."""
        told = self._count > 0
        if self._slot < 0 or not told.any():
            return
        found = self._sum / np.maximum(self._count, 1)
        expected = self._expected(self._slot)
        self._today = np.where(told & (expected > 0), np.clip(found / np.maximum(expected, 1e-9), 0.0, 1.0), 1.0)
        for cycle in self._cycles:
            cycle.learn(self._slot, found, told)
        self._sum[:], self._count[:] = 0.0, 0
        self._coming = None
        self.learnt = now

    def stored(self, index: int) -> bytes:
        """One service's, for the store; empty if there is nothing to tell."""
        if np.isnan(self._cycles[0].expected[index]).all():
            return b""
        day, week = (cycle.expected[index].astype(np.float16).tobytes() for cycle in self._cycles)
        error = [round(float(cycle.error[index]), 4) for cycle in self._cycles]
        return msgspec.msgpack.encode(_Stored(day, week, error, [int(one.compared[index]) for one in self._cycles]))

    def restore(self, index: int, stored: bytes) -> None:
        """One service's, from the store.

        Raises:
            ValueError: if it cannot be read.
        """
        found = msgspec.msgpack.decode(stored, type=_Stored)
        self._coming = None
        for number, (cycle, body) in enumerate(zip(self._cycles, (found.day, found.week), strict=True)):
            expected = np.frombuffer(body, np.float16)
            if len(expected) != cycle.expected.shape[1] or len(found.error) != 2 or len(found.compared) != 2:
                raise ValueError("not a season of this version")
            cycle.expected[index] = expected
            cycle.error[index] = found.error[number]
            cycle.compared[index] = found.compared[number]
