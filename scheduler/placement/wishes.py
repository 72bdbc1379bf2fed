"""A service's wishes as arrays over the nodes: affinities, spread labels, limits per label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mesh.scheduler.placement.cluster import Cluster, Floats, Groups, Ints, Staying
from mesh.scheduler.placement.model import Request
from mesh.scheduler.placement.rules import holds
from mesh.scheduler.placement.terms import Cap, Terms, Tier
from mesh.spec.placement import Spread


def terms_of(cluster: Cluster, request: Request) -> Terms:
    """What a request asks for beyond its demand and its fixed rules."""
    placement = request.blueprint.spec.placement
    own = cluster.own(request.service)
    affinity, to_itself = _affinity(cluster, request)
    return Terms(
        own=own,
        max_per_node=placement.max_per_node,
        affinity=affinity,
        to_itself=to_itself,
        tiers=tiers_of(cluster, placement.spread, own),
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
            matches = there.counts > 0 if there is not None else None
        else:
            matches = holds(cluster, towards)
        if matches is not None:
            total = matches * weight + (0 if total is None else total)
    return total, to_itself


def tiers_of(cluster: Cluster, spreads: Sequence[Spread], own: Staying | None) -> list[Tier]:
    """A tier for each spread label, each inside the one before.

    One with targets has a tier around it: the named values by their shares, and all others as one, by the rest. So what
    is named gets what it should have, however many others share the rest.
    """
    tiers: list[Tier] = []
    labels: tuple[str, ...] = ()
    for spread in spreads:
        if spread.targets:
            labels = (*labels, _by_targets(cluster, spread))
            groups = groups_of(cluster, labels)
            shares = _shares(cluster, spread, groups)
            tiers.append(Tier(groups, _counts(groups, own), shares, f"{spread.label} targets"))
        labels = (*labels, spread.label)
        groups = groups_of(cluster, labels)
        tiers.append(Tier(groups, _counts(groups, own), label=spread.label))
    return tiers


def _by_targets(cluster: Cluster, spread: Spread) -> str:
    """A label that has the values with a target, and one value for all others."""
    name = " ".join([spread.label, *spread.targets])  # no label has a space in its name
    label, named = cluster.label(spread.label), list(spread.targets)
    codes = [named.index(value) if value in spread.targets else len(named) for value in label.values]
    cluster.set_label(name, [*named, ""], np.array([*codes, -1], np.int64)[label.codes])
    return name


def _shares(cluster: Cluster, spread: Spread, groups: Groups) -> Floats:
    """The share of each group in the one around it."""
    rest = max(0.0, 1.0 - sum(spread.targets.values()))
    shares = [*spread.targets.values(), rest, 1.0]  # the last: of nodes without the label
    code = np.zeros(groups.size, np.int64)
    code[groups.of] = cluster.label(_by_targets(cluster, spread)).codes
    return np.array(shares)[code]


def _counts(groups: Groups, own: Staying | None) -> Ints:
    """The replicas of the service in each group."""
    return np.zeros(groups.size, np.int64) if own is None else np.bincount(groups.of[own.nodes], minlength=groups.size)


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


def _cap(cluster: Cluster, label: str, most: int, own: Staying | None) -> Cap:
    """How many more replicas each group of nodes may have; nodes without the label are in one that never counts."""
    codes = cluster.label(label).codes
    groups = codes + 1
    size = int(groups.max(initial=0)) + 1
    there = np.zeros(size, np.int64) if own is None else np.bincount(groups[own.nodes], minlength=size)
    return Cap(groups, most - there)
