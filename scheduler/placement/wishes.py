"""A service's wishes as arrays over the nodes: affinities, spread labels, limits per label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mesh.scheduler.placement.batch import Cap, Terms, Tier
from mesh.scheduler.placement.cluster import Cluster, Floats, Ints, Mask
from mesh.scheduler.placement.model import Request
from mesh.scheduler.placement.rules import holds
from mesh.spec.placement import Spread


def terms_of(cluster: Cluster, request: Request, allowed: Mask) -> Terms:
    """What a request asks for beyond its demand and its fixed rules."""
    placement = request.blueprint.spec.placement
    own = cluster.own(request.service)
    affinity, to_itself = _affinity(cluster, request)
    return Terms(
        own=own,
        max_per_node=placement.max_per_node,
        affinity=affinity,
        to_itself=to_itself,
        tiers=tiers_of(cluster, placement.spread, own, allowed),
        caps=[_cap(cluster, label, most, own) for label, most in placement.max_per.items()],
        last=np.array([cluster.position[node] for node in sorted(request.avoid) if node in cluster.position], np.int64),
    )


def _affinity(cluster: Cluster, request: Request) -> tuple[Ints | None, int]:
    """The sum of the weights that each node matches, and the weight of the service's affinity to itself."""
    total: Ints | None = None
    to_itself = 0
    for towards, weight in request.blueprint.affinities:
        if towards == request.service:
            to_itself += weight
            continue
        if isinstance(towards, str):
            there = cluster.own(towards)
            matches = there > 0 if there is not None else None
        else:
            matches = holds(cluster, towards)
        if matches is not None:
            total = matches * weight + (0 if total is None else total)
    return total, to_itself


def tiers_of(cluster: Cluster, spreads: Sequence[Spread], own: Ints | None, allowed: Mask) -> list[Tier]:
    """A tier for each spread label, each inside the one before."""
    tiers: list[Tier] = []
    outer = np.zeros(cluster.size, np.int64)
    for spread in spreads:
        label = cluster.label(spread.label)
        inner = len(label.values) + 1
        numbers, groups = np.unique(outer * inner + label.codes + 1, return_inverse=True)
        values = numbers % inner - 1  # of each group: a code of the label
        counts = np.zeros(numbers.size, np.int64) if own is None else np.bincount(groups, own, numbers.size)
        present = np.zeros(numbers.size, bool)
        present[groups[allowed]] = True
        shares = _shares(spread, label.values, values, numbers // inner, present) if spread.targets else None
        missing = values < 0
        tiers.append(Tier(groups, counts.astype(np.int64), shares, missing if missing.any() else None))
        outer = groups
    return tiers


def _shares(spread: Spread, names: Sequence[str], values: Ints, outer: Ints, present: Mask) -> Floats:
    """The share of each group in the one around it, as the targets say.

    What they leave is shared evenly among the values that they do not name and some node has that will do.
    """
    rest = max(0.0, 1.0 - sum(spread.targets.values()))
    unnamed = np.array([value >= 0 and names[value] not in spread.targets for value in values], bool)
    among = np.bincount(outer, unnamed & present)[outer]
    even = rest / np.maximum(among, 1)
    return np.array([
        spread.targets.get(names[value], share) if value >= 0 else 1.0
        for value, share in zip(values, even, strict=True)
    ])  # fmt: skip


def _cap(cluster: Cluster, label: str, most: int, own: Ints | None) -> Cap:
    """How many more replicas each group of nodes may have; nodes without the label are in one that never counts."""
    codes = cluster.label(label).codes
    groups = codes + 1
    size = int(groups.max(initial=0)) + 1
    there = np.zeros(size, np.int64) if own is None else np.bincount(groups, own, size).astype(np.int64)
    return Cap(groups, most - there)
