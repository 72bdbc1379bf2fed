"""What the autoscaler is told about a service, and what it answers.

`Target`s say which services follow their load, and how; `Reading`s what is measured; `Decision`s what to do. The
autoscaler itself (`autoscaler.py`) is driven so:

    autoscaler = Autoscaler(started=now)             # a new leader
    autoscaler.restore(memories)                     # what the last one has left in the store, if anything
    autoscaler.follow({"web": Target(scale)})        # whenever specs, or counts held by hand, change
    for decision in autoscaler.tick(now, {"web": Reading(...)}):   # once a second, or earlier if requests wait
        carry_out(decision)
    autoscaler.explain("web")                        # for `mesh autoscale`: also why nothing happens
    autoscaler.memories(since)                       # now and then, for the next leader

Readings are levels. What a tick is not told about a service is as it was; a decision is repeated with every tick until
a reading's `current` shows that it has been carried out (so a write that failed is tried again), and costs nothing
against the rate limits until then.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from mesh.model import ReplicaState
from mesh.spec.scale import Metric, Scale

Limit = Literal[
    "",  # none: the recommendation holds
    "min",
    "max",
    "rate",  # a policy of `behavior`, or the mode's own rate
    "stabilisation",  # a window of `behavior`, or `scale_down_delay`
    "tolerance",  # too near to the target to bother
    "schedule",  # `min` or `max` of a schedule
    "override",  # an operator holds the count
    "first window",  # a new leader, or a new service: nothing is scaled down yet
    "missing metrics",  # a metric fails: no scale-down
    "not ready",  # no replica is ready: what waits says nothing about how many are needed
    "interval",  # `hpa` looks every 15 s
    "to zero",  # `to_zero_after` has not passed yet
]
"""What kept the count from being the recommendation."""


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Base of what goes in and out."""


def key_of(metric: Metric) -> str:
    """The name of a metric in readings: its kind, for Prometheus followed by its query."""
    if metric.prometheus is not None:
        return f"prometheus: {metric.prometheus.query}"
    return next(name for name in ("in_flight", "requests_per_second", "cpu", "memory") if getattr(metric, name))


class Target(Part, frozen=True, kw_only=True):
    """A service that follows its load."""

    scale: Scale
    held: int | None = None
    """The count that an operator holds by hand (`mesh scale`, or `replicas: 0` in the spec); None: nobody does."""


class ReplicaReading(Part, frozen=True, kw_only=True):
    """One replica: HPA's pod."""

    id: str
    state: ReplicaState
    """`assigned` to `starting` is HPA's *pending*; `draining` and what has ended is left out."""
    started: float | None = None
    """When its container started; Unix seconds."""
    changed: float | None = None
    """When it last became ready, or stopped being so."""
    measured_from: float | None = None
    """The beginning of the time over which its values were measured: a CPU value from before it was ready is set
    aside."""
    values: dict[str, float] = {}
    """Its part of each metric, by `key_of`. A metric that is missing or late is left out. `cpu` and `memory`: the share
    of what is reserved, 0.7 is 70 %."""


class Sample(Part, frozen=True, kw_only=True):
    """A metric of the whole service."""

    value: float | None = None
    """`in_flight`, `requests_per_second`, Prometheus: the sum, requests that wait included. `cpu`, `memory`: the mean
    over the replicas that tell. None, NaN, an infinity and less than zero are failures."""
    fault: str = ""
    """Why there is no value, or why it is only a part of it (an agent did not answer). Such a metric scales up, not
    down."""


class Reading(Part, frozen=True, kw_only=True):
    """What is known about a service now."""

    current: int
    """The replicas that are wanted now: HPA's `spec.replicas`."""
    replicas: list[ReplicaReading] = []
    metrics: dict[str, Sample] = {}
    """By `key_of`; one that the service scales on and that is not here has failed."""
    waiting: int = 0
    """Requests and connections that the proxies hold because no replica is ready."""
    traffic: float | None = None
    """Requests and connections that came since the last reading, or are under way, waiting ones included; None:
    unknown. What `to_zero_after` goes by."""
    rolling: bool = False
    """A release takes the place of another, or waits to: at zero it would be in force, and nobody had seen it work."""


class MetricDecision(Part, frozen=True, kw_only=True):
    """What one metric asks for."""

    metric: str
    value: float | None
    """Per replica, over `window`; None: it fails."""
    target: float
    """Per replica."""
    recommendation: int | None
    """Replicas; None: it fails."""
    fault: str = ""
    note: str = ""
    """Which replicas were not counted as they are, and how then."""


class Decision(Part, frozen=True, kw_only=True):
    """How many replicas a service should have, and why."""

    service: str
    time: float
    current: int
    """How many are wanted now."""
    replicas: int
    """How many should be: where it differs, it is to be carried out."""
    recommendation: int
    """What the metrics ask for, before any limit."""
    metric: str = ""
    """The metric that asks for most."""
    window: str = ""
    """What it was measured over: `stable 60s`, `panic 6s`, `trend 20s`, `season`, `now`."""
    metrics: list[MetricDecision] = []
    limit: Limit = ""
    """What kept `replicas` from being the `recommendation`."""
    why: str
    """The sentence for people: also why nothing happens."""


class Memory(Part, frozen=True, kw_only=True):
    """What a new leader is to know about a service; kept in the store for it by whoever drives the autoscaler."""

    service: str
    time: float
    """When it was written."""
    season: bytes = b""
    """Its days and weeks: opaque, some hundred bytes to a few thousand."""
    changes: list[tuple[float, int]] = []
    """When its count was changed last, and by how many: what the rates go by."""
