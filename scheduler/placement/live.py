"""Live objects as a `Cluster`, and back: nodes with what lies on them become arrays in a few passes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mesh.scheduler.blueprint import Demand
from mesh.scheduler.placement.cluster import Cluster, amount_of
from mesh.scheduler.placement.model import Holding, Node
from mesh.scheduler.placement.rules import port_dimension


def cluster_of(nodes: Sequence[Node]) -> Cluster:
    """What is there, less what lies on it. Nodes must be in the order of their names.

    Each demand is looked at once, however many replicas have it; amounts that are nonsense count as nothing.
    """
    capacity = {
        "cpu": np.array([amount_of(node.capacity.cpu) for node in nodes], np.int64),
        "memory": np.array([amount_of(node.capacity.memory) for node in nodes], np.int64),
    }
    resources = sorted({name for node in nodes for name in node.capacity.resources} - capacity.keys())
    for name in resources:
        capacity[name] = np.array([amount_of(node.capacity.resources.get(name, 0)) for node in nodes], np.int64)
    cluster = Cluster(
        [node.name for node in nodes],
        capacity,
        [node.attributes for node in nodes],
        [node.barred for node in nodes],
    )
    cluster.resources.update(resources)
    _lay(cluster, nodes)
    return cluster


def _lay(cluster: Cluster, nodes: Sequence[Node]) -> None:
    """Takes the room of what lies on the nodes, and notes which services stay there."""
    demands: dict[int, Demand] = {}
    which: list[int] = []
    staying: defaultdict[str, list[int]] = defaultdict(list)
    for position, node in enumerate(nodes):
        for holding in node.holdings:
            which.append(key := id(holding.demand))
            if key not in demands:
                demands[key] = holding.demand
            if holding.stays:
                staying[holding.service].append(position)
    amounts = [amounts_of(demand) for demand in demands.values()]
    number = {key: place for place, key in enumerate(demands)}
    each = np.array([number[key] for key in which], np.int64)
    owners = np.repeat(np.arange(len(nodes)), [len(node.holdings) for node in nodes])
    for demand in demands.values():
        for port in demand.ports:
            cluster.open_port(port_dimension(port))
    for dimension in {name for amount in amounts for name in amount}:
        taken = np.array([amount.get(dimension, 0) for amount in amounts], np.int64)
        np.subtract.at(cluster.free_of(dimension), owners, taken[each])
    for service, positions in staying.items():
        cluster.settle(service, np.array(positions, np.int64))


def amounts_of(demand: Demand) -> Mapping[str, int]:
    """What something that lies on a node takes of it."""
    return {
        "cpu": amount_of(demand.cpu),
        "memory": amount_of(demand.memory),
        **{name: amount_of(amount) for name, amount in demand.resources.items()},
        **{port_dimension(port): 1 for port in demand.ports},
    }


def by_name(nodes: Iterable[Node]) -> list[Node]:
    """Each name once, in their order."""
    named = {node.name: node for node in nodes}
    return [named[name] for name in sorted(named)]


def evictable(nodes: Sequence[Node]) -> list[tuple[int, Holding, Mapping[str, int]]]:
    """What may be told to go: its node, and what that frees."""
    return [(position, holding, amounts_of(holding.demand))
            for position, node in enumerate(nodes) for holding in node.holdings
            if holding.evictable and holding.stays]  # fmt: skip
