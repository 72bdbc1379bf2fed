"""The nodes of one batch as arrays: what is free, who is where, which labels they have.

Nodes stand in the order of their names, so that the first among equals is the one whose name comes first. A dimension
is anything a replica can use up: CPU, memory, a named count, a static host port (of which every node has one).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

NEVER = 2**63 - 1
"""The key of a node that will not do; see `scores.py`."""
MAX_AMOUNT = 2**48
"""No node has as much of anything (256 TiB of memory); sums of such amounts stay exact in 64 bits."""


def amount_of(value: object) -> int:
    """What a node that may report nonsense has of something: at least nothing, and never more than is possible."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return 0
    return int(min(max(value, 0), MAX_AMOUNT))


MAX_PARTS = 12
"""Of what is known of a service's replicas, before it is put together."""


@dataclass(frozen=True, slots=True)
class Label:
    """One label of all nodes: `codes[node]` is the place of its value in `values`, -1 where it has none."""

    values: Sequence[str]
    codes: Ints


@dataclass(frozen=True)
class Groups:
    """The nodes by their values of one or several labels: the number of each node's group."""

    of: Ints
    size: int
    missing: Mask | None = None  # groups of nodes without the last label, if there are any

    @cached_property
    def lanes(self) -> list[Ints]:
        """The nodes of each group."""
        return [(self.of == group).nonzero()[0] for group in range(self.size)]


class Staying:
    """The replicas of a service that stay: the node of each."""

    def __init__(self, nodes: Ints, size: int) -> None:
        """`size`: how many nodes there are."""
        self.nodes = nodes
        self._size = size

    @cached_property
    def counts(self) -> Ints:
        """How many there are on every node."""
        return np.bincount(self.nodes, minlength=self._size)


class Cluster:
    """What is free on each node, and how many replicas of each service stay there, while a batch is placed."""

    def __init__(
        self,
        names: Sequence[str],
        capacity: Mapping[str, Ints],
        attributes: Sequence[Mapping[str, str]] = (),
        barred: Sequence[str] = (),
    ) -> None:
        self.names = names
        self.size = len(names)
        self.position = {name: position for position, name in enumerate(names)}
        self.attributes = attributes or [{}] * self.size
        self.barred = barred or [""] * self.size
        self.capacity = dict(capacity)
        self.free = {dimension: amounts.copy() for dimension, amounts in capacity.items()}
        self.per_cpu, self.per_memory = per_unit(self.free["cpu"]), per_unit(self.free["memory"])
        self.views = {dimension: free.data for dimension, free in self.free.items()}
        """The same as `free` for one node at a time: a memoryview answers in a fraction of an array's time."""
        self.resources: set[str] = set()
        """Named counts: dimensions that only some nodes have, and few ask for."""
        self.version = 0
        """Grows with each change of what is free on a node."""
        self._changes = np.zeros(4 * self.size, np.int64)  # the nodes that changed, the last ones up to `_noted`
        self._changes_view = self._changes.data
        self._noted = 0
        self.groups: dict[tuple[str, ...], Groups] = {}
        """The nodes by their values of labels, as far as anybody has asked."""
        self._labels: dict[str, Label] = {}
        self.lying: Callable[[str], Sequence[int]] = lambda service: ()
        """Where replicas of a service stayed before the batch; asked once."""
        self._replicas: dict[str, list[Ints]] = {}  # service → positions of its staying replicas

    def free_of(self, dimension: str) -> Ints:
        """What is free of a dimension: nothing of a resource that no node has reported."""
        if dimension not in self.free:
            self._open(dimension, np.zeros(self.size, np.int64))
        return self.free[dimension]

    def open_port(self, dimension: str) -> None:
        """Makes a host port a dimension: every node has one of it."""
        if dimension not in self.free:
            self._open(dimension, np.ones(self.size, np.int64))

    def _open(self, dimension: str, amounts: Ints) -> None:
        self.capacity[dimension], self.free[dimension] = amounts, amounts.copy()
        self.views[dimension] = self.free[dimension].data

    # ── changes ──────────────────────────────────────────────────────────────────────────────

    def take(self, needs: Sequence[tuple[str, int]], nodes: Ints, counts: Ints | None = None) -> None:
        """Uses up room for a replica at each mention of a node, or for so many on each; below zero: gives it back."""
        for dimension, amount in needs:
            np.subtract.at(self.free[dimension], nodes, amount if counts is None else counts * amount)
        self.version += nodes.size
        nodes = nodes[-self.size :]
        start = self._noted_from(nodes.size)
        self._changes[start : self._noted] = nodes

    def take_one(self, needs: Sequence[tuple[str, int]], node: int, count: int) -> None:
        """Uses up room for so many replicas on one node."""
        for dimension, amount in needs:
            self.views[dimension][node] -= count * amount
        self.version += 1
        self._changes_view[self._noted_from(1)] = node

    def _noted_from(self, count: int) -> int:
        """Where so many changes are noted: behind the last ones, of which as many are kept as there are nodes."""
        if self._noted + count > self._changes.size:
            self._changes[: self.size] = self.last_changed(self.size)
            self._noted = self.size
        self._noted += count
        return self._noted - count

    def last_changed(self, changes: int) -> Ints:
        """The nodes of the last so many changes, fewer than there are nodes; one that changed twice stands twice."""
        return self._changes[self._noted - changes : self._noted]

    def settle(self, service: str, nodes: Ints) -> None:
        """Replicas of the service stay on these nodes, one for each mention."""
        known = self._staying(service)
        known.append(nodes)
        if len(known) > MAX_PARTS:
            known[:] = [np.concatenate(known)]

    def _staying(self, service: str) -> list[Ints]:
        if service not in self._replicas:
            before = self.lying(service)
            self._replicas[service] = [np.array(before, np.int64)] if before else []
        return self._replicas[service]

    def unsettle(self, service: str, node: int) -> None:
        """One replica of the service leaves the node."""
        placed = np.concatenate(self._staying(service))
        self._replicas[service] = [np.delete(placed, np.flatnonzero(placed == node)[:1])]

    # ── questions ────────────────────────────────────────────────────────────────────────────

    def own(self, service: str) -> Staying | None:
        """The replicas of a service that stay; None if it has none at all."""
        placed = self._staying(service)
        if not placed:
            return None
        return Staying(np.concatenate(placed), self.size)

    def label(self, name: str) -> Label:
        """The values of one label, over all nodes."""
        known = self._labels.get(name)
        if known is None:
            codes: dict[str, int] = {}
            found = [codes.setdefault(value, len(codes)) if (value := attributes.get(name)) is not None else -1
                     for attributes in self.attributes]  # fmt: skip
            known = self._labels[name] = Label(list(codes), np.array(found, np.int64))
        return known

    def set_label(self, name: str, values: Sequence[str], codes: Ints) -> None:
        """A label given as codes: benchmarks have no attributes."""
        self._labels[name] = Label(values, codes)


def per_unit(capacity: Ints) -> Floats:
    """What share of a node one unit is; nothing where it has none."""
    return np.divide(1.0, capacity, out=np.zeros(capacity.size), where=capacity > 0)
