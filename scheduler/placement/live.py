"""Live objects as a `Cluster`, and back: nodes with what lies on them become arrays in a few passes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mesh.scheduler.blueprint import Demand
from mesh.scheduler.placement.cluster import Cluster, amount_of
from mesh.scheduler.placement.model import Holding, Load, Node
from mesh.scheduler.placement.rules import PORT, port_dimension

MAX_KNOWN = 10_000

FEW = 10
"""Services that are looked for node by node."""


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
    others: list[tuple[str, int, int]] = []
    loads = [_load(node) for node in nodes]
    for dimension in ("cpu", "memory"):
        taken = np.array([load.taken.get(dimension, 0) for load in loads], np.int64)
        np.subtract(cluster.free[dimension], taken, out=cluster.free[dimension])
    for position, load in enumerate(loads):
        others += [(dimension, position, amount) for dimension, amount in load.taken.items()
                   if dimension not in ("cpu", "memory")]  # fmt: skip
    for dimension, position, amount in others:
        if dimension.startswith(PORT):
            cluster.open_port(dimension)
        cluster.free_of(dimension)[position] -= amount
    cluster.lying = _Lying(loads)


class _Lying:
    """Where replicas of a service stay: each node is asked for a few services, for more of them there is an index."""

    def __init__(self, loads: Sequence[Load]) -> None:
        self._loads = loads
        self._asked = 0
        self._index: dict[str, list[int]] | None = None

    def __call__(self, service: str) -> Sequence[int]:
        self._asked += 1
        if self._asked <= FEW:
            counts = ((position, load.staying.get(service, 0)) for position, load in enumerate(self._loads))
            return [position for position, count in counts for _ in range(count)]
        if self._index is None:
            self._index = defaultdict(list)
            for position, load in enumerate(self._loads):
                for name, count in load.staying.items():
                    self._index[name] += [position] * count
        return self._index.get(service, ())


def _load(node: Node) -> Load:
    if not node.added_up:
        taken: dict[str, int] = {}
        for holding in node.holdings:
            for dimension, amount in _amounts_known(holding.demand).items():
                taken[dimension] = taken.get(dimension, 0) + amount
        staying = Counter([holding.service for holding in node.holdings if holding.stays])
        node.added_up.append(Load(taken, staying))
    return node.added_up[0]


_known: dict[int, tuple[Demand, Mapping[str, int]]] = {}
"""By the identity of a demand, which lives as long as its blueprint: the same few lie on many nodes."""


def _amounts_known(demand: Demand) -> Mapping[str, int]:
    known = _known.get(id(demand))
    if known is None:
        if len(_known) >= MAX_KNOWN:
            _known.clear()
        known = _known[id(demand)] = (demand, amounts_of(demand))
    return known[1]


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
