"""What if: any nodes are lost, or a service should grow until nothing more fits."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mesh.scheduler.forecast.cluster import Cluster, Replica, Room
from mesh.scheduler.forecast.end_state import Forecast, Rest, Waiting, engine_nodes, forecast, waiting_slots
from mesh.scheduler.placement import Placement, Refusal, Request, place

MAX_SETS = 5_000
"""Sets of lost nodes that are tried one by one; of more, a part is."""

MAX_WORK = 4_000_000
"""Replicas looked at in all sets together: some seconds, or a minute where most of them have to be placed first."""

MAX_MORE = 100_000
"""As many replicas as a service may have."""


@dataclass(frozen=True, slots=True)
class LoseAny:
    """Whether all fits on the rest, whichever `k` nodes are lost; `exhaustive`: every set was tried.

    `lose` is the worst set found (of equal ones the first by name), `waiting` what waits then.
    """

    k: int
    fits: bool
    exhaustive: bool
    lose: Sequence[str]
    waiting: Sequence[Waiting]


def lose_any(cluster: Cluster, k: int) -> LoseAny:
    """Tries all sets of `k` living nodes where their number allows; else the fullest nodes and a fixed random part."""
    base = forecast(cluster)
    sets, exhaustive = _sets(cluster, base, k)
    rest = None if base.placed or base.stopped or base.waiting else Rest(cluster)
    lose: tuple[str, ...] = ()
    worst: Forecast | None = None
    for nodes in sets:
        outcome = forecast(cluster.without(nodes), rest)
        if worst is None or waiting_slots(outcome) > waiting_slots(worst):
            lose, worst = nodes, outcome
    waiting = worst.waiting if worst else ()
    return LoseAny(k, not waiting, exhaustive, lose, waiting)


def _sets(cluster: Cluster, base: Forecast, k: int) -> tuple[Iterator[tuple[str, ...]], bool]:
    names = sorted(name for name, site in cluster.sites.items() if not site.lost)
    affordable = max(1, min(MAX_SETS, MAX_WORK // max(1, len(base.replicas) + len(names))))
    if math.comb(len(names), k) <= affordable:
        return itertools.combinations(names, k), True
    return _some_sets(cluster, base, names, k, affordable), False


def _some_sets(cluster: Cluster, base: Forecast, names: list[str], k: int, count: int) -> Iterator[tuple[str, ...]]:
    room = Room(cluster, base.replicas)
    fullest = sorted(names, key=lambda name: (-room.load(name), name))
    yield tuple(sorted(fullest[:k]))
    chance = random.Random(0)  # the same question has the same answer
    for _ in range(count - 1):
        yield tuple(sorted(chance.sample(names, k)))


@dataclass(frozen=True, slots=True)
class UntilFull:
    """How many replicas of a service fit beyond those desired, and why no more: a sentence per node, or `why`."""

    service: str
    more: int
    reasons: Mapping[str, str] = field(default_factory=dict)
    why: str = ""


def until_full(cluster: Cluster, after: Forecast, name: str) -> UntilFull:
    """Adds replicas to the end state until one finds no place. Nobody is evicted for them."""
    service = cluster.services[name]
    if service.blueprint is None:
        return UntilFull(name, 0, why=service.why)
    if stuck := next((waiting for waiting in after.waiting if waiting.service == name and waiting.slots), None):
        return UntilFull(name, 0, stuck.reasons, stuck.why)
    there = list(after.replicas)
    highest = max((one.slot for one in there if one.service == name and isinstance(one.slot, int)), default=0)
    more, batch = 0, 64
    while more < MAX_MORE:
        batch = min(batch * 2, MAX_MORE - more)
        slots = range(highest + more + 1, highest + more + batch + 1)
        requests = [Request(name, slot, service.blueprint) for slot in slots]
        answers = place(requests, engine_nodes(cluster, there, evictable=False), cluster.strategy)
        placed = [answer for answer in answers if isinstance(answer, Placement)]
        more += len(placed)
        refused = next((answer for answer in answers if isinstance(answer, Refusal)), None)
        if refused is not None:
            return UntilFull(name, more, dict(refused.reasons), refused.why)
        there += [Replica(f"{name} {one.request.slot}: more", name, one.request.slot, one.node,
                          demand=service.blueprint.demand) for one in placed]  # fmt: skip
    return UntilFull(name, more, why=f"a service has at most {MAX_MORE} replicas")
