"""What is placed: a made-up mix of services on a made-up cluster, always the same for the same numbers.

A million replicas are about 50,000 services of 20 on average: as in the published streams of requests half of them have
one or two, one in ten has 36 and more, one in a hundred 300 and more. 16 shapes of demand times 10 sets of label
constraints make 160 classes. 30 % of the services have a constraint, 33 % spread over three zones, and every one keeps
its replicas apart: at most 1 per node, or 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from mesh.scheduler.placement.cluster import Cluster, Ints, Mask
from mesh.scheduler.placement.kinds import Needs

ZONES = 3
SHAPES = 16
RULES = 9
"""Different constraints, beside none."""
CHANCES = np.linspace(0.2, 0.5, RULES)
"""That a node meets them. No service asks for more than half of the nodes that will do."""
GI = 2**30
FILL = 0.7
"""Share of the CPU that all replicas together take."""


@dataclass(frozen=True, slots=True)
class Service:
    """`shape` and `rule` (0: none) make its class; `per_node`: replicas of it that one node may have, at most."""

    count: int
    shape: int
    rule: int
    spread: bool
    per_node: int | None


@dataclass(frozen=True, slots=True)
class Mix:
    """Services, the demands of their shapes, and the nodes that each rule allows (rule 0: all)."""

    nodes: int
    cpu: Ints
    memory: Ints
    zones: Ints
    shapes: list[Needs]
    rules: list[Mask]
    services: list[Service]

    @property
    def replicas(self) -> int:
        return sum(service.count for service in self.services)

    def cluster(self) -> Cluster:
        names = [f"n{number:06}" for number in range(self.nodes)]
        cluster = Cluster(names, {"cpu": self.cpu, "memory": self.memory})
        cluster.set_label("zone", [f"z{zone}" for zone in range(ZONES)], self.zones)
        return cluster


def mixed(nodes: int, replicas: int, seed: int = 1) -> Mix:
    """The service mix of the goal."""
    random = np.random.default_rng(seed)
    shapes = _shapes(random)
    sizes = _sizes(random, replicas)
    rules = np.where(random.random(sizes.size) < 0.3, random.integers(1, RULES + 1, sizes.size), 0)
    per_node = random.choice([1, 4], sizes.size)
    most = np.where(rules > 0, int(nodes * CHANCES[0]) * per_node // 2, nodes // 2)
    services = [
        Service(int(size), int(shape), int(rule), bool(spread), int(limit))
        for size, shape, rule, spread, limit in zip(
            np.minimum(sizes, np.maximum(most, 1)),
            random.integers(0, SHAPES, sizes.size),
            rules,
            random.random(sizes.size) < 1 / 3,
            per_node,
            strict=True,
        )
    ]
    return _sized(random, nodes, shapes, services)


def uniform(nodes: int, services: int, replicas: int, seed: int = 1) -> Mix:
    """So many equal services of so many replicas, as in HashiCorp's C1M: constraints, and nothing else."""
    random = np.random.default_rng(seed)
    shapes = _shapes(random)
    asked = [Service(replicas, int(random.integers(SHAPES)), int(random.integers(RULES + 1)) if random.random() < 0.3
                     else 0, False, None) for _ in range(services)]  # fmt: skip
    return _sized(random, nodes, shapes, asked)


def _shapes(random: np.random.Generator) -> tuple[Ints, Ints]:
    """Demands from 50 millicores to a core, with one to eight GiB per core."""
    cpu = random.choice([50, 100, 100, 200, 250, 250, 500, 1000], SHAPES)
    memory = cpu * GI // 1000 * random.choice([1, 2, 4, 8], SHAPES)
    return cpu.astype(np.int64), memory.astype(np.int64)


def _sizes(random: np.random.Generator, replicas: int) -> Ints:
    """Replica counts with a mean of 20, until there are enough."""
    sizes = np.clip(np.exp(random.normal(0.9, 2.1, replicas)), 1, 1500).astype(np.int64)
    return sizes[: int(np.searchsorted(sizes.cumsum(), replicas)) + 1]


def _sized(random: np.random.Generator, nodes: int, shapes: tuple[Ints, Ints], services: list[Service]) -> Mix:
    """Nodes of three sizes, so large that the services fill `FILL` of them."""
    cpu, memory = shapes
    factor = random.choice([0.5, 1.0, 1.5], nodes)
    total_cpu = sum(int(cpu[service.shape]) * service.count for service in services)
    total_memory = sum(int(memory[service.shape]) * service.count for service in services)
    return Mix(
        nodes=nodes,
        cpu=(factor * (total_cpu / FILL / factor.sum())).astype(np.int64),
        memory=(factor * (total_memory / FILL / factor.sum())).astype(np.int64),
        zones=random.integers(0, ZONES, nodes),
        shapes=[(("cpu", int(one)), ("memory", int(other))) for one, other in zip(cpu, memory, strict=True)],
        rules=[np.ones(nodes, bool), *(random.random(nodes) < chance for chance in CHANCES)],
        services=services,
    )


def in_rounds(mix: Mix, size: int) -> Mix:
    """The same services, in each round of so many like beside like."""

    def likeness(service: Service) -> tuple[int, int, bool, int]:
        return service.shape, service.rule, service.spread, service.per_node or 0

    services = [service for part in rounds(len(mix.services), size)
                for service in sorted(mix.services[part.start : part.stop], key=likeness)]  # fmt: skip
    return replace(mix, services=services)


def rounds(count: int, size: int) -> Iterator[range]:
    """`count` things in rounds of `size`."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))
