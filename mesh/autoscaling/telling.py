"""What people are told of the autoscaler: `GET /v1/autoscale/<service>` of the leader, and its metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import msgspec

from mesh.metrics import Family, Sample
from mesh.model import ScaleChange, ScaleState
from mesh.scheduler.autoscale.model import Decision, MetricDecision


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """How many replicas a service should have now, and why; also why nothing happens."""

    service: str
    source: str = "leader"
    """`leader`: as it is now; `store`: the last change that was written, where the leader cannot be asked."""
    time: float = 0.0
    current: int | None = None
    replicas: int | None = None
    recommendation: int | None = None
    """What the metrics ask for, before any limit."""
    metric: str = ""
    window: str = ""
    metrics: list[MetricDecision] = []
    limit: str = ""
    held: int | None = None
    """The count that an operator holds by hand."""
    why: str = ""
    problems: list[str] = []
    changes: list[ScaleChange] = []
    """The last ones, newest last."""

    @classmethod
    def of(cls, service: str, decision: Decision | None, state: ScaleState, held: int | None) -> Self:
        """What the leader says."""
        if decision is None:
            return cls(service=service, why="nothing has been measured yet", held=held, problems=state.problems,
                       changes=state.changes)  # fmt: skip
        return cls(
            service=service,
            time=decision.time,
            current=decision.current,
            replicas=decision.replicas,
            recommendation=decision.recommendation,
            metric=decision.metric,
            window=decision.window,
            metrics=decision.metrics,
            limit=decision.limit,
            held=held,
            why=decision.why,
            problems=state.problems,
            changes=state.changes,
        )

    @classmethod
    def recorded(cls, service: str, state: ScaleState, held: int | None) -> Self:
        """What the store says, where nobody can be asked."""
        last = state.changes[-1] if state.changes else ScaleChange(time=0.0, current=0, replicas=0)
        return cls(
            service=service,
            source="store",
            time=last.time,
            current=last.current if state.changes else None,
            replicas=state.replicas,
            recommendation=last.recommendation if state.changes else None,
            metric=last.metric,
            window=last.window,
            limit=last.limit,
            held=held,
            why=last.why or "the autoscaler has changed nothing so far",
            problems=state.problems,
            changes=state.changes,
        )


@dataclass(slots=True)
class AutoscaleCounters:
    """What the metrics count, over all terms."""

    ticks: int = 0
    seconds: float = 0.0
    ups: int = 0
    downs: int = 0
    wakes: int = 0
    unanswered: int = 0
    metric_failures: int = 0


def autoscale_families(counters: AutoscaleCounters) -> list[Family]:
    """As Prometheus sees them."""
    decisions = [Sample(float(counters.ups), {"direction": "up"}), Sample(float(counters.downs), {"direction": "down"})]
    return [
        Family("mesh_scheduler_autoscale_decisions", "Counts that the autoscaler changed.", "counter", decisions),
        _counter("wakes", "Services at zero that were woken.", counters.wakes),
        _counter("looks", "Looks at what services are asked for.", counters.ticks),
        _counter("seconds", "Time spent deciding on counts.", counters.seconds),
        _counter("unanswered", "Questions to agents that got no answer.", counters.unanswered),
        _counter("metric_failures", "Looks at a metric that had no value.", counters.metric_failures),
    ]


def _counter(name: str, text: str, value: float) -> Family:
    return Family(f"mesh_scheduler_autoscale_{name}", text, "counter", [Sample(float(value))])
