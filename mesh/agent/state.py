"""The agent's heart: events in, actions out. No sockets, no tasks, no clock of its own.

Levels, not edges: each event updates what is known (the plan, the instances, the verdicts of the probes),
then every replica is asked what it needs next. A replica has at most one action under way (`busy`), whose
end comes back as an event. The way of a replica that lives its whole life:

    assigned ─Prepare─► (pulling) ─Start─► starting ─► running ─Probe─► ready ⇄ running
    ready ─Withdraw─► draining ─(drain time)─ Signal ─► stopped ─Remove─► forgotten

A replica that ends by itself is `failed` and is never started again; its instance is kept for its logs
until the plan drops it. A plan that cannot be read is no event: what runs is kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import ValidationError

from mesh.agent.events import (
    Action,
    Event,
    Explain,
    Isolated,
    Listed,
    Moment,
    Planned,
    Remembered,
    Tick,
)
from mesh.agent.needs import due, next_actions
from mesh.agent.replica import Replica, listed, observe, take
from mesh.model import Assignment, NodePlan, ReplicaReport, ReplicaState, spec_key
from mesh.runtime import Instance
from mesh.spec.service import ServiceSpec, trusted_spec

ISOLATED = "stopped: it must never run twice, and this node is cut off from the store"


@dataclass(slots=True)
class AgentState:
    """All replicas of a node. `handle` is the only way in."""

    replicas: dict[str, Replica] = field(default_factory=dict)
    _plan: NodePlan | None = None
    _seen: bool = False  # the first listing has come: until then nothing is begun
    _specs: dict[str, ServiceSpec] = field(default_factory=dict)
    _forgotten: dict[str, float] = field(default_factory=dict)  # id → ticks; a listing asked before may still show it

    def handle(self, event: Event, now: Moment) -> list[Action]:
        """Takes in one event; returns what is to be done because of it."""
        actions: list[Action] = []
        match event:
            case Remembered(reports):
                self._remember(reports)
            case Planned(plan):
                self._take_plan(plan, now)
            case Listed(instances, asked):
                self._take_listing(instances, asked, now)
            case Isolated():
                self._end_singletons()
            case Tick():
                pass
            case _:
                if replica := self.replicas.get(event.id):
                    take(replica, event, now)
        if self._seen:
            for replica in list(self.replicas.values()):
                actions.extend(next_actions(replica, now))
                if not replica.listed and replica.state.ended and replica.removed and not replica.busy:
                    del self.replicas[replica.id]
                    self._forgotten[replica.id] = now.ticks
        return actions

    def wake(self) -> float | None:
        """Ticks at which a `Tick` is due; None: only events bring news."""
        times = [time for replica in self.replicas.values() if (time := due(replica)) is not None]
        return min(times, default=None)

    def reports(self) -> list[ReplicaReport]:
        return [replica.report() for replica in self.replicas.values()]

    @property
    def explaining(self) -> bool:
        """A failed replica's output is being read: worth a moment before the failure is published."""
        return any(replica.busy is Explain for replica in self.replicas.values())

    def _remember(self, reports: Iterable[ReplicaReport]) -> None:
        for told in reports:
            self.replicas[told.id] = Replica(
                Assignment(id=told.id, service=told.service, slot=told.slot, release=told.release),
                state=told.state,
                since=told.since,
                message=told.message,
                exit=told.exit,
                launched=told.state.alive,
                unanswered=told.state is ReplicaState.STARTING,
            )

    def _take_plan(self, plan: NodePlan, now: Moment) -> None:
        self._plan = plan
        self._specs = {key: spec for key, spec in self._specs.items() if key in plan.specs}
        for replica in self.replicas.values():
            replica.listed = False
        for assignment in plan.replicas:
            replica = self.replicas.get(assignment.id) or Replica(assignment, since=now.wall)
            self.replicas[assignment.id] = replica
            replica.assignment, replica.listed = assignment, True
            if replica.spec is None:
                self._read_spec(replica, plan, now)

    def _end_singletons(self) -> None:
        """What must never run twice ends before another node may begin it."""
        for replica in self.replicas.values():
            if replica.spec and replica.spec.singleton and not replica.state.ended and not replica.doomed:
                replica.doomed, replica.isolated = ISOLATED, True

    def _read_spec(self, replica: Replica, plan: NodePlan, now: Moment) -> None:
        key = spec_key(replica.assignment.service, replica.assignment.release)
        try:
            if key not in self._specs:
                self._specs[key] = trusted_spec(plan.specs[key])
            replica.spec = self._specs[key]
        except KeyError:
            fault = f"the node's plan has no spec {key}"
        except ValidationError as error:
            fault = f"spec {key} cannot be read by this version of mesh: {error.errors()[0]['msg']}"
        else:
            return
        if replica.state is ReplicaState.ASSIGNED:
            replica.enter(ReplicaState.FAILED, now, fault)
            replica.removed = True
        elif not replica.state.ended:
            replica.message = fault

    def _take_listing(self, instances: Iterable[Instance], asked: float, now: Moment) -> None:
        self._seen = True
        found = {instance.id: instance for instance in instances}
        for replica in self.replicas.values():
            listed(replica, found.get(replica.id), asked, now)
        self._forgotten = {id: ticks for id, ticks in self._forgotten.items() if ticks > asked}
        for id in found.keys() - self.replicas.keys() - self._forgotten.keys():
            self.replicas[id] = _orphan(found[id], now, listed=self._plan is None)


def _orphan(instance: Instance, now: Moment, *, listed: bool) -> Replica:
    """An instance nobody told us of: kept while there is no plan, else stopped."""
    identity = Assignment(
        id=instance.id, service=instance.service, slot=instance.slot, release=instance.release
    )  # fmt: skip
    replica = Replica(identity, since=now.wall, listed=listed)
    observe(replica, instance, now)
    return replica
