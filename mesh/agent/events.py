"""What the agent's heart (`state.AgentState`) is told, and what it orders: past tense comes in, imperatives go out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from mesh.model import Assignment, NodePlan, ReplicaReport
from mesh.runtime import Instance
from mesh.runtime.health import Verdict
from mesh.spec.service import ServiceSpec


class Moment(NamedTuple):
    """One instant on two clocks: Unix seconds for documents, monotonic seconds for deadlines (they never jump)."""

    wall: float
    ticks: float


# ── events ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Remembered:
    """What this node's agent reported before it was restarted; comes first, or never."""

    replicas: tuple[ReplicaReport, ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """The node's plan as it is now."""

    plan: NodePlan


@dataclass(frozen=True, slots=True)
class Listed:
    """Every instance of this node, by a listing that was asked for at `asked` ticks."""

    instances: tuple[Instance, ...]
    asked: float


@dataclass(frozen=True, slots=True)
class Isolated:
    """The store has not confirmed this node's session for so long that another node may soon get its singletons."""


@dataclass(frozen=True, slots=True)
class Progress:
    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Prepared:
    id: str


@dataclass(frozen=True, slots=True)
class Started:
    id: str
    instance: Instance


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The replica is out of this node's data plane, and its state has been published (or time ran out)."""

    id: str


@dataclass(frozen=True, slots=True)
class Signalled:
    """The instance does not run any more."""

    id: str


@dataclass(frozen=True, slots=True)
class Explained:
    """The last lines of a failed replica's output."""

    id: str
    output: str


@dataclass(frozen=True, slots=True)
class Removed:
    id: str


@dataclass(frozen=True, slots=True)
class Hindered:
    """An action could not be done; `retry` where its time may come (the engine or the store is away)."""

    id: str
    why: str
    retry: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Remembered | Planned | Listed | Isolated | Progress | Prepared | Started | Verdict | Withdrawn
    | Signalled | Explained | Removed | Hindered | Tick
)  # fmt: skip


# ── actions ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Prepare:
    """Fetch the image. Ends with `Prepared` or `Hindered`, with `Progress` on the way."""

    id: str
    spec: ServiceSpec


@dataclass(frozen=True, slots=True)
class Start:
    """Ends with `Started` or `Hindered`."""

    id: str
    assignment: Assignment
    spec: ServiceSpec


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take it out of DNS and proxies. Ends with `Withdrawn`, always."""

    id: str


@dataclass(frozen=True, slots=True)
class Signal:
    """Ends with `Signalled` or `Hindered`."""

    id: str
    signal: str
    grace: float


@dataclass(frozen=True, slots=True)
class Explain:
    """Read the end of its output. Ends with `Explained`, always."""

    id: str


@dataclass(frozen=True, slots=True)
class Remove:
    """Ends with `Removed` or `Hindered`."""

    id: str


@dataclass(frozen=True, slots=True)
class Probe:
    """Begin probing; `Verdict`s follow until `Unprobe`. `ready`: it was ready before the agent restarted."""

    id: str
    spec: ServiceSpec
    instance: Instance
    ready: bool


@dataclass(frozen=True, slots=True)
class Unprobe:
    id: str


Action = Prepare | Start | Withdraw | Signal | Explain | Remove | Probe | Unprobe
