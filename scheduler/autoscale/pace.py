"""The modes `kpa` and `predictive`, for all services at once: what the last minute asks for.

`kpa` is Knative's pod autoscaler (knative/serving, pkg/autoscaler/scaling/autoscaler.go): the mean of a stable minute;
in a panic, when the last 6 s ask for twice what is ready, the larger of both, and nothing less until a minute after.

`predictive` adds three looks ahead, of which the largest counts:

- the *trend*: a line through the last 20 s, continued for 8 s, which is what it takes to decide, to start a replica and
  to have it in traffic; less its standard error, so that noise asks for nothing, and after a jump no more than came;
- a *jump*: a second that is far above what the minute's mean and spread explain, after one that was on the way there;
- the *season*: what the same time of day, or of the week, has asked for before (`season.py`).

And it turns round only for a reason: within a minute of having grown it shrinks, and of having shrunk it grows, only
where the need is beyond the count by a margin that widens with the noise; amid much noise it turns once a minute. So
noise around a constant load does not make it flap, and a load that moves is followed at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mesh.scheduler.autoscale.limits import MANY
from mesh.scheduler.autoscale.windows import STABLE, TREND, Columns, Figures, Flags, Floats, Integers

PANIC_THRESHOLD = 2.0
"""KPA's `panic-threshold-percentage`: 200."""
MAX_UP = 1000.0
"""KPA's `max-scale-up-rate`: at most so many times what is ready, at once. In practice `max` is what bounds."""
MAX_DOWN = 2.0
"""KPA's `max-scale-down-rate`: at most down to half of what is ready."""

AHEAD = 8.0
"""Seconds that a trend is continued."""
TURN_UP = 0.2
"""How far beyond the count the need must be to turn from shrinking to growing, as a part of it."""
TURN_DOWN = 0.28
"""… and from growing to shrinking. The trend's standard error, as a part of the need, comes on top of either."""
NOISY = 0.09
"""The trend's standard error, as a part of the stable need, beyond which two turns within a minute are noise; …"""
TURN_AGAIN = 0.35
"""… to grow again there, the need must be so far beyond the count. It does not shrink again."""


@dataclass(frozen=True, slots=True)
class Needs:
    """In replicas, unrounded: what each look at the last minute asks for, the largest of a service's metrics."""

    stable: Floats
    panic: Floats
    trend: Floats
    jump: Floats
    error: Floats
    """The trend's standard error."""
    most: Floats
    """The largest second that the trend goes through."""


def needs_of(figures: Figures, targets: Floats, starts: Integers) -> Needs:
    """Series to services: `starts` has the first series of each service."""

    def largest(values: Floats) -> Floats:
        needs = values / targets
        return needs if len(starts) == len(needs) else np.maximum.reduceat(needs, starts)

    return Needs(
        largest(figures.stable),
        largest(figures.panic),
        largest(figures.ahead - figures.error),
        largest(figures.jump),
        largest(figures.error),
        largest(figures.most),
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """What each service is asked to have: `need` unrounded, `plain` in whole replicas, `rated` within KPA's rates,
    `paced` with what a panic keeps and without what would be a turn for no reason."""

    need: Floats
    plain: Integers
    rated: Integers
    paced: Integers


class Pace(Columns):
    """What is remembered between ticks about each service."""

    DEFAULTS: ClassVar = {
        "panic_since": -math.inf, "panic_most": 0, "jumped": -math.inf, "grown": -math.inf, "shrunk": -math.inf,
        "turned": -math.inf,
    }  # fmt: skip

    panic_since: Floats
    """When the last 6 s were last over the threshold; -inf: no panic."""
    panic_most: Integers
    """The most that this panic has asked for."""
    jumped: Floats
    """When the load last jumped."""
    grown: Floats
    """When the count last grew."""
    shrunk: Floats
    turned: Floats
    """When it last did the one after the other."""

    def change(self, index: int, by: int, now: float) -> None:
        """A count has changed."""
        if (by > 0) != bool(self.grown[index] > self.shrunk[index]):
            self.turned[index] = now
        (self.grown if by > 0 else self.shrunk)[index] = now

    def recommend(
        self, now: float, needs: Needs, season: Floats, current: Integers, ready: Integers, predictive: Flags
    ) -> Asked:
        """What is asked for now. Ticks of one instance never go back in time."""
        ready = np.maximum(ready, 1)
        over = _whole(needs.panic) / ready >= PANIC_THRESHOLD
        self.panic_since = np.where(over, now, np.where(now - self.panic_since > STABLE, -np.inf, self.panic_since))
        panic = self.panic_since > -np.inf

        self.jumped = np.where(needs.jump > 0, now, self.jumped)
        # a line through a jump leads far above it
        trend = np.where(now - self.jumped < TREND, np.minimum(needs.trend, needs.most), needs.trend)
        need = np.where(panic, np.maximum(needs.stable, needs.panic), needs.stable)
        looks = np.maximum(np.maximum(trend, needs.jump), season)
        need = np.minimum(np.where(predictive, np.maximum(need, looks), need), MANY)
        plain = _whole(need).astype(np.int64)
        rated = np.minimum(np.maximum(plain, np.floor(ready / MAX_DOWN)), MAX_UP * ready).astype(np.int64)
        self.panic_most = np.where(panic, np.maximum(self.panic_most, rated), 0)
        kept = np.where(panic, self.panic_most, rated)

        noise = needs.error / np.maximum(need, 1e-9)
        again = (now - self.turned < STABLE) & (needs.error > NOISY * needs.stable)
        beyond = current * (1 + np.where(again, TURN_AGAIN, TURN_UP) + noise)
        no_turn_up = (now - self.shrunk < STABLE) & (need <= beyond) & (needs.jump < need)
        no_turn_down = (now - self.grown < STABLE) & (again | (need * (1 + TURN_DOWN + noise) >= current))
        stays = predictive & ~panic & np.where(kept > current, no_turn_up, no_turn_down)
        return Asked(need, plain, rated, np.where(stays, current, kept))


def _whole(amounts: Floats) -> Floats:
    """As `hpa.ceil`, for many."""
    found: Floats = np.ceil(amounts - 1e-9 * np.maximum(1.0, amounts))
    return found
