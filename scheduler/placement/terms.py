"""What a service asks for beyond its kind, as arrays over the nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mesh.scheduler.placement import scores
from mesh.scheduler.placement.cluster import Floats, Groups, Ints, Staying
from mesh.scheduler.placement.kinds import Kind
from mesh.scheduler.placement.scores import NEVER

_NO_NODES = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Tier:
    """A spread label: the groups of nodes, and the replicas of the service in each."""

    groups: Groups
    counts: Ints
    shares: Floats | None = None  # of each group in the one around it; None: all the same
    label: str = ""

    def levels(self, group: Ints, rank: Ints | int = 0) -> Floats | Ints:
        """What a further replica in the group counts.

        By shares it is the half on the way to one more, so that targets are met as closely as can be (Webster). A
        group that should have nothing comes after those that should, and one without the label after all.
        """
        level: Floats | Ints = self.counts[group] + rank
        if self.shares is not None:
            share = self.shares[group]
            level = np.where(share > 0, (level + 0.5) / np.where(share > 0, share, 1.0), level + 1e12)
        missing = self.groups.missing
        return level if missing is None else level + missing[group] * 1e15

    @property
    def is_plain(self) -> bool:
        """What a replica counts in a group is how many are there."""
        return self.shares is None and self.groups.missing is None

    def first_levels(self) -> list[float]:
        """What the next replica counts in each group."""
        levels: list[float] = (self.counts if self.is_plain else self.levels(np.arange(self.groups.size))).tolist()
        return levels

    @property
    def is_even(self) -> bool:
        """It prefers no group."""
        return len(set(self.first_levels())) == 1

    def level(self, group: int, rank: int) -> float:
        """The same for one group, after so many more."""
        return int(self.counts[group]) + rank if self.is_plain else float(self.levels(np.array([group]), rank)[0])


@dataclass(frozen=True, slots=True)
class Cap:
    """`max_per` of a label: the group of each node, and how many more replicas each group may have."""

    groups: Ints
    left: Ints


@dataclass(frozen=True, slots=True)
class Terms:
    """What a service asks for beyond its kind."""

    own: Staying | None = None  # its replicas, if it has any
    max_per_node: int | None = None
    affinity: Ints | None = None  # the sum of the weights that each node matches
    to_itself: int = 0  # the weight of its affinity to its own replicas, not counted in `affinity`
    tiers: Sequence[Tier] = ()
    caps: Sequence[Cap] = ()
    last: Ints = field(default_factory=lambda: _NO_NODES)  # nodes that come after all others

    def own_on(self, node: int) -> int:
        """The service's replicas on a node that may have one more: none, where one is all it may have."""
        return 0 if self.own is None or self.max_per_node == 1 else int(self.own.counts[node])


def first_keys(kind: Kind, terms: Terms) -> Ints:
    """What each node is worth to the next replica, but for spread labels; see `Shape.keys` for who may write."""
    if terms.own is None:
        keys = kind.keys()
    else:
        keys = kind.own_keys()
        nodes = terms.own.nodes
        if terms.max_per_node == 1:
            keys[nodes] = NEVER
        else:
            own = terms.own.counts[nodes]
            keys[nodes] |= scores.own_part(own, packing=kind.packing)
            if terms.max_per_node is not None:
                keys[nodes[own >= terms.max_per_node]] = NEVER
    if terms.affinity is not None:
        keys = keys | scores.affinity_part(terms.affinity, packing=kind.packing)
    return keys
