"""The hard rules as arrays: what a replica needs, and which nodes no fixed rule excludes."""

from __future__ import annotations

import numpy as np

from mesh.scheduler.blueprint import Blueprint, Demand
from mesh.scheduler.filters import Constraint
from mesh.scheduler.placement.cluster import MAX_AMOUNT, Cluster, Mask
from mesh.scheduler.placement.kinds import Needs

PORT = "host port "
"""How the dimension of a host port begins: no resource's name has a space."""


def needs_of(demand: Demand, cluster: Cluster) -> Needs:
    """A demand as dimensions and amounts.

    Raises:
        ValueError: it is not a demand.
    """
    amounts = {"cpu": demand.cpu, "memory": demand.memory, **demand.resources}
    for name, amount in amounts.items():
        if not isinstance(amount, int) or amount < 0:
            raise ValueError(f"needs {amount!r} {name}, which is no amount")
    ports = {port_dimension(port): 1 for port in sorted(demand.ports)}
    for dimension in ports:
        cluster.open_port(dimension)
    return tuple((name, min(amount, 2 * MAX_AMOUNT)) for name, amount in (*amounts.items(), *ports.items()) if amount)


def port_dimension(port: tuple[int, str]) -> str:
    """tcp and udp of one number are two dimensions."""
    return f"{PORT}{port[0]}/{port[1]}"


def allowed(cluster: Cluster, blueprint: Blueprint) -> Mask:
    """The nodes that no fixed rule excludes."""
    mask = np.array([not why for why in cluster.barred], bool)
    runtimes = cluster.label("runtime")
    refused = np.array([bool(blueprint.refuses(value)) for value in (*runtimes.values, "")], bool)
    mask &= ~refused[runtimes.codes]  # code -1 is the last: no runtime known
    for constraint in blueprint.constraints:
        mask &= holds(cluster, constraint)
    for label in blueprint.spec.placement.max_per:
        mask &= cluster.label(label).codes >= 0
    return mask


def holds(cluster: Cluster, constraint: Constraint) -> Mask:
    """The nodes for which a constraint holds: asked once for each value of its label."""
    label = cluster.label(constraint.label)
    answers = np.array([constraint.test(value) for value in (*label.values, None)], bool)
    return answers[label.codes]
