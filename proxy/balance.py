"""The choice of an endpoint: pure, over anything that has a weight and counts what it has in flight."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from random import random
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """What a balancer knows of an endpoint."""

    weight: int
    in_flight: int
    avoid_until: float
    """Monotonic seconds; until then it is taken only if nothing else is left (it just refused a connection)."""


C = TypeVar("C", bound=Candidate)


class Balancer:
    """Chooses among the endpoints of one service port, tier by tier.

    The tiers, best first: `ready`; `suspect` (was ready, its node is silent); `running` (alive, not ready: better a
    try than an outage, but only while some are wanted at all). A lower tier serves only where no endpoint
    of a higher one is left untried.
    """

    __slots__ = ("_least", "_turn")

    def __init__(self, balance: str) -> None:
        self._least = balance == "least-request"
        self._turn = -1

    def pick(self, tiers: Sequence[Sequence[C]], tried: Collection[C], now: float) -> C | None:
        """The endpoint for the next try; None when every one has been tried."""
        avoided: C | None = None
        for tier in tiers:
            candidates = [each for each in tier if each not in tried] if tried else tier
            if not candidates:
                continue
            chosen = self._choose(candidates)
            if chosen.avoid_until <= now:
                return chosen
            if fit := [each for each in candidates if each.avoid_until <= now]:
                return self._choose(fit)
            avoided = avoided or chosen
        return avoided

    def _choose(self, candidates: Sequence[C]) -> C:
        count = len(candidates)
        if count == 1:
            return candidates[0]
        self._turn += 1
        chosen = candidates[self._turn % count]
        if any(each.weight != chosen.weight for each in candidates):
            return self._weighted(candidates)
        if self._least:
            other = candidates[int(random() * count)]
            if other.in_flight < chosen.in_flight:
                return other
        return chosen

    def _weighted(self, candidates: Sequence[C]) -> C:
        """At random by weight; with least-request a busy endpoint's weight shrinks with what it has in flight."""
        shares = [each.weight / (each.in_flight + 1) if self._least else each.weight for each in candidates]
        point = random() * sum(shares)
        for each, share in zip(candidates, shares, strict=True):
            point -= share
            if point < 0:
                return each
        return candidates[-1]


def tiers_of(states: Sequence[tuple[str, C]], desired: int) -> list[list[C]]:
    """Endpoints with their states (`ready`, `suspect`, `running`) as tiers; those of weight 0 get nothing."""
    ready, suspect, running = (
        [each for found, each in states if found == state and each.weight > 0]
        for state in ("ready", "suspect", "running")
    )
    return [tier for tier in (ready, suspect, running if desired > 0 else []) if tier]
