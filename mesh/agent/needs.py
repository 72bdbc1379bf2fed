"""What one replica needs next: of what is known about it, the action that brings it nearer to its plan."""

from __future__ import annotations

from collections.abc import Iterator

from mesh.agent.events import Action, Explain, Moment, Prepare, Probe, Remove, Signal, Start, Unprobe, Withdraw
from mesh.agent.replica import Replica
from mesh.model import ReplicaState
from mesh.runtime import InstanceState
from mesh.spec.service import Health, Stop

ISOLATION_GRACE = 2.0
"""Seconds from SIGTERM to SIGKILL for a singleton on a node that is cut off."""


def next_actions(replica: Replica, now: Moment) -> Iterator[Action]:
    """Its next actions: at most one that keeps it busy."""
    yield from _next_probing(replica, now)
    if replica.busy or now.ticks < replica.retry or replica.in_the_dark:
        return
    replica.retry = 0.0
    leaves = not replica.wanted or replica.doomed or replica.state is ReplicaState.DRAINING  # there is no way back
    if not replica.state.ended and leaves:
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
        if replica.unanswered and not replica.removed:
            return Remove(replica.id)  # what is not there cannot be started late
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


def due(replica: Replica) -> float | None:
    if replica.busy or replica.in_the_dark:
        return None
    if replica.state is ReplicaState.DRAINING and replica.drained is not None:
        return max(replica.drained, replica.retry)
    return replica.retry or None
