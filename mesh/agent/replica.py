"""What the agent knows of one replica, and what each event tells about it."""

from __future__ import annotations

import logging
import signal
from dataclasses import dataclass, replace

from mesh.agent.events import (
    Action,
    Event,
    Explained,
    Hindered,
    Moment,
    Prepare,
    Prepared,
    Progress,
    Remove,
    Removed,
    Signal,
    Signalled,
    Start,
    Started,
    Withdrawn,
)
from mesh.model import Assignment, Exit, ReplicaReport, ReplicaState, Want, may_follow
from mesh.runtime import Instance, InstanceState
from mesh.runtime.health import Verdict
from mesh.spec.service import ServiceSpec, Stop

log = logging.getLogger(__name__)

FIRST_RETRY = 0.5
LONGEST_RETRY = 30.0
"""Seconds between attempts of an action that an absent engine or store hinders."""


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
    unanswered: bool = False  # a start was asked for and got no answer: the engine may still carry it out
    launched: bool = False  # its instance was once seen running
    removed: bool = False  # nothing is left of its instance
    unexplained: bool = False  # it failed, and its output has not been read
    probing: bool = False
    drained: float | None = None  # ticks when it may be signalled; None: not withdrawn yet
    retry: float = 0.0  # ticks before which nothing is tried again
    retries: int = 0
    touched: float = 0.0  # ticks of its last action's end: an older listing says nothing about it
    listed_at: float = 0.0  # ticks at which the listing was asked for that told of it last

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

    @property
    def in_the_dark(self) -> bool:
        """Nobody knows yet what became of its start: the engine is to list its instances first."""
        return self.unanswered and self.listed_at < self.touched

    @property
    def drain(self) -> float:
        """Seconds it gets, withdrawn, to finish what it has; none where nobody could have sent it anything."""
        if self.doomed or (self.spec and not self.spec.ports):
            return 0.0
        return (self.spec.stop if self.spec else Stop()).drain

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


# ── what an event tells about it ─────────────────────────────────────────────────────────────


def take(replica: Replica, event: Event, now: Moment) -> None:
    match event:
        case Progress(_, text):
            if replica.state in (ReplicaState.ASSIGNED, ReplicaState.PULLING):
                replica.enter(ReplicaState.PULLING, now, text)
        case Prepared():
            _finished(replica, now)
            replica.prepared = True
        case Started(_, instance):
            _finished(replica, now)
            observe(replica, instance, now)
        case Verdict():
            _judge(replica, event, now)
        case Withdrawn():
            _finished(replica, now)
            replica.drained = now.ticks + replica.drain
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


def listed(replica: Replica, instance: Instance | None, asked: float, now: Moment) -> None:
    """What a listing that was asked for at `asked` ticks says of it; None: it is not in it."""
    if replica.busy not in (Start, Signal, Remove) and replica.touched <= asked:
        replica.listed_at = asked
        observe(replica, instance, now)


def _finished(replica: Replica, now: Moment) -> None:
    replica.busy, replica.touched = None, now.ticks
    replica.retries, replica.retry = 0, 0.0


def _hinder(replica: Replica, why: str, now: Moment, *, retry: bool) -> None:
    """A start that went wrong fails the replica; stopping and removing are tried again until they succeed."""
    beginning = replica.busy in (Prepare, Start)
    replica.unanswered |= replica.busy is Start and retry
    replica.busy, replica.touched = None, now.ticks
    if beginning and not retry:
        replica.enter(ReplicaState.FAILED, now, why)
        return
    replica.message = why
    replica.retry = now.ticks + min(FIRST_RETRY * 2**replica.retries, LONGEST_RETRY)
    replica.retries = min(replica.retries + 1, 16)


def observe(replica: Replica, instance: Instance | None, now: Moment) -> None:
    """What the runtime says of its instance; None: there is none."""
    if instance is None:
        replica.removed, replica.instance = True, None
        if replica.launched and not replica.state.ended:
            _end(replica, None, now, why="vanished: its instance was removed by somebody else")
        return
    replica.instance, replica.removed = instance, False
    replica.unanswered &= instance.state is InstanceState.CREATED
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
    if exit.code == 128 + signal.SIGKILL:  # the engine may miss that the kernel did it for the memory
        return f"exited with code {exit.code} (killed by signal 9: out of memory, or by somebody)"
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
