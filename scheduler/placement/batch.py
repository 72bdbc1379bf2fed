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

import numpy as np

from mesh.scheduler.placement import scores
from mesh.scheduler.placement.cluster import Cluster, Floats, Groups, Ints
from mesh.scheduler.placement.kinds import Kind
from mesh.scheduler.placement.scores import NEVER
from mesh.scheduler.placement.search import best_of_all, lane_by_lane, node_by_node, one_by_one
from mesh.scheduler.placement.terms import Terms, Tier, first_keys

SPARE = 8
"""So many more nodes are looked at than will do if all goes well."""
GROWTH = 8
WIDE = 2
MARGIN = 48
"""So many are kept in view for the next batch, at least."""
FEW = 4
"""Up to so many searches are made before all is prepared for one that tells everything."""


def fill(cluster: Cluster, kind: Kind, terms: Terms, count: int) -> Ints:
    """Takes room for as many replicas as possible; returns their nodes, in the order greedy chooses them."""
    if terms.caps or terms.to_itself or terms.last.size:
        return one_by_one(cluster, kind, terms, count)
    if count == 1 and all(tier.is_even for tier in terms.tiers):
        return best_of_all(cluster, kind, terms)
    if terms.tiers:
        few = count <= (2 * FEW if kind.fills and terms.max_per_node != 1 else FEW)
        few = few and len(terms.tiers) == 1 and terms.tiers[0].groups.size <= FEW
        return (lane_by_lane if few else _all_at_once)(cluster, kind, terms, count)
    if kind.fills and terms.max_per_node is None:
        picks = node_by_node(cluster, kind, terms, count, FEW)
        if picks.size == count:
            return picks
        return np.concatenate((picks, _all_at_once(cluster, kind, terms, count - picks.size)))
    if count <= (FEW * (terms.max_per_node or 1) if kind.fills else FEW):
        return node_by_node(cluster, kind, terms, count, count)
    return _all_at_once(cluster, kind, terms, count)


def _all_at_once(cluster: Cluster, kind: Kind, terms: Terms, count: int) -> Ints:
    keys = first_keys(kind, terms)
    looked_at = SPARE + (-(-count // (terms.max_per_node or 8)) if kind.packing else count)
    while (found := _found(keys, kind, terms, looked_at, count)) is None:
        looked_at *= GROWTH
    picks, nodes, counts = found
    if picks.size:
        cluster.take(kind.needs, nodes, counts)
    return picks


Found = tuple[Ints, Ints, Ints | None]
"""The picks in their order; the same as nodes, and how many replicas each mention of a node stands for (None: one)."""


def _found(keys: Ints, kind: Kind, terms: Terms, looked_at: int, count: int) -> Found | None:
    """What greedy chooses, if the best nodes, so many of them, are certainly enough to tell."""
    nodes, worst = _best(keys, kind, looked_at)
    if not nodes.size:
        return nodes, nodes, None
    if terms.max_per_node != 1 and nodes.size > 3 * looked_at:
        ordered = keys[nodes]
        worst = int(ordered[2 * looked_at - 1])
        nodes = nodes[: ordered.searchsorted(worst, "right")]  # all that are as bad
    everything = worst == NEVER
    most = _most(keys, nodes, everything, kind, terms, count)
    if most == 1:
        items, item_keys = nodes, None
    else:
        room = _room(nodes, most, kind, terms, count)
        if kind.fills and not terms.tiers:
            return _filled(nodes, room, everything, count)
        items, item_keys = _queue(nodes, room, worst, kind, terms)
    if terms.tiers:
        picks = items[_merged(items, item_keys, terms.tiers)[:count]]
        certain = everything or _enough(picks, items, keys, terms.tiers[-1].groups, count)
    else:
        picks = items[:count]
        certain = everything or picks.size == count
    return (picks, picks, None) if certain else None


def _best(keys: Ints, kind: Kind, count: int) -> tuple[Ints, int]:
    """The nodes with the least keys, at least so many, best first; and how bad the worst may be: `NEVER` for all.

    How bad they were the last time is tried first: that spares the search for the worst of the best.
    """
    nodes = (keys <= kind.cut).nonzero()[0]
    worst = int(kind.cut)
    wanted = max(WIDE * count, MARGIN)
    if nodes.size < count:
        worst = int(np.partition(keys, wanted - 1)[wanted - 1]) if wanted < keys.size else NEVER
        if worst < NEVER:
            kind.cut = np.array(worst)
        nodes = (keys <= min(worst, NEVER - 1)).nonzero()[0]
    of_nodes = keys[nodes]
    order = of_nodes.argsort(kind="stable")
    nodes = nodes[order]
    if nodes.size > 2 * wanted:
        ordered = of_nodes[order]
        worst = int(ordered[wanted])
        kind.cut = np.array(worst)
        nodes = nodes[: ordered.searchsorted(worst, "right")]  # all that are as bad
    return nodes, worst


def _most(keys: Ints, nodes: Ints, everything: bool, kind: Kind, terms: Terms, count: int) -> int:
    """How many of the replicas one of these nodes may get before one that is not among them gets the next."""
    most = count if terms.max_per_node is None else min(count, terms.max_per_node)
    if kind.packing or everything:
        return most
    return min(most, scores.levels_between(int(keys[nodes[0]]), int(keys[nodes[-1]])))


def _room(nodes: Ints, most: int, kind: Kind, terms: Terms, count: int) -> Ints:
    """How many of the replicas each of these nodes may get."""
    room = np.minimum(kind.shape.room(nodes), most)
    if terms.own is not None and terms.max_per_node is not None:
        room = np.minimum(room, terms.max_per_node - terms.own.counts[nodes])
    if kind.packing or terms.affinity is not None or room.sum() <= 2 * count:
        return room
    return _up_to_level(room, None if terms.own is None else terms.own.counts[nodes], terms, nodes, count)


def _up_to_level(room: Ints, own: Ints | None, terms: Terms, nodes: Ints, count: int) -> Ints:
    """The room up to the level at which every group has enough: replicas that keep apart will not stand higher."""
    groups = terms.tiers[-1].groups.of[nodes] if terms.tiers else np.zeros(nodes.size, np.int64)
    enough = np.minimum(np.bincount(groups, room), count)
    there = np.zeros(nodes.size, np.int64) if own is None else own
    low, high = int(there.min()), int(there.max()) + count
    while low < high:
        level = (low + high) // 2
        if (np.bincount(groups, np.clip(level - there, 0, room)) >= enough).all():
            high = level
        else:
            low = level + 1
    return np.clip(low - there, 0, room)


def _filled(nodes: Ints, room: Ints, everything: bool, count: int) -> Found | None:
    """One node after the other, each until it is full: what greedy does if no node becomes worse by filling up."""
    total = room.cumsum()
    if total[-1] < count:
        return (nodes.repeat(room), nodes, room) if everything else None
    last = int(total.searchsorted(count))
    counts = room[: last + 1]
    counts[last] -= total[last] - count
    return nodes[: last + 1].repeat(counts), nodes[: last + 1], counts


def _queue(nodes: Ints, room: Ints, worst: int, kind: Kind, terms: Terms) -> tuple[Ints, Ints]:
    """Every replica that may be put on these nodes before a node worse than `worst` is, in greedy's order; its keys."""
    items = nodes.repeat(room)
    starts = room.cumsum() - room
    earlier = np.arange(items.size) - starts.repeat(room)
    keys = kind.keys_of(items, earlier)
    own = earlier if terms.own is None else terms.own.counts[items] + earlier
    keys |= scores.own_part(own, packing=kind.packing)
    if terms.affinity is not None:
        keys |= scores.affinity_part(terms.affinity[items], packing=kind.packing)
    if kind.fills:
        return items, keys
    waits = _running_maximum(keys, room)
    known = (waits <= min(worst, NEVER - 1)).nonzero()[0]
    order = known[np.lexsort((items[known], waits[known]))]
    return items[order], keys[order]


def _running_maximum(keys: Ints, room: Ints) -> Ints:
    """The running maximum along each node's replicas, which lie one after the other."""
    table = np.full((room.size, int(room.max())), NEVER)
    there = np.arange(table.shape[1]) < room[:, None]
    table[there] = keys
    maxima: Ints = np.maximum.accumulate(table, axis=1)[there]
    return maxima


def _merged(items: Ints, keys: Ints | None, tiers: Sequence[Tier]) -> Ints:
    """The order of greedy over all groups, of items that are in its order inside each innermost group.

    Without keys the items are in the order of their keys already, all together.
    """
    columns: list[Ints | Floats] = [] if keys is None else [items, keys]  # the last is the first to count
    numbers = np.arange(items.size)
    order = numbers
    for tier in reversed(tiers):
        group = tier.groups.of[items]
        grouped = group.argsort(kind="stable") if order is numbers else order[group[order].argsort(kind="stable")]
        sorted_groups = group[grouped]
        rank = np.empty(items.size, np.int64)
        rank[grouped] = numbers - sorted_groups.searchsorted(sorted_groups)
        columns.append(tier.levels(group, rank))
        order = np.lexsort(columns)
    return order


def _enough(picks: Ints, items: Ints, keys: Ints, groups: Groups, count: int) -> bool:
    """True if no group could have run out of known items while others were compared with it."""
    if picks.size < count:
        return False
    used = np.bincount(groups.of[picks], minlength=groups.size)
    short = used >= np.bincount(groups.of[items], minlength=groups.size)
    return not np.count_nonzero(short) or not short[groups.of[keys < NEVER]].any()
