"""A cluster as a forecast looks at it: described in a file, or the running one's (see `live_cluster.py`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mesh.model import Capacity, ReplicaState, Slot
from mesh.scheduler.blueprint import NO_DEMAND, Blueprint, Demand

HOLDS_SLOT = frozenset({ReplicaState.ASSIGNED, ReplicaState.PULLING, ReplicaState.STARTING, ReplicaState.RUNNING,
                        ReplicaState.READY})  # fmt: skip
"""States in which a replica has its slot and its room; `draining` has room only, what has ended has nothing."""


@dataclass(frozen=True, slots=True)
class Site:
    """A node. `capacity` is what it has for replicas; `barred` says why it gets nothing new, if so."""

    name: str
    capacity: Capacity
    attributes: Mapping[str, str] = field(default_factory=dict)
    barred: str = ""
    draining: bool = False
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Service:
    """A service as it should be.

    `blueprint` is the release's that should run; None if there is none that could. `why`: its newest spec is unusable,
    and waits. `rolls`: replicas of other releases are replaced (not while a rollout is paused). `slots`: those that it
    has already, also where nothing fills them now; they are filled first. `done`: slots of a job that have succeeded.
    """

    name: str
    blueprint: Blueprint | None
    desired: int
    release: int = 1
    why: str = ""
    rolls: bool = True
    slots: Collection[int] = ()
    done: Collection[int] = ()

    @property
    def kind(self) -> str:
        return self.blueprint.spec.kind if self.blueprint else "service"

    @property
    def priority(self) -> int:
        return self.blueprint.spec.placement.priority if self.blueprint else 50


@dataclass(frozen=True, slots=True)
class Replica:
    """One attempt to fill a slot, whatever became of it. `current`: of the release that should run; `since`: its age,
    as a moment."""

    id: str
    service: str
    slot: Slot
    node: str
    state: ReplicaState = ReplicaState.READY
    current: bool = True
    since: float = 0.0
    demand: Demand = NO_DEMAND

    @property
    def ready(self) -> bool:
        return self.state is ReplicaState.READY

    @property
    def failed(self) -> bool:
        return self.state is ReplicaState.FAILED

    @property
    def holds_slot(self) -> bool:
        return self.state in HOLDS_SLOT

    @property
    def holds_room(self) -> bool:
        return self.holds_slot or self.state is ReplicaState.DRAINING


@dataclass(frozen=True, slots=True)
class Cluster:
    """Nodes, services and replicas, by name."""

    sites: Mapping[str, Site]
    services: Mapping[str, Service]
    replicas: Sequence[Replica] = ()
    strategy: str = "spread"

    def without(self, nodes: Collection[str]) -> Cluster:
        """The cluster if these nodes were lost."""
        sites = {name: replace(site, lost=True) if name in nodes else site for name, site in self.sites.items()}
        return replace(self, sites=sites)

    def lives(self, node: str) -> bool:
        return node in self.sites and not self.sites[node].lost


class Room:
    """What is left on each living node, below zero where too much lies on it."""

    def __init__(self, cluster: Cluster, replicas: Iterable[Replica]) -> None:
        self._capacity = {name: site.capacity for name, site in cluster.sites.items() if not site.lost}
        self.cpu = {name: capacity.cpu for name, capacity in self._capacity.items()}
        self.memory = {name: capacity.memory for name, capacity in self._capacity.items()}
        self.resources = {name: dict(capacity.resources) for name, capacity in self._capacity.items()}
        for replica in replicas:
            if replica.holds_room and replica.node in self._capacity:
                self._take(replica.node, replica.demand, 1)

    def _take(self, node: str, demand: Demand, sign: int) -> None:
        self.cpu[node] -= sign * demand.cpu
        self.memory[node] -= sign * demand.memory
        resources = self.resources[node]
        for name, count in demand.resources.items():
            resources[name] = resources.get(name, 0) - sign * count

    def give_back(self, replica: Replica) -> None:
        self._take(replica.node, replica.demand, -1)

    def load(self, node: str) -> float:
        """The fullest of its dimensions, 0..1."""
        capacity = self._capacity[node]
        pairs = [(self.cpu[node], capacity.cpu), (self.memory[node], capacity.memory)]
        pairs += [(self.resources[node][name], count) for name, count in capacity.resources.items()]
        return max((1 - free / whole for free, whole in pairs if whole), default=0.0)
