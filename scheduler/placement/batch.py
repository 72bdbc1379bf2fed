"""A batch: replicas of one service, placed in one go, exactly as if each had been placed after the other.

Greedy gives each replica the node with the least key, and only that node's key changes by it. So the keys of the
first, second, … replica on each node can be written down beforehand, and greedy takes them in the order of their
*running maximum* along the node (a replica waits for those before it on its node), equals by the node's name. One sort
does the work of thousands of searches; and as no replica goes to a node whose first key is worse than the best so
many, only the best nodes are looked at. (Kubernetes' opportunistic batching and swarmkit's task groups have the same
aim, without the same answer as one at a time.)

A spread label puts a number before the key: how many replicas the node's group has already, by its share. Inside a
group the order is as before; the groups are merged by that number. With several labels this is done from the
innermost outwards.

What couples nodes in other ways (`max_per` of a label, an affinity of a service to itself) is placed one at a time, by
arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mesh.scheduler.placement import scores
from mesh.scheduler.placement.cluster import Cluster, Floats, Ints, Mask
from mesh.scheduler.placement.kinds import Kind
from mesh.scheduler.placement.scores import NEVER

SPARE = 8
"""So many more nodes are looked at than will do if all goes well."""
GROWTH = 8


@dataclass(frozen=True, slots=True)
class Tier:
    """A spread label, over all nodes: the group of each, the replicas of the service in each group, and its share."""

    groups: Ints
    counts: Ints
    shares: Floats
    missing: Mask  # groups of nodes without the label: after all others

    def levels(self, group: Ints, rank: Ints | int = 0) -> Floats:
        """What a further replica in the group counts: halves, so that targets are met as closely as can be (Webster).

        A group that should have nothing comes after those that should, and one without the label after all.
        """
        share = self.shares[group]
        filled = self.counts[group] + rank + 0.5
        level: Floats = np.where(share > 0, filled / np.where(share > 0, share, 1.0), filled + 1e12)
        return level + self.missing[group] * 1e15


@dataclass(frozen=True, slots=True)
class Cap:
    """`max_per` of a label: the group of each node, and how many more replicas each group may have."""

    groups: Ints
    left: Ints


@dataclass(frozen=True, slots=True)
class Terms:
    """What a service asks for beyond its kind."""

    own: Ints | None = None  # its replicas on each node, if it has any
    max_per_node: int | None = None
    affinity: Ints | None = None  # the sum of the weights that each node matches
    to_itself: int = 0  # the weight of its affinity to its own replicas, not counted in `affinity`
    tiers: Sequence[Tier] = ()
    caps: Sequence[Cap] = ()
    last: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # nodes that come after all others


def fill(cluster: Cluster, kind: Kind, terms: Terms, count: int) -> Ints:
    """Takes room for as many replicas as possible; returns their nodes, in the order greedy chooses them."""
    if terms.caps or terms.to_itself or terms.last.size:
        return _one_by_one(cluster, kind, terms, count)
    picks = _all_at_once(cluster, kind, terms, count)
    if picks.size:
        nodes, counts = _counted(picks)
        cluster.take(kind.needs, nodes, counts)
    return picks


def _counted(picks: Ints) -> tuple[Ints, Ints | int]:
    """The different nodes, and how often each occurs."""
    if picks.size == 1:
        return picks, 1
    nodes = np.sort(picks)
    starts = np.flatnonzero(nodes[1:] != nodes[:-1]) + 1
    if starts.size == nodes.size - 1:
        return nodes, 1
    bounds = np.concatenate(([0], starts, [nodes.size]))
    return nodes[bounds[:-1]], np.diff(bounds)


# ── all at once ──────────────────────────────────────────────────────────────────────────────


def first_keys(kind: Kind, terms: Terms) -> Ints:
    """What each node is worth to the next replica, but for spread labels. Not to be changed."""
    keys = kind.keys()
    if terms.own is not None:
        keys = keys | scores.own_part(terms.own, packing=kind.packing)
        if terms.max_per_node is not None:
            keys[terms.own >= terms.max_per_node] = NEVER
    if terms.affinity is not None:
        keys = keys | scores.affinity_part(terms.affinity, packing=kind.packing)
    return keys


def _all_at_once(cluster: Cluster, kind: Kind, terms: Terms, count: int) -> Ints:
    keys = first_keys(kind, terms)
    looked_at = count if not kind.packing else -(-count // (terms.max_per_node or 8))
    looked_at += SPARE
    while True:
        nodes, worst = _best(keys, looked_at)
        if not nodes.size:
            return nodes
        picks = _from(nodes, worst, keys, kind, terms, count)
        if picks is not None:
            return picks
        looked_at *= GROWTH


def _best(keys: Ints, count: int) -> tuple[Ints, int]:
    """The nodes with the least keys, at least so many, best first; and the worst key, `NEVER` if these are all."""
    if count >= keys.size:
        worst = NEVER
        nodes = np.flatnonzero(keys < NEVER)
    else:
        worst = int(np.partition(keys, count - 1)[count - 1])
        nodes = (keys <= worst if worst < NEVER else keys < NEVER).nonzero()[0]
    return nodes[keys[nodes].argsort(kind="stable")], worst


def _from(nodes: Ints, worst: int, keys: Ints, kind: Kind, terms: Terms, count: int) -> Ints | None:
    """The picks in their order, if these nodes, those with keys up to `worst`, are certainly enough to tell."""
    items, item_keys = nodes, keys[nodes]
    if (depth := _depth(nodes, item_keys, worst, kind, terms, count)) > 1:
        items, item_keys = _queue(nodes, worst, kind, terms, depth)
    everything = worst == NEVER
    if not terms.tiers:
        return items[:count] if everything or items.size >= count else None
    picks = items[_merged(items, item_keys, terms.tiers)[:count]]
    if everything or _enough(picks, items, keys, terms.tiers[-1].groups, count):
        return picks
    return None


def _depth(nodes: Ints, keys: Ints, worst: int, kind: Kind, terms: Terms, count: int) -> int:
    """How many replicas one of these nodes may get, at most."""
    depth = count if terms.max_per_node is None else min(count, terms.max_per_node)
    if not kind.packing and worst < NEVER:
        depth = min(depth, scores.levels_between(int(keys[0]), worst))
    return min(depth, int(kind.room(nodes).max())) if depth > 1 else depth


def _queue(nodes: Ints, worst: int, kind: Kind, terms: Terms, depth: int) -> tuple[Ints, Ints]:
    """Every replica that may be put on these nodes before a node worse than `worst` is, in greedy's order; its keys."""
    items = nodes.repeat(depth)
    earlier = np.tile(np.arange(depth), nodes.size)
    keys = kind.keys_of(items, earlier)
    own = earlier if terms.own is None else terms.own[items] + earlier
    keys |= scores.own_part(own, packing=kind.packing)
    if terms.max_per_node is not None:
        keys[own >= terms.max_per_node] = NEVER
    if terms.affinity is not None:
        keys |= scores.affinity_part(terms.affinity[items], packing=kind.packing)
    waits = np.maximum.accumulate(keys.reshape(nodes.size, depth), axis=1).ravel()
    known = (waits <= min(worst, NEVER - 1)).nonzero()[0]
    order = known[np.lexsort((items[known], waits[known]))]
    return items[order], keys[order]


def _merged(items: Ints, keys: Ints, tiers: Sequence[Tier]) -> Ints:
    """The order of greedy over all groups, of items that are in its order inside each innermost group."""
    columns: list[Ints | Floats] = [items, keys]  # the last is the first to count
    order = np.arange(items.size)
    for tier in reversed(tiers):
        group = tier.groups[items]
        grouped = order[group[order].argsort(kind="stable")]
        sorted_groups = group[grouped]
        rank = np.empty(items.size, np.int64)
        rank[grouped] = np.arange(items.size) - sorted_groups.searchsorted(sorted_groups)
        columns.append(tier.levels(group, rank))
        order = np.lexsort(columns)
    return order


def _enough(picks: Ints, items: Ints, keys: Ints, groups: Ints, count: int) -> bool:
    """True if no group could have run out of known items while others were compared with it."""
    if picks.size < count:
        return False
    least = int(groups.max()) + 1
    used = np.bincount(groups[picks], minlength=least)
    short = used >= np.bincount(groups[items], minlength=least)
    return not short.any() or not short[groups[keys < NEVER]].any()


# ── one at a time ────────────────────────────────────────────────────────────────────────────


def _one_by_one(cluster: Cluster, kind: Kind, terms: Terms, count: int) -> Ints:
    """Greedy as it is told: among the nodes that will do, wish by wish, those that are best; of these the first."""
    own = np.zeros(cluster.size, np.int64) if terms.own is None else terms.own.copy()
    affinity = np.zeros(cluster.size, np.int64) if terms.affinity is None else terms.affinity
    late = np.zeros(cluster.size, np.int64)
    late[terms.last] = 1
    tiers = [replace(tier, counts=tier.counts.copy()) for tier in terms.tiers]
    left = [cap.left.copy() for cap in terms.caps]
    terms = replace(terms, own=own)

    def keys_of(nodes: Ints | slice) -> Ints:
        keys = kind.keys_of(nodes) | scores.own_part(own[nodes], packing=kind.packing)
        pull = affinity[nodes] + terms.to_itself * (own[nodes] > 0)
        keys |= scores.affinity_part(pull, packing=kind.packing)
        if terms.max_per_node is not None:
            keys[own[nodes] >= terms.max_per_node] = NEVER
        return keys

    keys = keys_of(slice(None))
    picks: list[int] = []
    for _ in range(count):
        nodes = np.flatnonzero(keys < NEVER)
        for cap, more in zip(terms.caps, left, strict=True):
            nodes = nodes[more[cap.groups[nodes]] > 0]
        if not nodes.size:
            break
        wishes = [late[nodes], *(tier.levels(tier.groups[nodes]) for tier in tiers), keys[nodes]]
        node = nodes[np.lexsort(wishes[::-1])[:1]]
        cluster.take(kind.needs, node)
        own[node] += 1
        for tier in tiers:
            tier.counts[tier.groups[node]] += 1
        for cap, more in zip(terms.caps, left, strict=True):
            more[cap.groups[node]] -= 1
        keys[node] = keys_of(node)
        picks.append(int(node[0]))
    return np.array(picks, np.int64)
