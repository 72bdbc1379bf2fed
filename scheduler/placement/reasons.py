"""The hard rules for one node, as a sentence that names what is in the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mesh.scheduler.blueprint import Blueprint
from mesh.scheduler.placement.cluster import Cluster, Ints
from mesh.scheduler.placement.kinds import Needs
from mesh.scheduler.placement.model import Request
from mesh.scheduler.placement.rules import PORT
from mesh.scheduler.sentences import size_text
from mesh.units import format_cpu

Holder = Callable[[int, str], str]
"""Who has a host port of a node."""


def why_not(cluster: Cluster, request: Request, needs: Needs, holder: Holder) -> Iterator[str]:
    """For each node why it will not do for a request; empty where it would."""
    own = _counted(cluster, request)
    for node, name in enumerate(cluster.names):
        yield _elsewhere(cluster, request, name) or _there(cluster, request, needs, own, node, holder)


def why_not_there(cluster: Cluster, request: Request, needs: Needs, node: int, holder: Holder) -> str:
    """The same for one node."""
    return _there(cluster, request, needs, _counted(cluster, request), node, holder)


def _counted(cluster: Cluster, request: Request) -> Ints | None:
    """The replicas of the service on each node, if there is a limit to them."""
    placement = request.blueprint.spec.placement
    limited = placement.max_per_node is not None or placement.max_per
    own = cluster.own(request.service) if limited else None
    return None if own is None else own.counts


def _there(cluster: Cluster, request: Request, needs: Needs, own: Ints | None, node: int, holder: Holder) -> str:
    return (
        barred(cluster, request.blueprint, node)
        or full(cluster, needs, node, holder)
        or (too_many(cluster, request, own, node) if own is not None else "")
    )


def _elsewhere(cluster: Cluster, request: Request, node: str) -> str:
    if request.only in (None, node):
        return ""
    if not request.blueprint.spec.volumes:
        return f"is for {request.only} only"
    return f"its volumes are on {request.only}" + ("" if request.only in cluster.position else ", which is not there")


def barred(cluster: Cluster, blueprint: Blueprint, node: int) -> str:
    """The fixed rule that excludes a node."""
    attributes = cluster.attributes[node]
    if why := cluster.barred[node] or blueprint.refuses(attributes.get("runtime", "")):
        return why
    for constraint in blueprint.constraints:
        if not constraint.allows(attributes):
            return constraint.why_not(attributes)
    for label in blueprint.spec.placement.max_per:
        if label not in attributes:
            return f"has no {label}, by which max_per counts"
    return ""


def full(cluster: Cluster, needs: Needs, node: int, holder: Holder) -> str:
    """What a node has too little of."""
    for dimension, amount in needs:
        free = int(cluster.free[dimension][node])
        if amount <= free:
            continue
        if dimension == "cpu":
            return f"needs {format_cpu(amount)} cpu, {format_cpu(max(free, 0))} free"
        if dimension == "memory":
            return f"needs {size_text(amount)} memory, {size_text(max(free, 0))} free"
        if dimension.startswith(PORT):
            return f"{dimension} is taken by {holder(node, dimension)}"
        return f"needs {amount} {dimension}, {max(free, 0)} free"
    return ""


def too_many(cluster: Cluster, request: Request, own: Ints, node: int) -> str:
    """The limit on a service's replicas that a node has reached, itself or with its like."""
    placement = request.blueprint.spec.placement
    if placement.max_per_node is not None and own[node] >= placement.max_per_node:
        return f"already has {own[node]} of {request.service} (max_per_node)"
    for name, most in placement.max_per.items():
        label = cluster.label(name)
        there = int(own[label.codes == label.codes[node]].sum())
        if there >= most:
            value = label.values[label.codes[node]]
            return f"{name} {value} already has {there} of {request.service} (max_per {name})"
    return ""
