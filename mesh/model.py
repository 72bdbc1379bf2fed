"""The nouns. Every word here is the word in the docs, the CLI, the logs and the metrics.

The documents that machines write (`planned/`, `observed/`) are msgspec structs: frozen, compact, and
lenient about fields a newer version added. What operators write is validated in `spec.py`.
Times are Unix seconds, durations seconds, CPU millicores, memory bytes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec

FORMAT = 1
"""The version of the documents below; a reader refuses what is newer and keeps the last good one."""

Slot = int | str
"""A replica's place in its service: 1..n, or the node's name for `kind: global`."""


class Document(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Base of everything kept in the store as JSON: trees, so that nothing is gained by collecting their garbage."""


class ReplicaState(StrEnum):
    """States move forward only, but for `ready` falling back to `running` when health fails."""

    ASSIGNED = "assigned"  # in the plan, the agent has not begun
    PULLING = "pulling"  # fetching the image
    STARTING = "starting"  # created, the engine has not said that it runs
    RUNNING = "running"  # alive, not (or no longer) fit for traffic
    READY = "ready"  # in DNS and proxies
    DRAINING = "draining"  # withdrawn, finishing what it has
    STOPPED = "stopped"  # ended because we asked
    FAILED = "failed"  # ended, or never began, against our wish
    LOST = "lost"  # its node is gone

    @property
    def ended(self) -> bool:
        return self in ENDED

    @property
    def alive(self) -> bool:
        """The engine runs it: it answers, or may soon."""
        return self in ALIVE


ENDED = frozenset({ReplicaState.STOPPED, ReplicaState.FAILED, ReplicaState.LOST})
ALIVE = frozenset({ReplicaState.RUNNING, ReplicaState.READY, ReplicaState.DRAINING})
_ORDER = {state: rank for rank, state in enumerate(ReplicaState)}


def may_follow(old: ReplicaState, new: ReplicaState) -> bool:
    """True where the state machine allows `old` → `new` (staying put is allowed)."""
    if old.ended:
        return new == old
    if (old, new) == (ReplicaState.READY, ReplicaState.RUNNING):
        return True
    return _ORDER[new] >= _ORDER[old]


class Want(StrEnum):
    """What the scheduler wants of a replica."""

    RUN = "run"
    STOP = "stop"  # withdraw, drain, then stop
    KEEP = "keep"  # it has ended: keep its output, never start it


class Capacity(Document, frozen=True, kw_only=True):
    """What a node offers, or a replica reserves."""

    cpu: int = 0
    memory: int = 0
    resources: dict[str, int] = {}


class Exit(Document, frozen=True, kw_only=True):
    """How a replica ended."""

    code: int | None = None
    oom: bool = False


class Event(Document, frozen=True, kw_only=True):
    """One sentence of a service's story."""

    time: float
    text: str
    cause: str = ""  # what led to it: `spec@41`, `web-1-6f3a failed`, …


# ── planned/leader ───────────────────────────────────────────────────────────────────────────


class Leader(Document, frozen=True, kw_only=True):
    """The value of the lock's key: which scheduler holds it."""

    name: str = ""
    process: str = ""  # `host:pid`
    admin: str = ""  # base URL of its admin HTTP


# ── planned/nodes/<node> ─────────────────────────────────────────────────────────────────────


class Assignment(Document, frozen=True, kw_only=True):
    """One replica that a node must run (or stop)."""

    id: str
    service: str
    slot: Slot
    release: int
    want: Want = Want.RUN
    run: int = 0  # of its job: the number of a `Run`
    cause: str = ""
    placed: float = 0.0  # when the scheduler decided on it
    replacement: bool = False  # its slot had lost its replica: to a failure, with a node, or at the end of a drain
    target: str = ""  # the node on which its successor is to start, where a rebalance moves it


class NodePlan(Document, frozen=True, kw_only=True):
    """Written by the scheduler, read by that node's agent."""

    format: int = FORMAT
    node: str
    lost: bool = False  # given up: what it ran is replaced, and stops when it returns, but for `replicas` (`on_return`)
    replicas: list[Assignment] = []
    specs: dict[str, dict[str, Any]] = {}
    """`<service>@<release>` → the release's spec, so that replicas of one release share one copy."""


class NodeDoubt(Document, frozen=True, kw_only=True):
    """Why a node is not as it should be, in the scheduler's eyes."""

    state: str  # degraded | suspected | lost
    why: str  # the sentence for a person
    since: float = 0.0


class ClusterPlan(Document, frozen=True, kw_only=True):
    """`planned/cluster`, written by the scheduler: which nodes are doubtful, and why nothing is replaced, if so."""

    format: int = FORMAT
    frozen: str = ""
    nodes: dict[str, NodeDoubt] = {}
    returned: dict[str, int] = {}  # nodes that were given up once → the index of the report with which each came back

    def has_lost(self, node: str) -> bool:
        """What it ran is replaced: nobody is sent there."""
        return node in self.nodes and self.nodes[node].state == "lost"

    def discounts(self, node: str, index: int) -> bool:
        """Nobody is sent where the node's report of that index says: it has been given up since."""
        return self.has_lost(node) or index < self.returned.get(node, 0)


def spec_key(service: str, release: int) -> str:
    return f"{service}@{release}"


# ── planned/services/<service> ───────────────────────────────────────────────────────────────


class Release(Document, frozen=True, kw_only=True):
    """A numbered, immutable, validated spec. A rollback is a new release equal to an old one."""

    number: int
    hash: str
    spec: dict[str, Any]
    created: float = 0.0
    cause: str = ""
    good: bool = False  # once every replica of it was healthy: what a rollback goes back to
    rollback_of: int = 0  # the release that failed or was taken back, if this is a rollback


class RolloutState(StrEnum):
    IDLE = "idle"
    ROLLING = "rolling"
    CANARY = "canary"  # a few replicas run beside all old ones, until they are promoted
    PAUSED = "paused"
    FAILED = "failed"


class Rollout(Document, frozen=True, kw_only=True):
    """How far the newest release has come."""

    state: RolloutState = RolloutState.IDLE
    release: int = 0
    since: float = 0.0
    message: str = ""
    healthy: int = 0  # the most slots that have been healthy on this release
    progress: float = 0.0  # when `healthy` last grew
    promote: bool = False  # an operator wants its canaries promoted as soon as all are healthy
    promoted: bool = False  # its canaries were, or it needs none


class SlotState(Document, frozen=True, kw_only=True):
    """The back-off memory of a slot whose replicas fail (kept so that a new leader knows it too)."""

    failures: int = 0
    last_failure: float = 0.0
    retry_at: float = 0.0
    node: str = ""  # that failed it last
    why: str = ""  # how, in the agent's words
    nodes: list[str] = []  # that failed it, the last few
    release: int = 0  # that failed
    since: float = 0.0  # when the first of these failures was placed


class Pending(Document, frozen=True, kw_only=True):
    """A slot without a replica, and why: one sentence per node or reason."""

    slot: Slot
    reasons: list[str] = []
    cause: str = ""  # why it is empty: `web-1-6f3a failed`, `preempted by db (priority 80)`


class Claim(Document, frozen=True, kw_only=True):
    """Room on a node that is being made for a slot: replicas of lower priority are stopping there."""

    slot: Slot
    release: int
    node: str
    evicts: list[str]  # their ids
    run: int = 0


class RunState(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REPLACED = "replaced"  # by a newer release or run


class Run(Document, frozen=True, kw_only=True):
    """One run of a job: of `kind: job` one for each release, of `kind: cron` one for each time that is due."""

    number: int
    release: int
    completions: int
    state: RunState = RunState.RUNNING
    due: float = 0.0  # the time of the schedule that it answers
    started: float = 0.0
    ended: float = 0.0
    completed: str = ""  # slots that have succeeded: `1-3,5`
    failures: int = 0  # replicas that have failed
    message: str = ""  # why it failed


class PublishedPort(Document, frozen=True, kw_only=True):
    """A service port as the data plane sees it."""

    port: int
    protocol: str = "tcp"  # http | tcp | udp
    proxy_protocol: dict[str, Any] = {}


class ServicePlan(Document, frozen=True, kw_only=True):
    """Written by the scheduler: what became of one service's wish."""

    format: int = FORMAT
    service: str
    spec_index: int = 0  # of the wish that this answers: modify index of its key
    command: int = 0  # modify index of the last `RolloutCommand` that was looked at
    kind: str = "service"
    vip: str = ""
    desired: int = 0
    asleep: bool = False  # the autoscaler let go of its last replica: requests are held until another is ready
    ports: dict[str, PublishedPort] = {}
    traffic: dict[str, Any] = {}
    ttl: int = 5
    discovery: str = "vip"
    all_unready: str = "any"
    releases: list[Release] = []  # oldest first, the last ten
    rollout: Rollout = Rollout()
    slots: dict[str, SlotState] = {}  # only slots that failed lately
    pins: dict[str, str] = {}  # slot → the node that has its volumes
    seats: str = ""  # the slots of the service, `1-3,5`, if they are not 1 to `desired`
    vacant: str = ""  # slots that lost their replica and have no other yet: `1-3,5`
    pending: list[Pending] = []
    claims: list[Claim] = []
    runs: list[Run] = []  # of a job, newest last: those that run, and the last ten
    next_run: float = 0.0  # of a cron service
    errors: list[str] = []  # why the newest desired spec is not in force
    warnings: list[str] = []  # what keeps the autoscaler from its work
    events: list[Event] = []  # bounded, newest last
    deleted: bool = False  # the wish is gone; its replicas are being stopped


# ── planned/scale/<service> ──────────────────────────────────────────────────────────────────


class ScaleChange(Document, frozen=True, kw_only=True):
    """One time that the autoscaler changed a count."""

    time: float
    current: int
    replicas: int
    recommendation: int = 0  # what the metrics asked for, before any limit
    metric: str = ""
    window: str = ""  # that it was measured over
    limit: str = ""  # what kept `replicas` from being the recommendation
    why: str = ""  # the sentence for a person


class ScaleState(Document, frozen=True, kw_only=True):
    """`planned/scale/<service>`, written by the scheduler: what was decided, and what a new leader should know."""

    format: int = FORMAT
    replicas: int | None = None  # None: it has not changed the spec's count
    changes: list[ScaleChange] = []  # the last few, newest last
    problems: list[str] = []  # metrics that fail, replicas that never become ready while requests wait
    season: bytes = b""  # what the service's days and weeks are like
    season_at: float = 0.0


# ── observed/nodes/<node> ────────────────────────────────────────────────────────────────────


class ReplicaReport(Document, frozen=True, kw_only=True):
    """What an agent sees of one replica."""

    id: str
    service: str
    slot: Slot
    release: int
    state: ReplicaState
    since: float = 0.0  # when it entered the state
    started: float = 0.0  # when the engine started it
    tags: list[str] = []
    weight: int = 100
    address: str = ""
    ports: dict[str, int] = {}
    exit: Exit | None = None
    message: str = ""  # the sentence for a person: pull progress, why it failed, why it is not ready


class NodeReport(Document, frozen=True, kw_only=True):
    """Written by the node's agent, held by its session."""

    format: int = FORMAT
    node: str
    address: str
    admin: str = ""  # base URL of the agent's admin HTTP
    probe: str = ""  # address:port where it answers probes over UDP
    version: str = ""  # of mesh
    runtime: str = ""
    attributes: dict[str, str] = {}  # arch, os, kernel, engine
    labels: dict[str, str] = {}
    capacity: Capacity = Capacity()
    reserved: Capacity = Capacity()  # of that, kept for the node itself
    replicas: list[ReplicaReport] = []
    remembered: bool = False  # they are as they were before the key was taken: the engine has not been asked since
    problems: list[str] = []  # ports taken, engine away, …: shown by `mesh nodes`


# ── desired/rollouts/<service>, desired/nodes/<node>, desired/config ─────────────────────────


class RolloutCommand(Document, frozen=True, kw_only=True):
    """What an operator wants of a rollout; the scheduler looks at each write once."""

    action: Literal["pause", "resume", "promote", "abort", "undo"]
    release: Annotated[int, msgspec.Meta(ge=0)] = 0  # it is meant for this one, the newest (0: whichever is)
    to: Annotated[int, msgspec.Meta(ge=0)] = 0  # undo: the release that is to come back (0: the last good one)
    at: float = 0.0  # when it was said: to the store, the same words again are no write


class NodeSettings(Document, frozen=True, kw_only=True):
    """What operators say about a node."""

    availability: str = "active"  # active | pause | drain
    deadline: float = 0.0  # of a drain: when what has not moved by then is stopped; 0: never
    labels: dict[str, str] = {}
    lost: int = 0  # `mesh confirm-loss`: modify index of the last report of the node that will not come back


class Rebalance(Document, frozen=True, kw_only=True):
    """How what runs is moved to better places, if at all: at most a share of all replicas each time."""

    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.05
    interval: Annotated[float, msgspec.Meta(ge=10)] = 600.0
    """Seconds from one look to the next."""


class ClusterConfig(Document, frozen=True, kw_only=True):
    """Cluster-wide settings. Defaults: DESIGN.md 4."""

    domain: str = "cluster"
    vip_range: str = "10.96.0.0/16"
    strategy: str = "spread"  # spread | binpack
    failure_detection: Literal["normal", "fast"] = "normal"
    replacements_per_node: Annotated[int, msgspec.Meta(ge=1)] = 8
    """Replicas in place of failed and lost ones that a node starts at a time."""
    rebalance: Rebalance | None = None  # None: nothing that runs is moved without need
