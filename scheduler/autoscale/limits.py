"""How fast a count may change: `behavior` as Kubernetes has it, with each mode's defaults.

Source: `horizontal.go` and the defaults of autoscaling/v2 (`GenerateHPAScaleUpRules`, `GenerateHPAScaleDownRules`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from mesh.scheduler.autoscale import hpa
from mesh.spec.scale import Scale, ScalingRules

STABILISATION = 300.0
"""Seconds for which HPA keeps the highest recommendation: --horizontal-pod-autoscaler-downscale-stabilization."""


MANY = 1 << 30
"""More than any count."""


class Policy(NamedTuple):
    """So many replicas, or percent of those at the beginning of `period` seconds."""

    percent: bool
    value: int
    period: float


class Change(NamedTuple):
    """A count that was changed: by how many, up or down."""

    time: float
    by: int


@dataclass(frozen=True, slots=True)
class Direction:
    """Limits on growing, or on shrinking. Without policies there is no limit."""

    window: float
    tolerance: float
    select: Literal["Max", "Min", "Disabled"] = "Max"
    policies: tuple[Policy, ...] = ()

    @property
    def longest(self) -> float:
        """How long a change counts."""
        return max((policy.period for policy in self.policies), default=0.0)


@dataclass(frozen=True, slots=True)
class Limits:
    """Both directions. `doubling`: HPA without `behavior` at most doubles, or grows to 4."""

    up: Direction
    down: Direction
    doubling: bool = False

    def most(self, current: int, now: float, changes: Sequence[Change]) -> int:
        """The most that the count may grow to now."""
        if self.doubling:
            return max(2 * current, 4)
        if self.up.select == "Disabled":
            return current
        allowed = []
        for percent, value, period in self.up.policies:
            start = _before(current, now - period, changes)
            allowed.append(hpa.ceil(start * (1 + value / 100)) if percent else start + value)
        return max(current, (min if self.up.select == "Min" else max)(allowed)) if allowed else MANY

    def least(self, current: int, now: float, changes: Sequence[Change]) -> int:
        """The least that the count may shrink to now."""
        if self.down.select == "Disabled":
            return current
        allowed = []
        for percent, value, period in self.down.policies:
            start = _before(current, now - period, changes)
            allowed.append(math.floor(start * (1 - value / 100) + 1e-9) if percent else start - value)
        return min(current, max(0, (max if self.down.select == "Min" else min)(allowed))) if allowed else 0


def _before(current: int, since: float, changes: Sequence[Change]) -> int:
    """The count at a time, were it for these changes only: those of both directions, as in `horizontal.go`."""
    return current - sum(change.by for change in changes if change.time > since)


def limits_of(scale: Scale) -> Limits:
    """The limits of a service: its `behavior`, and for what it leaves open its mode's."""
    if scale.mode != "hpa":
        default = Direction(0.0, 0.0)
        up, down = default, default
    elif scale.behavior is None:
        up = down = Direction(0.0, hpa.TOLERANCE)
        down = replace(down, window=STABILISATION)
    else:  # HPA gives both directions its policies once there is a `behavior` at all
        up = Direction(0.0, hpa.TOLERANCE, policies=(Policy(False, 4, 15.0), Policy(True, 100, 15.0)))
        down = Direction(STABILISATION, hpa.TOLERANCE, policies=(Policy(True, 100, 15.0),))
    if scale.behavior is not None:
        up, down = _direction(scale.behavior.scaleUp, up), _direction(scale.behavior.scaleDown, down)
    down = replace(down, window=max(down.window, scale.scale_down_delay))
    return Limits(up, down, doubling=scale.mode == "hpa" and scale.behavior is None)


def _direction(rules: ScalingRules | None, default: Direction) -> Direction:
    if rules is None:
        return default
    window, tolerance, policies = rules.stabilizationWindowSeconds, rules.tolerance, rules.policies
    return Direction(
        default.window if window is None else float(window),
        default.tolerance if tolerance is None else tolerance,
        rules.selectPolicy,
        default.policies
        if policies is None
        else tuple(Policy(one.type == "Percent", one.value, float(one.periodSeconds)) for one in policies),
    )


class Recommendations:
    """What was recommended before, to stabilise what is recommended now.

    Of what came before only that is kept which can still be the highest, or the lowest, of its window.
    """

    def __init__(self, time: float, current: int) -> None:
        # as if what there is had been recommended just now: nothing is scaled down in the first window
        self._highest = deque([(time, current)])
        self._lowest = deque([(time, current)])

    def stabilised(self, now: float, count: int, current: int, limits: Limits) -> int:
        """The count that has been recommended for long enough; remembers this recommendation."""
        down, up = now - limits.down.window, now - limits.up.window
        highest, lowest = self._highest, self._lowest
        while highest and (highest[0][0] < down or (highest[0][0] == down and not limits.doubling)):
            highest.popleft()
        while lowest and lowest[0][0] <= up:
            lowest.popleft()
        while highest and highest[-1][1] <= count:
            highest.pop()
        while lowest and lowest[-1][1] >= count:
            lowest.pop()
        highest.append((now, count))
        lowest.append((now, count))
        if limits.doubling:  # without `behavior`: the highest of the window, its far end included
            return highest[0][1]
        return min(max(current, lowest[0][1]), highest[0][1])
