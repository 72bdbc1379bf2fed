"""Greedy by searching: for each replica, or each node that is filled, another look at all nodes.

The cheapest way for a handful of replicas, and the only one where a replica changes more than its own node's key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mesh.scheduler.placement import scores
from mesh.scheduler.placement.cluster import Cluster, Floats, Groups, Ints
from mesh.scheduler.placement.kinds import Kind
from mesh.scheduler.placement.scores import NEVER
from mesh.scheduler.placement.terms import Terms, first_keys


def best_of_all(cluster: Cluster, kind: Kind, terms: Terms) -> Ints:
    """For one replica, where no group of nodes is to be preferred."""
    keys = first_keys(kind, terms)
    node = int(keys.argmin())
    if keys.data[node] == NEVER:
        return np.zeros(0, np.int64)
    cluster.take_one(kind.needs, node, 1)
    return np.array([node])


def node_by_node(cluster: Cluster, kind: Kind, terms: Terms, count: int, searches: int) -> Ints:
    """A search for each node that is filled, or for each replica: up to a few that is cheaper than one for many."""
    keys = first_keys(kind, terms)
    view = keys.data
    chosen: list[int] = []
    counts: list[int] = []
    left = count
    for _ in range(searches):
        node = int(keys.argmin())
        if view[node] == NEVER:
            break
        own = terms.own_on(node) + chosen.count(node)
        may = left if terms.max_per_node is None else terms.max_per_node - own
        some = min(left, may, kind.shape.room_of(node)) if kind.fills and left > 1 else 1
        cluster.take_one(kind.needs, node, some)
        chosen.append(node)
        counts.append(some)
        left -= some
        if not left:
            break
        view[node] = NEVER if some == may else _key_of(kind, terms, node, own + some)
    nodes = np.array(chosen, np.int64)
    return nodes if len(chosen) == count - left else nodes.repeat(counts)


def lane_by_lane(cluster: Cluster, kind: Kind, terms: Terms, count: int) -> Ints:
    """With one spread label: a search in each of its groups, and another one where the best node is full."""
    keys = first_keys(kind, terms)
    view = keys.data
    (tier,) = terms.tiers
    levels = tier.first_levels()
    more = [0] * len(levels)
    heads: dict[int, tuple[int, int]] = {}  # of groups that have been looked at
    chosen: list[int] = []
    while len(chosen) < count:
        key, node = _lowest(keys, tier.groups, levels, heads)
        if key == NEVER:
            break
        cluster.take_one(kind.needs, node, 1)
        chosen.append(node)
        if len(chosen) == count:
            break
        own = terms.own_on(node) + chosen.count(node)
        key = view[node] = NEVER if own == terms.max_per_node else _key_of(kind, terms, node, own)
        group = int(tier.groups.of[node])
        more[group] += 1
        levels[group] = tier.level(group, more[group])
        if kind.fills and key < NEVER:
            heads[group] = key, node
        else:
            heads.pop(group, None)
    return np.array(chosen, np.int64)


def _lowest(keys: Ints, groups: Groups, levels: Sequence[float], heads: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """The best key and its node in the lowest level that has any that will do."""
    different = set(levels)
    if len(different) == 1 and not heads:
        node = int(keys.argmin())
        return int(keys[node]), node
    for level in sorted(different):
        lowest = [group for group, other in enumerate(levels) if other == level]
        for group in lowest:
            if group not in heads:
                heads[group] = _head(keys, groups.lanes[group])
        best = min(heads[group] for group in lowest)
        if best[0] < NEVER:
            break
    return best


def _head(keys: Ints, lane: Ints) -> tuple[int, int]:
    """The least key in a lane, and whose it is."""
    keys = keys[lane]
    at = int(keys.argmin())
    return int(keys[at]), int(lane[at])


def _key_of(kind: Kind, terms: Terms, node: int, own: int) -> int:
    """What a node is worth to the next replica when it has so many of the service."""
    key = kind.key_of(node) | scores.own_part_of(own, packing=kind.packing)
    if terms.affinity is not None:
        key |= int(scores.affinity_part(terms.affinity[node], packing=kind.packing))
    return key


def one_by_one(cluster: Cluster, kind: Kind, terms: Terms, count: int) -> Ints:
    """Greedy as it is told: among the nodes that will do, wish by wish, those that are best; of these the first."""
    own = np.zeros(cluster.size, np.int64) if terms.own is None else terms.own.counts.copy()
    affinity = np.zeros(cluster.size, np.int64) if terms.affinity is None else terms.affinity
    late = np.zeros(cluster.size, np.int64)
    late[terms.last] = 1
    tiers = [replace(tier, counts=tier.counts.copy()) for tier in terms.tiers]
    left = [cap.left.copy() for cap in terms.caps]

    def keys_of(nodes: Ints) -> Ints:
        keys = kind.keys_of(nodes) | scores.own_part(own[nodes], packing=kind.packing)
        pull = affinity[nodes] + terms.to_itself * (own[nodes] > 0)
        keys |= scores.affinity_part(pull, packing=kind.packing)
        if terms.max_per_node is not None:
            keys[own[nodes] >= terms.max_per_node] = NEVER
        return keys

    keys = keys_of(np.arange(cluster.size))
    picks: list[int] = []
    for _ in range(count):
        nodes = np.flatnonzero(keys < NEVER)
        for cap, more in zip(terms.caps, left, strict=True):
            nodes = nodes[more[cap.groups[nodes]] > 0]
        if not nodes.size:
            break
        nodes = _least(nodes, late[nodes])
        for tier in tiers:
            nodes = _least(nodes, tier.levels(tier.groups.of[nodes]))
        node = _least(nodes, keys[nodes])[:1]
        cluster.take(kind.needs, node)
        own[node] += 1
        for tier in tiers:
            tier.counts[tier.groups.of[node]] += 1
        for cap, more in zip(terms.caps, left, strict=True):
            more[cap.groups[node]] -= 1
        keys[node] = keys_of(node)
        picks.append(int(node[0]))
    return np.array(picks, np.int64)


def _least(nodes: Ints, wish: Floats | Ints) -> Ints:
    """The nodes that are nearest to a wish."""
    nearest: Ints = nodes[wish == wish.min()]
    return nearest
