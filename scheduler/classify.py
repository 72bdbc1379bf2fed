"""Sort before deciding: every replica of a service into a named bucket, and the living ones into their seats.

A replica is what is planned (its assignment), what is observed (its agent's report) and the condition of its node.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mesh.model import Assignment, ReplicaReport, ReplicaState, Slot, Want
from mesh.scheduler.hosts import Condition


@dataclass(frozen=True, slots=True)
class Replica:
    """One attempt to fill a slot; `hash` is its release's, `since` when it became ready, or ceased to be."""

    assignment: Assignment
    node: str
    condition: Condition
    hash: str
    report: ReplicaReport | None = None
    ready: bool = False
    since: float = 0.0
    away: bool = False  # its node was given up before, and has not returned

    @property
    def id(self) -> str:
        return self.assignment.id

    @property
    def slot(self) -> Slot:
        return self.assignment.slot

    @property
    def state(self) -> ReplicaState:
        return self.report.state if self.report else ReplicaState.ASSIGNED

    @property
    def succeeded(self) -> bool:
        """It ended by itself with exit code 0: what a job is to do, and no other kind."""
        exit = self.report.exit if self.report else None
        unasked = self.state is ReplicaState.STOPPED and self.assignment.want is Want.RUN
        return unasked and exit is not None and exit.code == 0

    @property
    def must_move(self) -> bool:
        """Off a drained node, or to a better one."""
        return self.condition.draining or bool(self.assignment.target)

    @property
    def overdue(self) -> bool:
        """It did not leave its drained node by the deadline."""
        return self.condition is Condition.OVERDUE

    def fits(self, hash: str) -> bool:
        """Of that release, and where it may stay: it need not be replaced."""
        return self.hash == hash and not self.must_move

    def healthy(self, min_healthy: float, now: float) -> bool:
        """Ready for at least `min_healthy` seconds."""
        return self.ready and now >= self.since + min_healthy


@dataclass(slots=True)
class Seat:
    """A slot with those who may sit in it."""

    slot: Slot
    live: list[Replica] = field(default_factory=list)  # wanted to run, on a node that answers
    suspect: list[Replica] = field(default_factory=list)  # wanted to run, on a node that is silent
    stopping: list[Replica] = field(default_factory=list)  # told to stop, or overdue, and not ended yet

    @property
    def ready(self) -> bool:
        return any(replica.ready for replica in self.live)

    def has(self, hash: str) -> bool:
        return any(replica.hash == hash for replica in (*self.live, *self.suspect))

    def healthy(self, min_healthy: float, now: float, hash: str | None = None) -> bool:
        """One of its replicas (of that release, if given) has been ready for long enough."""
        return any(replica.healthy(min_healthy, now) for replica in self.live if hash in (None, replica.hash))

    def best(self) -> Replica | None:
        """The one to keep if nothing else decides: ready, then oldest."""
        return min((*self.live, *self.suspect), key=keep_first, default=None)


def keep_first(replica: Replica) -> tuple[bool, float, str]:
    """Sort key: ready before not ready, old before new."""
    return (not replica.ready, replica.assignment.placed, replica.id)


@dataclass(slots=True)
class Buckets:
    """A service's replicas, sorted."""

    seats: dict[Slot, Seat] = field(default_factory=dict)
    failed: list[Replica] = field(default_factory=list)  # ended without being asked
    ended: list[Replica] = field(default_factory=list)  # ended because we asked
    lost: list[Replica] = field(default_factory=list)  # on a node that is given up now
    away: list[Replica] = field(default_factory=list)  # on one that was given up before: kept for its return
    records: list[Replica] = field(default_factory=list)  # ended long ago, kept for their output

    def seat(self, slot: Slot) -> Seat:
        return self.seats.setdefault(slot, Seat(slot))


def classify(replicas: Iterable[Replica]) -> Buckets:
    buckets = Buckets()
    for replica in replicas:
        stop = replica.assignment.want is Want.STOP
        if replica.assignment.want is Want.KEEP:
            buckets.records.append(replica)
        elif replica.away:
            buckets.away.append(replica)
        elif replica.condition is Condition.LOST:
            buckets.lost.append(replica)
        elif replica.state.ended:
            (buckets.ended if stop else buckets.failed).append(replica)
        elif stop or replica.overdue:
            buckets.seat(replica.slot).stopping.append(replica)
        elif replica.condition is Condition.GONE:
            buckets.seat(replica.slot).suspect.append(replica)
        else:
            buckets.seat(replica.slot).live.append(replica)
    return buckets
