"""The choice of an endpoint: pure, over anything that has a weight and counts what it has in flight."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Sequence
from itertools import accumulate
from math import exp
from random import random
from typing import Generic, Protocol, TypeVar

from mesh.proxy.ring import Ring

DECAY = 10.0
"""Seconds in which a slow answer loses two thirds of its influence on `ewma`: Finagle's and Linkerd's."""
FIRST_GUESS = 0.03
"""Seconds that an endpoint is taken to need before it has answered (Linkerd's)."""
WARM_FLOOR = 0.1
"""Least part of its share that a new endpoint gets during slow start (Envoy's)."""
WARM_STEP = 0.1
"""Seconds between two looks at how warm the endpoints are."""

_GOLDEN = 0.6180339887498949


class Candidate(Protocol):
    """What a balancer knows of an endpoint."""

    id: str
    weight: int
    in_flight: int
    avoid_until: float
    """Monotonic seconds; until then it is taken only if nothing else is left (it failed lately)."""
    joined: float
    """Monotonic seconds; when the slow start began."""
    ewma: float
    """Seconds that answers take, peaks at once and falling slowly."""
    ewma_at: float


C = TypeVar("C", bound=Candidate)


class Tier(Generic[C]):
    """Endpoints that are equally good, and each one's share of the traffic."""

    __slots__ = ("_bounds", "_looked", "_ring", "_slow_start", "_warming_until", "members")

    def __init__(self, members: Sequence[C], slow_start: float = 0.0) -> None:
        self.members = members
        self._slow_start = slow_start
        self._warming_until = max(each.joined for each in members) + slow_start if slow_start else 0.0
        self._looked = -WARM_STEP
        self._bounds = self._shares(0.0) if not slow_start else None
        self._ring: Ring[C] | None = None

    def bounds(self, now: float) -> list[float] | None:
        """Where each member's share ends; None where all are the same."""
        if self._slow_start and self._looked + WARM_STEP <= now:
            self._looked = now
            self._bounds = self._shares(now)
            if now >= self._warming_until:
                self._slow_start = 0.0
        return self._bounds

    def _shares(self, now: float) -> list[float] | None:
        weights = [each.weight * self._warmth(each, now) for each in self.members]
        return list(accumulate(weights)) if min(weights) != max(weights) else None

    def _warmth(self, member: C, now: float) -> float:
        if not self._slow_start:
            return 1.0
        return min(max((now - member.joined) / self._slow_start, WARM_FLOOR), 1.0)

    def ring(self) -> Ring[C]:
        if self._ring is None:
            self._ring = Ring(self.members)
        return self._ring


class Balancer:
    """Chooses among the endpoints of one service port, tier by tier.

    `round-robin` takes turns; `least-request` and `ewma` compare the one whose turn it is with another at random ("the
    power of two choices", Mitzenmacher 2001) and take the less busy, or the one that will answer sooner: nearly as
    good as asking all, and without the herd that runs to the one best. Turns follow the weights, evenly spread.
    """

    __slots__ = ("_least", "_quickest", "_turn")

    def __init__(self, balance: str) -> None:
        self._least = balance != "round-robin"
        self._quickest = balance == "ewma"
        self._turn = -1

    def pick(self, tiers: Sequence[Tier[C]], tried: Collection[C], now: float, key: bytes | None = None) -> C | None:
        """The endpoint for the next try; None when every one has been tried. With a `key`, the one that owns it."""
        if not tiers:
            return None
        if not tried:
            chosen = self._choose(tiers[0], now) if key is None else tiers[0].ring().owner(key)
            if chosen.avoid_until <= now:
                return chosen
        last_choice: C | None = None
        for tier in tiers:
            untried = [each for each in tier.members if each not in tried]
            if fit := [each for each in untried if each.avoid_until <= now]:
                return self._choose_among(tier, fit, now, key)
            if untried and last_choice is None:
                last_choice = self._choose_among(tier, untried, now, key)
        return last_choice

    def _choose_among(self, tier: Tier[C], fit: list[C], now: float, key: bytes | None) -> C:
        if key is not None:
            return next(each for each in tier.ring().owners(key) if each in fit)
        return self._choose(Tier(fit), now)

    def _choose(self, tier: Tier[C], now: float) -> C:
        members = tier.members
        count = len(members)
        if count == 1:
            return members[0]
        self._turn += 1
        bounds = tier.bounds(now)
        if bounds is None:
            turn = self._turn % count
            chosen = members[turn]
            other = members[turn - 1 - int(random() * (count - 1))] if self._least else chosen  # never itself
        else:  # multiples of the golden ratio fill any stretch evenly: turns by weight without keeping a schedule
            chosen = members[bisect(bounds, self._turn * _GOLDEN % 1 * bounds[-1])]
            other = members[bisect(bounds, random() * bounds[-1])] if self._least else chosen
        if other is chosen:
            return chosen
        if self._quickest:
            return other if expected(other, now) < expected(chosen, now) else chosen
        return other if other.in_flight * chosen.weight < chosen.in_flight * other.weight else chosen


def expected(candidate: Candidate, now: float) -> float:
    """Seconds until it would answer one more: what it takes, for that and for those before it, by its weight."""
    ewma = candidate.ewma * exp((candidate.ewma_at - now) / DECAY) if candidate.ewma_at else FIRST_GUESS
    return ewma * (100 * candidate.in_flight / candidate.weight + 1)


def observe(candidate: Candidate, seconds: float, now: float) -> None:
    """It answered after `seconds`: a slower answer counts at once, faster ones bit by bit ("peak EWMA", Finagle)."""
    if seconds > candidate.ewma:
        candidate.ewma = seconds
    else:
        kept = exp((candidate.ewma_at - now) / DECAY)
        candidate.ewma = candidate.ewma * kept + seconds * (1 - kept)
    candidate.ewma_at = now


def tiers_of(
    states: Sequence[tuple[str, C]], desired: int, *, near: Collection[C] = (), slow_start: float = 0.0
) -> list[Tier[C]]:
    """Endpoints with their states as tiers, best first; those of weight 0 get nothing.

    `ready`; then `suspect` (was ready, its node is silent); then `running` (alive, not ready: better a try than an
    outage, but only while some are wanted at all). In each state those that are `near` come first. A lower tier
    serves only where no endpoint of a higher one is left untried.
    """
    wanted = ("ready", "suspect", "running") if desired > 0 else ("ready", "suspect")
    ranked: list[list[C]] = [[] for _ in range(2 * len(wanted))]
    for state, each in states:
        if each.weight > 0 and state in wanted:
            ranked[2 * wanted.index(state) + (each not in near)].append(each)
    return [Tier(members, slow_start) for members in ranked if members]
