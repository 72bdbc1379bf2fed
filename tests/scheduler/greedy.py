"""Placement as it is told, one replica at a time, in plain Python: what the engine must equal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mesh.scheduler.placement import Node, Request
from mesh.scheduler.placement.worth import Use, Worth
from mesh.spec.placement import Spread

WHOLE = 2**28 - 1


def greedy(requests: Sequence[Request], nodes: Sequence[Node], strategy: str) -> list[str | None]:
    """The node of each request, or None; nothing is evicted."""
    world = _World(nodes, requests)
    answers: dict[int, str | None] = {}
    for at in sorted(range(len(requests)), key=lambda at: -requests[at].blueprint.spec.placement.priority):
        request = requests[at]
        fit = [node for node in sorted(nodes, key=lambda node: node.name) if world.allows(request, node)]
        best = min(fit, key=lambda node: world.rank(request, node, strategy), default=None)
        answers[at] = best.name if best else None
        if best:
            world.take(request, best)
    return [answers[at] for at in range(len(requests))]


def fit_labels(request: Request, nodes: Sequence[Node]) -> list[Node]:
    """The nodes that no fixed rule excludes."""
    return [
        node
        for node in nodes
        if not node.barred
        and not request.blueprint.refuses(node.attributes.get("runtime", ""))
        and all(constraint.allows(node.attributes) for constraint in request.blueprint.constraints)
        and all(label in node.attributes for label in request.blueprint.spec.placement.max_per)
    ]


class _World:
    def __init__(self, nodes: Sequence[Node], requests: Sequence[Request]) -> None:
        self.nodes = nodes
        self.used = {node.name: Counter[str]() for node in nodes}
        self.ports = {node.name: set[tuple[int, str]]() for node in nodes}
        self.own: Counter[tuple[str, str]] = Counter()
        for node in nodes:
            for holding in node.holdings:
                self.used[node.name].update(
                    {"cpu": holding.demand.cpu, "memory": holding.demand.memory, **holding.demand.resources}
                )
                self.ports[node.name] |= holding.demand.ports
                self.own[holding.service, node.name] += holding.stays
        held = [one.demand for node in nodes for one in node.holdings] + [one.blueprint.demand for one in requests]
        self.worths = {
            name: Worth(
                [Use(one.resources[name], one.cpu, one.memory) for one in held if one.resources.get(name)],
                max(node.capacity.resources.get(name, 0) for node in nodes),
            )
            for name in {name for node in nodes for name in node.capacity.resources}
            if any(one.resources.get(name) for one in held)
        }
        self.wanted: list[set[str]] = []
        for request in requests:
            texts = request.blueprint.constraints
            names = {node.name for node in nodes if all(one.allows(node.attributes) for one in texts)}
            if texts and names not in self.wanted:
                self.wanted.append(names)

    def take(self, request: Request, node: Node) -> None:
        demand = request.blueprint.demand
        self.used[node.name].update({"cpu": demand.cpu, "memory": demand.memory, **demand.resources})
        self.ports[node.name] |= demand.ports
        self.own[request.service, node.name] += 1

    def free(self, node: Node, what: str) -> int:
        has = {"cpu": node.capacity.cpu, "memory": node.capacity.memory, **node.capacity.resources}
        return has.get(what, 0) - self.used[node.name][what]

    def allows(self, request: Request, node: Node) -> bool:
        demand, placement = request.blueprint.demand, request.blueprint.spec.placement
        needs = {"cpu": demand.cpu, "memory": demand.memory, **demand.resources}
        most = placement.max_per_node
        return (
            request.only in (None, node.name)
            and node in fit_labels(request, [node])
            and all(amount <= self.free(node, what) for what, amount in needs.items() if amount)
            and not demand.ports & self.ports[node.name]
            and (most is None or self.own[request.service, node.name] < most)
            and all(self.count(request, {label: node}) < limit for label, limit in placement.max_per.items())
        )

    def count(self, request: Request, like: dict[str, Node]) -> int:
        """Replicas of the service on nodes with the same values of these labels."""
        return sum(
            self.own[request.service, node.name]
            for node in self.nodes
            if all(node.attributes.get(label) == other.attributes.get(label) for label, other in like.items())
        )

    def rank(self, request: Request, node: Node, strategy: str) -> tuple[float | str, ...]:
        placement = request.blueprint.spec.placement
        packing = (placement.strategy or strategy) == "binpack"
        own = self.own[request.service, node.name]
        left = self.left(request, node)
        empty = self.steps((max(left[0], 0.0) + max(left[1], 0.0)) * 0.5)
        full = WHOLE - self.steps(min(left))
        if set(request.blueprint.demand.resources) & self.worths.keys():
            empty = self.lost(request, node)
        wishes = (*self.spared(request, node), empty, own) if packing else (own, full)
        levels = self.levels(request, node)
        return (node.name in request.avoid, *levels, -self.pull(request, node), *wishes, node.name)

    def lost(self, request: Request, node: Node) -> int:
        """How much of the named resources that it asks for is lost to others."""
        demand = request.blueprint.demand
        before = [np.array([self.free(node, what)]) for what in ("cpu", "memory")]
        after = [before[0] - demand.cpu, before[1] - demand.memory]
        lost, empty = 0.0, sum(max(share, 0.0) for share in self.left(request, node))
        for name, amount in sorted(demand.resources.items()):
            worth, free, has = self.worths[name], np.array([self.free(node, name)]), node.capacity.resources.get(name)
            lost += float(worth.of(free, *before)[0] - worth.of(free - amount, *after)[0])
            empty += max((int(free[0]) - amount) * (1.0 / has), 0.0) if has else 0.0
        count = len(demand.resources)
        share = lost / count + empty / (2 + count) * 0.01 + 1.0
        return math.floor(min(max(share * (WHOLE / 4), 0.0), WHOLE))

    def levels(self, request: Request, node: Node) -> list[float]:
        levels = []
        like: dict[str, Node] = {}
        for spread in request.blueprint.spec.placement.spread:
            outer = dict(like)
            like[spread.label] = node
            value = node.attributes.get(spread.label)
            missing = 1e15 if value is None else 0
            if spread.targets:
                others = value is not None and value not in spread.targets
                there = self.unnamed(request, outer, spread) if others else self.count(request, like)
                rest = max(0.0, 1.0 - sum(spread.targets.values()))
                share = 1.0 if value is None else spread.targets.get(value, rest)
                levels.append(missing + ((there + 0.5) / share if share > 0 else there + 1e12))
            levels.append(float(self.count(request, like)) + missing)
        return levels

    def unnamed(self, request: Request, outer: dict[str, Node], spread: Spread) -> int:
        """Replicas of the service, inside the outer groups, on nodes whose value has no target of its own."""
        return sum(
            self.own[request.service, node.name]
            for node in self.nodes
            if all(node.attributes.get(label) == other.attributes.get(label) for label, other in outer.items())
            and node.attributes.get(spread.label) not in (None, *spread.targets)
        )

    def pull(self, request: Request, node: Node) -> int:
        total = 0
        for towards, weight in request.blueprint.affinities:
            there = self.own[towards, node.name] if isinstance(towards, str) else towards.allows(node.attributes)
            total += weight if there else 0
        return total

    def left(self, request: Request, node: Node) -> list[float]:
        """The shares of CPU and memory that are left with the replica on it."""
        demand = request.blueprint.demand
        return [
            (self.free(node, what) - amount) * (1.0 / has) if has else 0.0
            for what, amount, has in (
                ("cpu", demand.cpu, node.capacity.cpu),
                ("memory", demand.memory, node.capacity.memory),
            )
        ]

    def steps(self, share: float) -> int:
        return math.floor(max(share, 0.0) * WHOLE)

    def spared(self, request: Request, node: Node) -> tuple[int, int]:
        """The kinds of resources that are free there and not asked for; how much its labels are wanted by others."""
        names = {name for other in self.nodes for name in other.capacity.resources}
        resources = sum(self.free(node, name) > 0 for name in names - request.blueprint.demand.resources.keys())
        eligible = {one.name for one in fit_labels(request, self.nodes)}
        labels = 0.0
        for names in self.wanted:
            share = len(names) / len(self.nodes)
            if share <= 0.5 and node.name in names and not eligible <= names:
                labels += 1 - share
        return min(resources, 15), math.floor(min(2 * labels, 15))
