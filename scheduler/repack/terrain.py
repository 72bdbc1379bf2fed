"""Who lies where, how much room there is, and who may go where: the cluster as arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mesh.scheduler.blueprint import Blueprint, Demand, HostPort
from mesh.scheduler.filters import parse_constraint
from mesh.scheduler.placement.model import Holding, Node

Mask = NDArray[np.bool_]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

Dimension = str | HostPort
"""`cpu`, `memory`, the name of a resource, or a static port."""

Step = tuple[int, int, int]
"""A replica's number, the node that it leaves, and the one that it goes to."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What the replicas of one release have in common."""

    service: str
    blueprint: Blueprint
    needs: Integers  # of each dimension
    wanted: Integers  # the dimensions that it needs anything of
    allowed: Mask  # nodes that its rules do not forbid, whatever lies on them
    pull: Floats  # by node, the sum of its affinities towards labels


class Terrain:
    """Nodes and replicas by number; the dimensions are cpu, memory, each named resource and each static port."""

    def __init__(self, nodes: Sequence[Node], blueprints: Mapping[str, Blueprint], strategy: str) -> None:
        self.names = [node.name for node in nodes]
        self.holdings: list[Holding] = []  # those that may move, by replica's number
        self.kinds: list[Kind] = []
        self.place: list[int] = []  # their nodes
        self.on: list[list[int]] = [[] for _ in nodes]  # by node, those that may move
        self.stuck = np.zeros(len(nodes), np.int64)  # by node, how many holdings stay whatever happens
        self.count = sum(holding.stays for node in nodes for holding in node.holdings)
        self._nodes = nodes
        self._dimensions = _dimensions(nodes)
        self._kinds: dict[tuple[str, int], Kind] = {}
        self._here = [Counter(held.service for held in node.holdings if held.stays) for node in nodes]
        self._own: dict[str, Integers] = {}  # the same by service, of those that were asked about
        self._values: dict[tuple[str, ...], Integers] = {}
        self.capacity = np.zeros((len(nodes), len(self._dimensions)), np.int64)
        for number, node in enumerate(nodes):
            self.capacity[number] = self._capacity(node)
        self.free = self.capacity.copy()
        self._settle(blueprints, strategy)

    def _settle(self, blueprints: Mapping[str, Blueprint], strategy: str) -> None:
        wanted_near = {one.service for each in blueprints.values() for one in each.spec.placement.affinities}
        for number, node in enumerate(self._nodes):
            for holding in node.holdings:
                self.free[number] -= self._needs(holding.demand)
                blueprint = blueprints.get(holding.id) if holding.stays else None
                if blueprint is None or holding.service in wanted_near or not _movable(blueprint, strategy):
                    self.stuck[number] += 1
                    continue
                self.on[number].append(len(self.holdings))
                self.holdings.append(holding)
                self.kinds.append(self._kind(holding.service, blueprint))
                self.place.append(number)

    def _capacity(self, node: Node) -> list[int]:
        capacity = node.capacity
        named = {"cpu": capacity.cpu, "memory": capacity.memory, **capacity.resources}
        return [named.get(one, 0) if isinstance(one, str) else 1 for one in self._dimensions]

    def _needs(self, demand: Demand) -> Integers:
        needs = np.zeros(len(self._dimensions), np.int64)
        needs[:2] = demand.cpu, demand.memory
        for name, count in demand.resources.items():
            needs[self._dimensions[name]] = count
        for port in demand.ports:
            needs[self._dimensions[port]] = 1
        return needs

    def _kind(self, service: str, blueprint: Blueprint) -> Kind:
        key = (service, id(blueprint))
        if key not in self._kinds:
            rules = blueprint.spec.placement
            needs = self._needs(blueprint.demand)
            allowed = np.array([_allows(blueprint, node) for node in self._nodes], bool)
            pulls = [(parse_constraint(one.match), one.weight) for one in rules.affinities if one.match is not None]
            pull = [sum(weight * match.allows(node.attributes) for match, weight in pulls) for node in self._nodes]
            self._kinds[key] = Kind(
                service, blueprint, needs, np.flatnonzero(needs), allowed, np.array(pull, np.float64)
            )
        return self._kinds[key]

    def used(self) -> Mask:
        """The nodes on which anything lies."""
        return np.array([bool(self.stuck[node] or here) for node, here in enumerate(self.on)], bool)

    def targets(self, replica: int) -> Mask:
        """The nodes that may take a replica and have room for it while it still is where it is."""
        kind = self.kinds[replica]
        fit = self.permits(replica)
        for dimension in kind.wanted:
            fit &= self.free[:, dimension] >= kind.needs[dimension]
        return fit

    def permits(self, replica: int) -> Mask:
        """The nodes to which the rules of its service let a replica go, room or not."""
        kind, source = self.kinds[replica], self.place[replica]
        fit: Mask = kind.allowed & (kind.pull >= kind.pull[source])
        fit[source] = False
        rules = kind.blueprint.spec.placement
        if not (rules.spread or rules.max_per or rules.max_per_node):
            return fit
        own = self.own(kind.service)
        if rules.max_per_node is not None:
            fit &= own < rules.max_per_node
        for label, most in rules.max_per.items():
            value, there = self._tally(own, (label,))
            fit &= (there < most) | (value == value[source])
        labels: tuple[str, ...] = ()
        for spread in rules.spread:
            labels = (*labels, spread.label)
            value, there = self._tally(own, labels)
            same = value == value[source]
            fit &= same if spread.targets else same | ((value >= 0) & (there < there[source]))
        return fit

    def own(self, service: str) -> Integers:
        """How many replicas of a service each node has."""
        if service not in self._own:
            self._own[service] = np.array([here[service] for here in self._here], np.int64)
        return self._own[service]

    def _tally(self, own: Integers, labels: tuple[str, ...]) -> tuple[Integers, Integers]:
        """By node: a number for its values of these labels (-1: it lacks one), and how many of a service have them."""
        values = self._values.get(labels)
        if values is None:
            numbers: dict[tuple[str, ...], int] = {}
            found = [tuple(node.attributes.get(label, "") for label in labels) for node in self._nodes]
            values = np.array([numbers.setdefault(one, len(numbers)) if all(one) else -1 for one in found], np.int64)
            self._values[labels] = values
        return values, np.bincount(values + 1, weights=own).astype(np.int64)[values + 1]

    def move(self, replica: int, target: int) -> Step:
        source, kind = self.place[replica], self.kinds[replica]
        self.free[source] += kind.needs
        self.free[target] -= kind.needs
        self.on[source].remove(replica)
        self.on[target].append(replica)
        self.place[replica] = target
        for node, change in ((source, -1), (target, 1)):
            self._here[node][kind.service] += change
            if kind.service in self._own:
                self._own[kind.service][node] += change
        return replica, source, target


def _dimensions(nodes: Sequence[Node]) -> dict[Dimension, int]:
    """Their numbers: cpu and memory first, then resources by name, then ports."""
    resources: set[str] = set()
    ports: set[tuple[int, str]] = set()
    for node in nodes:
        resources.update(node.capacity.resources)
        for holding in node.holdings:
            resources.update(holding.demand.resources)
            ports.update(holding.demand.ports)
    dimensions: list[Dimension] = ["cpu", "memory", *sorted(resources), *sorted(ports)]
    return {one: number for number, one in enumerate(dimensions)}


def _movable(blueprint: Blueprint, strategy: str) -> bool:
    """Start-first, and for the cluster's reasons; `near or far from a service` is nothing that arrays can keep."""
    spec = blueprint.spec
    return (
        spec.kind == "service"
        and not spec.volumes
        and not spec.singleton
        and (spec.placement.strategy or strategy) == strategy
        and all(one.service is None for one in spec.placement.affinities)
    )


def _allows(blueprint: Blueprint, node: Node) -> bool:
    return (
        not node.barred
        and not blueprint.refuses(node.attributes.get("runtime", ""))
        and all(constraint.allows(node.attributes) for constraint in blueprint.constraints)
        and all(label in node.attributes for label in blueprint.spec.placement.max_per)
    )
