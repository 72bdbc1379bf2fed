"""A service's wishes as arrays over the nodes: affinities, spread labels, limits per label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mesh.scheduler.placement.batch import Cap, Terms, Tier
from mesh.scheduler.placement.cluster import Cluster, Floats, Groups, Ints, Mask
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
    for depth, spread in enumerate(spreads):
        groups = groups_of(cluster, tuple(outer.label for outer in spreads[: depth + 1]))
        counts = np.zeros(groups.size, np.int64)
        if own is not None:
            np.add.at(counts, groups.of, own)
        around = tiers[-1].groups if tiers else None
        tiers.append(
            Tier(groups, counts, _shares(cluster, spread, groups, around, allowed) if spread.targets else None)
        )
    return tiers


def groups_of(cluster: Cluster, labels: tuple[str, ...]) -> Groups:
    """The nodes that have the same values of these labels; nodes without one are alike in that."""
    known = cluster.groups.get(labels)
    if known is None:
        label = cluster.label(labels[-1])
        outer = groups_of(cluster, labels[:-1]).of if labels[:-1] else 0
        _, first, of = np.unique(outer * (len(label.values) + 1) + label.codes, return_index=True, return_inverse=True)
        missing = label.codes[first] < 0
        known = cluster.groups[labels] = Groups(of, first.size, missing if missing.any() else None)
    return known


def _shares(cluster: Cluster, spread: Spread, groups: Groups, around: Groups | None, allowed: Mask) -> Floats:
    """The share of each group in the one around it, as the targets say.

    What they leave is shared evenly among the values that they do not name and some node has that will do.
    """
    label = cluster.label(spread.label)
    value, outer, present = np.zeros((3, groups.size), np.int64)
    value[groups.of] = label.codes
    outer[groups.of] = 0 if around is None else around.of
    present[groups.of[allowed]] = 1
    unnamed = np.array([code >= 0 and label.values[code] not in spread.targets for code in value], bool)
    rest = max(0.0, 1.0 - sum(spread.targets.values()))
    even = rest / np.maximum(np.bincount(outer, unnamed & (present > 0))[outer], 1)
    return np.array([
        spread.targets.get(label.values[code], share) if code >= 0 else 1.0
        for code, share in zip(value, even, strict=True)
    ])  # fmt: skip


def _cap(cluster: Cluster, label: str, most: int, own: Ints | None) -> Cap:
    """How many more replicas each group of nodes may have; nodes without the label are in one that never counts."""
    codes = cluster.label(label).codes
    groups = codes + 1
    size = int(groups.max(initial=0)) + 1
    there = np.zeros(size, np.int64) if own is None else np.bincount(groups, own, size).astype(np.int64)
    return Cap(groups, most - there)
