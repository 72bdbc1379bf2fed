"""What is played in a rehearsal: who is there at the start, how replicas behave, and what happens when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mesh.model import ReplicaState, RolloutCommand, Slot
from mesh.scheduler.service.rollout import Served
from mesh.spec.service import ServiceSpec

MAX_REPLICAS = 1000
"""Desired at once: each step looks at all of them."""


@dataclass(frozen=True, slots=True)
class Happening:
    """What happens `at` (seconds): one of a replica's state (by slot, the newest there, or id), a command, another
    spec, another count, what the canaries are sent from then on."""

    at: float
    slot: Slot | None = None
    replica: str = ""
    state: ReplicaState | None = None
    command: RolloutCommand | None = None
    spec: ServiceSpec | None = None
    replicas: int | None = None
    served: Served | None = None


@dataclass(frozen=True, slots=True)
class Resident:
    """A replica of the old release as it is at the start; `age`: seconds in that state."""

    slot: int
    state: ReplicaState = ReplicaState.READY
    age: float = 3600.0


@dataclass(frozen=True, slots=True)
class Script:
    """A rehearsal: `old` runs (as `residents`) when `spec` is written, at 0.

    Replicas of other specs than `old` become ready `ready_after` seconds after they were placed (None: never, unless a
    happening says so), and fail after `fails_after`; those of `old` are ready after one second.
    """

    spec: ServiceSpec
    old: ServiceSpec | None = None
    residents: Sequence[Resident] = ()
    nodes: int = 3
    ready_after: float | None = 1.0
    fails_after: float | None = None
    stops_after: float = 1.0
    happenings: Sequence[Happening] = ()
    until: float = 3600.0
