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

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from mesh.agent.events import (
    Action,
    Event,
    Explain,
    Explained,
    Hindered,
    Isolated,
    Listed,
    Moment,
    Planned,
    Prepare,
    Prepared,
    Probe,
    Progress,
    Remembered,
    Remove,
    Removed,
    Signal,
    Signalled,
    Start,
    Started,
    Tick,
    Unprobe,
    Withdraw,
    Withdrawn,
)
from mesh.model import Assignment, Exit, NodePlan, ReplicaReport, ReplicaState, Want, may_follow, spec_key
from mesh.runtime import Instance, InstanceState
from mesh.runtime.health import Verdict
from mesh.spec.service import Health, ServiceSpec, Stop, trusted_spec

log = logging.getLogger(__name__)

FIRST_RETRY = 0.5
LONGEST_RETRY = 30.0
"""Seconds between attempts of an action that an absent engine or store hinders."""


ISOLATED = "stopped: it must never run twice, and this node is cut off from the store"
ISOLATION_GRACE = 2.0
"""Seconds from SIGTERM to SIGKILL for a singleton on a node that is cut off."""


# ── the machine ──────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Replica:
    """What the agent knows of one replica."""

    assignment: Assignment
    state: ReplicaState = ReplicaState.ASSIGNED
    since: float = 0.0  # Unix seconds
    message: str = ""
    spec: ServiceSpec | None = None  # None: its plan is gone, defaults apply
    listed: bool = True  # in the node's plan
    instance: Instance | None = None  # as last seen
    exit: Exit | None = None
    doomed: str = ""  # why it must end though it is wanted
    isolated: bool = False  # it must end fast: another node may get its slot
    busy: type[Action] | None = None  # the action under way
    prepared: bool = False  # its image is here
    launched: bool = False  # its instance was once seen running
    removed: bool = False  # nothing is left of its instance
    unexplained: bool = False  # it failed, and its output has not been read
    probing: bool = False
    drained: float | None = None  # ticks when it may be signalled; None: not withdrawn yet
    retry: float = 0.0  # ticks before which nothing is tried again
    retries: int = 0
    touched: float = 0.0  # ticks of its last action's end: an older listing says nothing about it

    @property
    def id(self) -> str:
        return self.assignment.id

    @property
    def wanted(self) -> bool:
        return self.listed and self.assignment.want is Want.RUN

    @property
    def needless(self) -> bool:
        """Not even its output is of use."""
        return not self.listed or self.assignment.want is Want.STOP

    def enter(self, state: ReplicaState, now: Moment, message: str = "") -> None:
        if not may_follow(self.state, state):
            raise AssertionError(f"{self.id}: {self.state} cannot become {state}")
        if state != self.state:
            level = logging.WARNING if state is ReplicaState.FAILED else logging.INFO
            log.log(level, "replica %s: %s -> %s%s", self.id, self.state, state, f" ({message})" if message else "")
            self.state, self.since = state, now.wall
        self.message = message

    def report(self) -> ReplicaReport:
        known = self.instance
        return ReplicaReport(
            id=self.id,
            service=self.assignment.service,
            slot=self.assignment.slot,
            release=self.assignment.release,
            state=self.state,
            since=self.since,
            started=known.started if known else 0.0,
            tags=list(self.spec.tags) if self.spec else [],
            address=known.address if known else "",
            ports=dict(known.ports) if known else {},
            exit=self.exit,
            message=self.message,
        )


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
                    _take(replica, event, now)
        if self._seen:
            for replica in list(self.replicas.values()):
                actions.extend(_next(replica, now))
                if not replica.listed and replica.state.ended and replica.removed and not replica.busy:
                    del self.replicas[replica.id]
                    self._forgotten[replica.id] = now.ticks
        return actions

    def wake(self) -> float | None:
        """Ticks at which a `Tick` is due; None: only events bring news."""
        due = [time for replica in self.replicas.values() if (time := _due(replica)) is not None]
        return min(due, default=None)

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
            if replica.busy not in (Start, Signal, Remove) and replica.touched <= asked:
                _observe(replica, found.get(replica.id), now)
        self._forgotten = {id: ticks for id, ticks in self._forgotten.items() if ticks > asked}
        for id in found.keys() - self.replicas.keys() - self._forgotten.keys():
            self.replicas[id] = _orphan(found[id], now, listed=self._plan is None)


def _orphan(instance: Instance, now: Moment, *, listed: bool) -> Replica:
    """An instance nobody told us of: kept while there is no plan, else stopped."""
    identity = Assignment(
        id=instance.id, service=instance.service, slot=instance.slot, release=instance.release
    )  # fmt: skip
    replica = Replica(identity, since=now.wall, listed=listed)
    _observe(replica, instance, now)
    return replica


# ── what an event tells about one replica ────────────────────────────────────────────────────


def _take(replica: Replica, event: Event, now: Moment) -> None:
    match event:
        case Progress(_, text):
            if replica.state in (ReplicaState.ASSIGNED, ReplicaState.PULLING):
                replica.enter(ReplicaState.PULLING, now, text)
        case Prepared():
            _finished(replica, now)
            replica.prepared = True
        case Started(_, instance):
            _finished(replica, now)
            _observe(replica, instance, now)
        case Verdict():
            _judge(replica, event, now)
        case Withdrawn():
            _finished(replica, now)
            replica.drained = now.ticks + _drain(replica)
        case Signalled():
            _finished(replica, now)
            if replica.instance:
                replica.instance = replace(replica.instance, state=InstanceState.EXITED)
            _end(replica, replica.exit, now)
        case Explained(_, output):
            _finished(replica, now)
            if output:
                replica.message = f"{replica.message}: {output}"
        case Removed():
            _finished(replica, now)
            replica.removed, replica.instance = True, None
        case Hindered(_, why, retry):
            _hinder(replica, why, now, retry=retry)


def _finished(replica: Replica, now: Moment) -> None:
    replica.busy, replica.touched = None, now.ticks
    replica.retries, replica.retry = 0, 0.0


def _hinder(replica: Replica, why: str, now: Moment, *, retry: bool) -> None:
    """A start that went wrong fails the replica; stopping and removing are tried again until they succeed."""
    beginning = replica.busy in (Prepare, Start)
    replica.busy, replica.touched = None, now.ticks
    if beginning and not retry:
        replica.enter(ReplicaState.FAILED, now, why)
        return
    replica.message = why
    replica.retry = now.ticks + min(FIRST_RETRY * 2**replica.retries, LONGEST_RETRY)
    replica.retries = min(replica.retries + 1, 16)


def _observe(replica: Replica, instance: Instance | None, now: Moment) -> None:
    """What the runtime says of its instance; None: there is none."""
    if instance is None:
        replica.removed, replica.instance = True, None
        if replica.launched and not replica.state.ended:
            _end(replica, None, now, why="vanished: its instance was removed by somebody else")
        return
    replica.instance, replica.removed = instance, False
    if replica.state.ended:
        return
    match instance.state:
        case InstanceState.RUNNING:
            replica.launched = True
            if not replica.state.alive:
                replica.enter(ReplicaState.RUNNING, now)
        case InstanceState.EXITED:
            _end(replica, Exit(code=instance.exit_code, oom=instance.oom), now)
        case InstanceState.CREATED:
            pass  # `Start` is safe to repeat


def _end(replica: Replica, exit: Exit | None, now: Moment, why: str = "") -> None:
    """Its instance runs no more."""
    if replica.state.ended:
        return
    replica.exit = exit
    if replica.doomed:
        replica.enter(ReplicaState.FAILED, now, replica.doomed)
    elif replica.state is ReplicaState.DRAINING:
        replica.enter(ReplicaState.STOPPED, now)
    elif exit and exit.code == 0 and replica.spec and replica.spec.kind in ("job", "cron"):
        replica.enter(ReplicaState.STOPPED, now, "completed")
    else:
        replica.enter(ReplicaState.FAILED, now, why or _how(exit))
        replica.unexplained = not replica.removed


def _how(exit: Exit | None) -> str:
    if exit is None or exit.code is None:
        return "ended"
    if exit.oom:
        return "killed: out of memory (limits.memory)"
    if exit.code == 255:  # an engine's word for a container that it found dead: its host lost power
        return "exited with code 255 (or its host went down)"
    if exit.code > 128:
        return f"exited with code {exit.code} (killed by signal {exit.code - 128})"
    return f"exited with code {exit.code}"


def _judge(replica: Replica, verdict: Verdict, now: Moment) -> None:
    if verdict.alive is False and replica.state in (ReplicaState.RUNNING, ReplicaState.READY):
        replica.doomed = f"alive probe failed: {verdict.message}"
    elif verdict.ready and replica.state is ReplicaState.RUNNING:
        replica.enter(ReplicaState.READY, now)
    elif verdict.ready is False and replica.state in (ReplicaState.RUNNING, ReplicaState.READY):
        replica.enter(ReplicaState.RUNNING, now, f"not ready: {verdict.message}")


# ── what one replica needs next ──────────────────────────────────────────────────────────────


def _next(replica: Replica, now: Moment) -> Iterator[Action]:
    """Its next actions: at most one that keeps it busy."""
    yield from _next_probing(replica, now)
    if replica.busy or now.ticks < replica.retry:
        return
    replica.retry = 0.0
    if not replica.state.ended and (not replica.wanted or replica.doomed):
        action = _retire(replica, now)
    elif not replica.state.ended:
        action = _begin(replica, now)
    else:
        action = None
    if replica.state.ended:
        action = _bury(replica)
    if action:
        replica.busy = type(action)
        yield action


def _next_probing(replica: Replica, now: Moment) -> Iterator[Action]:
    in_service = replica.state in (ReplicaState.RUNNING, ReplicaState.READY) and replica.wanted and not replica.doomed
    health = replica.spec.health if replica.spec else Health()
    if replica.probing and not in_service:
        replica.probing = False
        yield Unprobe(replica.id)
    if not in_service or replica.instance is None:
        return
    if (health.ready or health.alive) and not replica.probing and replica.spec:
        replica.probing = True
        yield Probe(replica.id, replica.spec, replica.instance, replica.state is ReplicaState.READY)
    if replica.spec and not health.ready and replica.state is ReplicaState.RUNNING:
        replica.enter(ReplicaState.READY, now)


def _begin(replica: Replica, now: Moment) -> Action | None:
    if replica.state.alive or replica.spec is None:
        return None
    if not replica.prepared:
        return Prepare(replica.id, replica.spec)
    replica.enter(ReplicaState.STARTING, now)
    return Start(replica.id, replica.assignment, replica.spec)


def _retire(replica: Replica, now: Moment) -> Action | None:
    if not replica.state.alive:
        replica.enter(ReplicaState.STOPPED, now, "no longer wanted before it ran")
        return None
    if replica.state is not ReplicaState.DRAINING:
        replica.enter(ReplicaState.DRAINING, now, replica.doomed)
    if replica.drained is None:
        return Withdraw(replica.id)
    if now.ticks < replica.drained:
        return None
    stop = replica.spec.stop if replica.spec else Stop()
    grace = min(stop.grace, ISOLATION_GRACE) if replica.isolated else stop.grace
    return Signal(replica.id, stop.signal, grace)


def _bury(replica: Replica) -> Action | None:
    """An ended replica keeps its instance, for its logs, until the plan has no use for it."""
    if replica.unexplained:
        replica.unexplained = False
        return Explain(replica.id)
    if replica.needless and not replica.removed:
        return Remove(replica.id)
    if replica.instance and replica.instance.state is InstanceState.RUNNING:
        return Signal(replica.id, "SIGKILL", 0.0)  # it started after all, too late
    return None


def _drain(replica: Replica) -> float:
    """Seconds a withdrawn replica gets to finish what it has; none where nobody could have sent it anything."""
    if replica.doomed or (replica.spec and not replica.spec.ports):
        return 0.0
    return (replica.spec.stop if replica.spec else Stop()).drain


def _due(replica: Replica) -> float | None:
    if replica.busy:
        return None
    if replica.state is ReplicaState.DRAINING and replica.drained is not None:
        return max(replica.drained, replica.retry)
    return replica.retry or None
