"""The last minute of many series at once: means, spread and trend of each, by two products of matrices."""

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

_X = np.arange(TREND) - (TREND - 1) / 2
_SXX = float(_X @ _X)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of each series: the means over the stable and the panic window, the standard deviation over the stable one; the
    line through the last TREND seconds, continued `ahead` seconds, and that value's standard error; the last values."""

    stable: Floats
    panic: Floats
    spread: Floats
    ahead: Floats
    error: Floats
    last: Floats
    before: Floats
    """The value of a second ago."""


class Windows:
    """One column per series, one row per second: a ring.

    Where more than a second has passed since the last reading, the new value stands for all of it: what is told is
    what came, or was under way, since then. A series that fails keeps its last value.
    """

    def __init__(self, width: int) -> None:
        self._values = np.zeros((STABLE, width))
        self._squares = np.zeros((STABLE, width))
        self._second = -1
        self.age: Integers = np.zeros(width, np.int64)
        """For how many seconds each series has been known, at most STABLE; 0: it is not."""

    def chosen(self, columns: Sequence[int]) -> Windows:
        """The same with other columns: those of this one, or empty ones where the number is -1."""
        chosen = Windows(len(columns))
        numbers = np.array(columns, np.int64)
        kept = np.flatnonzero(numbers >= 0)
        source = numbers[kept]
        chosen._values[:, kept] = self._values[:, source]
        chosen._squares[:, kept] = self._squares[:, source]
        chosen._second = self._second
        chosen.age[kept] = self.age[source]
        return chosen

    def record(self, now: float, values: Floats, told: Flags, forgotten: Flags) -> None:
        """The values of now. `told`: which series have one; `forgotten`: which begin anew with their next."""
        second = math.floor(now)
        passed = min(max(second - self._second, 0), STABLE) if self._second >= 0 else 1
        if forgotten.any():
            self._values[:, forgotten] = self._squares[:, forgotten] = 0.0
            self.age[forgotten] = 0
        known = (told | (self.age > 0)) & ~forgotten
        values = np.where(known, np.where(told, values, self._values[self._second % STABLE]), 0.0)
        squares = values * values
        for row in range(second - max(passed, 1) + 1, second + 1):
            self._values[row % STABLE] = values
            self._squares[row % STABLE] = squares
        self.age = np.where(known, np.minimum(np.maximum(self.age + passed, 1), STABLE), 0)
        self._second = second

    def figures(self, ahead: float) -> Figures:
        """What the last minute says, and a line through it says about in `ahead` seconds."""
        ago = (self._second - np.arange(STABLE)) % STABLE
        weights = np.zeros((4, STABLE))
        weights[0] = 1.0
        weights[1, ago[:PANIC]] = 1.0
        weights[2, ago[:TREND]] = 1.0
        weights[3, ago[:TREND]] = _X[::-1]
        stable, panic, trend, slope = weights @ self._values
        squares, trend_squares = weights[(0, 2), :] @ self._squares
        age = np.maximum(self.age, 1)
        stable, panic = stable / age, panic / np.minimum(age, PANIC)
        middle, slope = trend / TREND, slope / _SXX
        rest = np.maximum(trend_squares - TREND * middle * middle - _SXX * slope * slope, 0.0)
        reach = (TREND - 1) / 2 + ahead
        lined = self.age >= TREND
        return Figures(
            stable,
            panic,
            np.sqrt(np.maximum(squares / age - stable * stable, 0.0)),
            np.where(lined, middle + slope * reach, 0.0),
            np.sqrt(rest / (TREND - 2) * (1 / TREND + reach * reach / _SXX)),
            self._values[ago[0]],
            np.where(self.age > 1, self._values[ago[1]], 0.0),
        )
