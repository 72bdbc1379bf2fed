"""What each node is worth to a replica: kept from batch to batch, renewed where something has changed.

A *shape* is a demand under a strategy; services of one shape look at what is free with the same eyes, so they share one
array of keys, brought up to date from what the cluster says has changed. The nodes that a set of rules allows are its
*ground*, and a *kind* is a shape on a ground.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np

from mesh.scheduler.placement import scores
from mesh.scheduler.placement.cluster import Cluster, Floats, Ints, Mask, per_unit
from mesh.scheduler.placement.scores import NEVER
from mesh.scheduler.placement.worth import Worth

# as arrays without dimensions numbers cost a calculation half as much
_ZERO_0D, _NEVER_0D = np.array(0), np.array(NEVER)

FEW = 8
"""Nodes that are looked at one by one: for more of them arrays are faster."""

Needs = tuple[tuple[str, int], ...]
"""What one replica takes: dimension and amount, none of them zero."""


class Shape:
    """A demand, under a strategy. `worths`: of named resources, for binpack to destroy the least of."""

    def __init__(
        self, cluster: Cluster, needs: Needs, *, packing: bool, worths: Mapping[str, Worth] | None = None
    ) -> None:
        self.needs = needs
        self.packing = packing
        self._cluster = cluster
        self._cpu, self._memory = (
            next((amount for name, amount in needs if name == dimension), 0) for dimension in ("cpu", "memory")
        )
        self._free_cpu, self._free_memory = cluster.free["cpu"], cluster.free["memory"]
        self._cpu_view, self._memory_view = cluster.views["cpu"], cluster.views["memory"]
        self._per_cpu_view, self._per_memory_view = cluster.per_cpu.data, cluster.per_memory.data
        self._cpu_0d, self._memory_0d = np.array(self._cpu), np.array(self._memory)
        self._others = [(cluster.free_of(name), amount) for name, amount in needs if name not in ("cpu", "memory")]
        asked = {name for name, _ in needs}
        self._unasked = [cluster.free_of(name) for name in sorted(cluster.resources - asked)] if packing else []
        self._worths = [
            (cluster.free_of(name), per_unit(cluster.capacity[name]), amount, worths[name])
            for name, amount in needs if worths and name in worths
        ]  # fmt: skip
        share = self._cpu * cluster.per_cpu + self._memory * cluster.per_memory
        self.fills = packing and not self._worths and scores.tells_apart(share[share > 0])
        """A node becomes better for it by each replica: what is best stays best until it is full (binpack)."""
        self._keys = np.zeros(cluster.size, np.int64)
        self._view = self._keys.data
        self._version = -cluster.size  # all is new

    def keys(self) -> Ints:
        """What every node is worth to a first replica of a service.

        Only the keys of nodes that are changed next may be written to: they are looked at anew the next time.
        """
        cluster = self._cluster
        changes = cluster.version - self._version
        if changes >= cluster.size:
            self._keys[:] = self.keys_of(np.arange(cluster.size))
        elif changes > FEW:
            stale = cluster.last_changed(changes)
            self._keys[stale] = self.keys_of(stale)
        elif changes:
            for node in cluster.last_changed(changes).tolist():
                self._view[node] = self.key_of(node)
        self._version = cluster.version
        return self._keys

    def keys_of(self, nodes: Ints, earlier: Ints | None = None) -> Ints:
        """The same for some nodes, with so many replicas of this shape put there before; `NEVER` where none fits."""
        cluster = self._cluster
        cpu, memory = self._free_cpu[nodes], self._free_memory[nodes]
        cpu -= self._cpu_0d if earlier is None else (earlier + 1) * self._cpu
        memory -= self._memory_0d if earlier is None else (earlier + 1) * self._memory
        cpu_share, memory_share = cpu.astype(float), memory.astype(float)
        cpu_share *= cluster.per_cpu[nodes]
        memory_share *= cluster.per_memory[nodes]
        if not self._cpu:  # what is not asked for may be overcommitted
            cpu_share = np.maximum(cpu_share, 0.0)
        if not self._memory:
            memory_share = np.maximum(memory_share, 0.0)
        if self._worths:
            keys = self._worth_keys(nodes, earlier, cpu, memory, (cpu_share, memory_share))
        else:
            keys = (scores.pack_keys if self.packing else scores.spread_keys)(cpu_share, memory_share)
        if self._cpu and self._memory:
            cpu |= memory  # the sign of either
            keys[cpu < _ZERO_0D] = _NEVER_0D
        elif self._cpu or self._memory:
            keys[(cpu if self._cpu else memory) < _ZERO_0D] = _NEVER_0D
        if self._unasked:
            keys |= scores.spared_resources(np.sum([free[nodes] > 0 for free in self._unasked], axis=0))
        for free, amount in self._others:
            keys[free[nodes] < amount * (1 if earlier is None else earlier + 1)] = NEVER
        return keys

    @property
    def has_worth(self) -> bool:
        """Its keys tell what it destroys of named resources."""
        return bool(self._worths)

    def _worth_keys(
        self, nodes: Ints, earlier: Ints | None, cpu: Ints, memory: Ints, shares: tuple[Floats, Floats]
    ) -> Ints:
        """How much of what is free on these nodes loses its worth by one more replica; given is what it would leave."""
        lost = np.zeros(nodes.size)
        empty = np.maximum(shares[0], 0.0) + np.maximum(shares[1], 0.0)
        for free, share_of, amount, worth in self._worths:
            left = free.take(nodes) - amount * (1 if earlier is None else earlier + 1)
            lost += worth.of(left + amount, cpu + self._cpu, memory + self._memory) - worth.of(left, cpu, memory)
            empty = empty + np.maximum(left * share_of.take(nodes), 0.0)
        return scores.worth_keys(lost / len(self._worths), empty / (len(shares) + len(self._worths)))

    def key_of(self, node: int) -> int:
        """The same for one node, without what arrays cost."""
        if self._unasked or self._others:
            return int(self.keys_of(np.array([node]))[0])
        cpu, memory = self._cpu_view[node] - self._cpu, self._memory_view[node] - self._memory
        if (cpu < 0 and self._cpu) or (memory < 0 and self._memory):
            return NEVER
        cpu_share, memory_share = (
            max(cpu, 0) * self._per_cpu_view[node],
            max(memory, 0) * self._per_memory_view[node],
        )
        return (scores.pack_key if self.packing else scores.spread_key)(cpu_share, memory_share)

    def room(self, nodes: Ints) -> Ints:
        """How many replicas fit on each of these nodes, by what they use up."""
        rooms = [self._cluster.free[dimension][nodes] // amount for dimension, amount in self.needs]
        return reduce(np.minimum, rooms) if rooms else np.full(nodes.size, NEVER)

    def room_of(self, node: int) -> int:
        """The same for one node."""
        views = self._cluster.views
        return min((views[dimension][node] // amount for dimension, amount in self.needs), default=NEVER)


class Ground:
    """The nodes that a set of rules allows, and for binpack how much each of them is wanted by others."""

    def __init__(self, allowed: Mask, wanted: Sequence[Mask] | None = None) -> None:
        """`wanted`: with binpack, the nodes that will do for each set of constraints in the batch."""
        self.allowed = allowed
        keys = np.where(allowed, 0, NEVER)
        if wanted:
            keys |= _spared_labels(allowed, wanted)
        self.keys = keys if keys.any() else None
        """What to add (by or) to the keys of a shape; None: nothing."""
        self.view = keys.data


def _spared_labels(allowed: Mask, wanted: Sequence[Mask]) -> Ints:
    """How much each node is needed for its labels: by others that few nodes will do for, and that want more of it."""
    spared = np.zeros(allowed.size)
    for others in wanted:
        share = others.sum() / max(others.size, 1)
        if share <= scores.SCARCE and not np.all(others | ~allowed):
            spared += others * (1 - share)
    return scores.spared_labels(spared)


class Kind:
    """A shape on its ground."""

    def __init__(self, shape: Shape, ground: Ground) -> None:
        self.shape = shape
        self.ground = ground
        self.needs = shape.needs
        self.packing = shape.packing
        self.fills = shape.fills
        self.cut = np.array(-1)
        """How bad the worst of the nodes was that were looked at the last time."""

    def keys(self) -> Ints:
        """What every node is worth to a first replica of a service without affinities; see `Shape.keys`."""
        keys, ground = self.shape.keys(), self.ground.keys
        return keys if ground is None else keys | ground

    def own_keys(self) -> Ints:
        """The same, in an array of one's own."""
        keys, ground = self.shape.keys(), self.ground.keys
        return keys.copy() if ground is None else keys | ground

    def keys_of(self, nodes: Ints, earlier: Ints | None = None) -> Ints:
        """The same for some nodes, with so many replicas of this kind put there before; `NEVER` where none fits."""
        keys, ground = self.shape.keys_of(nodes, earlier), self.ground.keys
        return keys if ground is None else keys | ground.take(nodes)

    def key_of(self, node: int) -> int:
        """The same for one node, without what arrays cost."""
        return self.shape.key_of(node) | self.ground.view[node]
