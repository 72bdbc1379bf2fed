"""Kinds of replicas, and what each node is worth to one: kept from batch to batch, renewed where something changed.

Services of one kind (the same demand, rules and strategy) look at the nodes with the same eyes, so they share one
array of keys. It is brought up to date from the cluster's log of touched nodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mesh.scheduler.placement import scores
from mesh.scheduler.placement.cluster import Cluster, Ints, Mask
from mesh.scheduler.placement.scores import NEVER

Needs = tuple[tuple[str, int], ...]
"""What one replica takes: dimension and amount, none of them zero."""


class Kind:
    """A demand, the nodes that its rules allow, and a strategy."""

    def __init__(
        self, cluster: Cluster, needs: Needs, allowed: Mask, *, packing: bool, wanted: Sequence[Mask] = ()
    ) -> None:
        self.needs = needs
        self.packing = packing
        self.allowed = allowed
        self._cluster = cluster
        self._cpu = next((amount for dimension, amount in needs if dimension == "cpu"), 0)
        self._memory = next((amount for dimension, amount in needs if dimension == "memory"), 0)
        self._others = [(cluster.free_of(name), amount) for name, amount in needs if name not in ("cpu", "memory")]
        asked = {name for name, _ in needs}
        self._unasked = [cluster.free_of(name) for name in sorted(cluster.resources - asked)] if packing else []
        self._spared = _spared_labels(allowed, wanted) if packing else None
        self._refused = np.where(allowed, 0, NEVER)
        self._keys = np.zeros(cluster.size, np.int64)
        self._version = -1

    def keys(self) -> Ints:
        """What every node is worth to a first replica of a service without affinities. Not to be changed."""
        version = self._cluster.version
        if self._version != version:
            stale = slice(None) if self._version < 0 else self._cluster.touched_since(self._version)
            if not isinstance(stale, slice) and 2 * stale.size > self._cluster.size:
                stale = slice(None)
            self._keys[stale] = self.keys_of(stale)
            self._version = version
        return self._keys

    def keys_of(self, nodes: Ints | slice, earlier: Ints | int = 0) -> Ints:
        """The same for some nodes, with so many replicas of this kind put there before; `NEVER` where none fits."""
        cluster = self._cluster
        count = earlier + 1
        cpu = cluster.free["cpu"][nodes] - count * self._cpu
        memory = cluster.free["memory"][nodes] - count * self._memory
        cpu_share, memory_share = cluster.left_share("cpu", cpu, nodes), cluster.left_share("memory", memory, nodes)
        if self.packing:
            key = scores.pack_key(cpu_share, memory_share, self._spared_of(nodes))
        else:
            key = scores.spread_key(cpu_share, memory_share)
        key |= self._refused[nodes]
        if self._cpu:
            key |= (cpu >> 63) & NEVER  # the sign of what is left: all ones where it is too little
        if self._memory:
            key |= (memory >> 63) & NEVER
        for free, amount in self._others:
            key |= ((free[nodes] - count * amount) >> 63) & NEVER
        return key

    def room(self, nodes: Ints) -> Ints:
        """How many replicas fit on each of these nodes, by what they use up."""
        room = np.full(nodes.size, NEVER)
        for dimension, amount in self.needs:
            np.minimum(room, self._cluster.free[dimension][nodes] // amount, out=room)
        return room

    def _spared_of(self, nodes: Ints | slice) -> Ints:
        """How much of the scarce lies on these nodes and is not asked for."""
        assert self._spared is not None
        spared = self._spared[nodes]
        for free in self._unasked:
            spared = spared + (free[nodes] > 0) * scores.RESOURCE_SPARED
        bounded: Ints = np.minimum(spared, scores.MAX_SPARED)
        return bounded


def _spared_labels(allowed: Mask, wanted: Sequence[Mask]) -> Ints:
    """How much each node is needed for its labels: by others that few nodes will do for, and this kind is not one of.

    `wanted`: the nodes that will do, for each set of constraints in the batch.
    """
    spared = np.zeros(allowed.size, np.int64)
    for others in wanted:
        share = others.sum() / max(others.size, 1)
        if share <= scores.SCARCE and not np.all(others | ~allowed):
            spared += others * int(scores.LABEL_SPARED * (1 - share))
    return spared
