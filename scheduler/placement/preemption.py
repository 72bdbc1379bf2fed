"""Who must go so that a request of clearly higher priority has room: the least important, the fewest, the smallest.

Asked only when no node has room. A node is looked at if telling evictable replicas to go would make room there. Among
all ways to do so, those win whose most important victim matters least, of these the ones with the fewest victims, of
these the one whose victims are smallest. What would not make room is never evicted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from mesh.scheduler.placement.cluster import Cluster, Ints, Mask
from mesh.scheduler.placement.kinds import Needs
from mesh.scheduler.placement.model import Holding

CLEARLY = 10
"""Priorities must be so far apart."""
MAX_TRIED = 5_000
"""Sets of victims of one size that are tried on one node; where there are more, they are chosen one after the other."""
MAX_NODES = 64
"""Nodes on which sets of several victims are tried for one request: those that come first by name."""


class Victims:
    """The replicas of a cluster that may be told to go, and what each would free."""

    def __init__(self, cluster: Cluster, found: Sequence[tuple[int, Holding, Mapping[str, int]]]) -> None:
        self.holdings = [holding for _, holding, _ in found]
        self.nodes = np.array([node for node, _, _ in found], np.int64)
        self._cluster = cluster
        self._frees = [frees for _, _, frees in found]
        self._priorities = np.array([holding.priority for holding in self.holdings], np.int64)
        self._there = np.ones(len(found), bool)
        self._sizes = np.zeros(len(found))
        for dimension in ("cpu", "memory"):
            have = np.maximum(cluster.capacity[dimension][self.nodes], 1)
            self._sizes += self._freed(dimension) / have

    def choose(
        self, service: str, priority: int, needs: Needs, nodes: Mask, last: Ints
    ) -> tuple[int, list[int]] | None:
        """A node and the victims there, if there is a way: only of other services, only on these nodes.

        `last`: nodes that come after the others where all else is equal.
        """
        may = self._there & (self._priorities <= priority - CLEARLY) & nodes[self.nodes]
        may &= np.array([holding.service != service for holding in self.holdings], bool)
        if not may.any() or not self._enough_on(needs, may).any():
            return None
        late = np.zeros(self._cluster.size, bool)
        late[last] = True
        for most in np.unique(self._priorities[may]):
            lowest = may & (self._priorities <= most)
            places = self._enough_on(needs, lowest)
            if not places.any():
                continue
            alone = np.flatnonzero(lowest & self._enough_alone(needs))
            if alone.size:
                on = self.nodes[alone]
                best = int(alone[np.lexsort((on, late[on], self._sizes[alone]))[0]])
                return int(self.nodes[best]), [best]
            ways = [(len(chosen), self._total(chosen), bool(late[node]), int(node), chosen)
                    for node in np.flatnonzero(places)[:MAX_NODES]
                    if (chosen := self._fewest(needs, int(node), lowest))]  # fmt: skip
            *_, node, chosen = min(ways)
            return node, chosen
        return None

    def evict(self, chosen: Sequence[int]) -> None:
        """They are gone."""
        self._there[list(chosen)] = False

    def _freed(self, dimension: str) -> Ints:
        return np.array([frees.get(dimension, 0) for frees in self._frees], np.int64)

    def _enough_on(self, needs: Needs, victims: Mask) -> Mask:
        """The nodes where there is room once all of these are gone."""
        fits = np.zeros(self._cluster.size, bool)
        fits[self.nodes[victims]] = True
        for dimension, amount in needs:
            free = self._cluster.free[dimension].copy()
            np.add.at(free, self.nodes[victims], self._freed(dimension)[victims])
            fits &= free >= amount
        return fits

    def _enough_alone(self, needs: Needs) -> Mask:
        """The victims that need no other to make room."""
        enough = np.ones(len(self.holdings), bool)
        for dimension, amount in needs:
            enough &= self._cluster.free[dimension][self.nodes] + self._freed(dimension) >= amount
        return enough

    def _fewest(self, needs: Needs, node: int, victims: Mask) -> list[int]:
        """The smallest of the smallest sets that make room on a node, where all of these together do."""
        missing = {dimension: short for dimension, amount in needs
                   if (short := amount - int(self._cluster.free[dimension][node])) > 0}  # fmt: skip
        useful = [int(one) for one in np.flatnonzero(victims & (self.nodes == node))
                  if self._frees[int(one)].keys() & missing.keys()]  # fmt: skip
        for count in range(2, len(useful) + 1):
            if math.comb(len(useful), count) > MAX_TRIED:
                break
            if ways := [way for way in combinations(useful, count) if self._makes_room(way, missing)]:
                return list(min(ways, key=lambda way: (self._total(list(way)), way)))
        return self._one_after_the_other(useful, missing)

    def _one_after_the_other(self, useful: Sequence[int], missing: Mapping[str, int]) -> list[int]:
        """Each time the one that helps most; in the end without those that others have made needless."""
        chosen: list[int] = []
        left = dict(missing)
        while any(short > 0 for short in left.values()):
            rest = [one for one in useful if one not in chosen]
            best = max(rest, key=lambda one: sum(
                min(self._frees[one].get(dimension, 0), short) / missing[dimension]
                for dimension, short in left.items() if short > 0
            ))  # fmt: skip
            chosen.append(best)
            left = {dimension: short - self._frees[best].get(dimension, 0) for dimension, short in left.items()}
        for one in sorted(chosen, key=lambda one: (-self._priorities[one], -self._sizes[one])):
            if self._makes_room(without := [other for other in chosen if other != one], missing):
                chosen = without
        return chosen

    def _makes_room(self, victims: Sequence[int], missing: Mapping[str, int]) -> bool:
        return all(sum(self._frees[one].get(dimension, 0) for one in victims) >= short
                   for dimension, short in missing.items())  # fmt: skip

    def _total(self, victims: Sequence[int]) -> float:
        return float(sum(self._sizes[one] for one in victims))
