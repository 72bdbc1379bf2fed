"""The last minute of many series at once: means, spread and trend of each, as arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Columns:
    """Base of what is kept about many services: arrays of one length, named in `DEFAULTS` with what they begin with."""

    DEFAULTS: ClassVar[dict[str, float | int | bool]] = {}

    def __init__(self, width: int) -> None:
        for name, value in self.DEFAULTS.items():
            setattr(self, name, np.full(width, value))

    def chosen(self, kept: Integers, source: Integers, width: int) -> Self:
        """The same for other services: the `source` of these become those numbered `kept`."""
        chosen = type(self)(width)
        for name in self.DEFAULTS:
            getattr(chosen, name)[kept] = getattr(self, name)[source]
        return chosen


STABLE = 60
"""Seconds of KPA's stable window (`stable-window`)."""
PANIC = 6
"""Seconds of its panic window, a tenth of that (`panic-window-percentage`)."""
TREND = 20
"""Seconds through which a line is drawn."""

JUMP = 0.25
"""A jump is at least so much above the mean of what came before its two seconds, as a part of it, and …"""
JUMP_SPREADS = 3.5
"""… so many of its standard deviations. Half a jump is enough for the second in which it begins."""
FEWEST = 3
"""Seconds that must have come before."""

_NEVER = -(1 << 60)

_X = np.arange(TREND) - (TREND - 1) / 2
_SXX = float(_X @ _X)


@dataclass(frozen=True, slots=True)
class Figures:
    """What the last minute of each series says."""

    stable: Floats
    """The mean of the stable window."""
    panic: Floats
    """The mean of the panic window."""
    ahead: Floats
    """A line through the last TREND seconds, continued into the future; 0 where so many are not known."""
    error: Floats
    """The standard error of that."""
    most: Floats
    """The largest value of those seconds."""
    jump: Floats
    """The last value, where it is far above the others and the one before is on the way there; elsewhere 0."""


class Windows:
    """One column per series, one row per second: a ring.

    Where more than a second has passed since the last reading, the new value stands for all of it: what is told is
    what came, or was under way, since then. A series that fails keeps its last value.
    """

    def __init__(self, width: int) -> None:
        self._values = np.zeros((STABLE, width))
        self._second = _NEVER
        self.age: Integers = np.zeros(width, np.int64)
        """For how many seconds each series has been known, at most STABLE; 0: it is not."""

    def chosen(self, columns: Sequence[int]) -> Windows:
        """The same with other columns: those of this one, or empty ones where the number is -1."""
        chosen = Windows(len(columns))
        numbers = np.array(columns, np.int64)
        kept = np.flatnonzero(numbers >= 0)
        source = numbers[kept]
        chosen._values[:, kept] = self._values[:, source]
        chosen._second = self._second
        chosen.age[kept] = self.age[source]
        return chosen

    def record(self, now: float, values: Floats, told: Flags, forgotten: Flags) -> None:
        """The values of now. `told`: which series have one; `forgotten`: which begin anew with their next."""
        second = math.floor(now)
        passed = 1 if self._second == _NEVER else min(max(second - self._second, 0), STABLE)
        if forgotten.any():
            self._values[:, forgotten] = 0.0
            self.age[forgotten] = 0
        known = (told | (self.age > 0)) & ~forgotten
        values = np.where(known, np.where(told, values, self._values[self._second % STABLE]), 0.0)
        rows = np.arange(second - max(passed, 1) + 1, second + 1) % STABLE
        self._values[rows] = values
        self.age = np.where(known, np.minimum(np.maximum(self.age + passed, 1), STABLE), 0)
        self._second = second

    def figures(self, ahead: float) -> Figures:
        """What the last minute says, and a line through it says about in `ahead` seconds."""
        recent = self._values[(self._second - np.arange(TREND)) % STABLE]  # the newest first
        age = np.maximum(self.age, 1)
        stable, panic = self._values.sum(axis=0) / age, recent[:PANIC].sum(axis=0) / np.minimum(age, PANIC)
        # einsum, for it needs no BLAS, whose threads would spin on a busy node
        middle, slope = recent.sum(axis=0) / TREND, np.einsum("i,ij->j", _X[::-1], recent) / _SXX
        squares = np.einsum("ij,ij->j", recent, recent)
        rest = np.maximum(squares - TREND * middle * middle - _SXX * slope * slope, 0.0)
        reach = (TREND - 1) / 2 + ahead
        return Figures(
            stable,
            panic,
            np.where(self.age >= TREND, middle + slope * reach, 0.0),
            np.sqrt(rest * ((1 / TREND + reach * reach / _SXX) / (TREND - 2))),
            recent.max(axis=0),
            self._jumps(recent[0], recent[1]),
        )

    def _jumps(self, last: Floats, before: Floats) -> Floats:
        found, earlier = np.zeros_like(last), self.age - 2
        total = self._values.sum(axis=0)
        mean = (total - last - before) / np.maximum(earlier, 1)
        rise = np.minimum(last - mean, 2 * (before - mean))
        columns = np.flatnonzero((rise > JUMP * mean) & (earlier >= FEWEST))
        values, mean, earlier = self._values[:, columns], mean[columns], earlier[columns]
        squares = (values * values).sum(axis=0) - last[columns] ** 2 - before[columns] ** 2
        variance = (squares - earlier * mean * mean) / (earlier - 1)
        columns = columns[rise[columns] > JUMP_SPREADS * np.sqrt(np.maximum(variance, 0.0))]
        found[columns] = last[columns]
        return found
