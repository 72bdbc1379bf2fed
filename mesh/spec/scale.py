"""The `scale`, `schedule` and `job` of a spec: how many replicas, and when."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mesh.spec.fields import (
    Completions,
    Count,
    Cron,
    Duration,
    FieldFault,
    Number,
    Part,
    Positive,
    Replicas,
    Share,
    Text,
    Zone,
    number,
    whole,
)
from mesh.units import shown

LEAST_TARGET = 1e-6


def _target_fault(target: float) -> str | None:
    if not target:
        return "must be above zero"
    return None if target >= LEAST_TARGET else f"must be at least {LEAST_TARGET:.6f}, got {shown(target)}"


class PrometheusMetric(Part):
    """A query whose result should be `target` per replica."""

    url: Text
    """Base URL of the Prometheus server."""
    query: Text
    """PromQL that yields one number."""
    target: Number
    """What it should be per replica."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if fault := _target_fault(self.target):
            raise FieldFault("target", fault)
        if not re.match(r"https?://[^/\s]+", self.url):
            raise FieldFault("url", f"must begin with http:// or https:// and a host, got {shown(self.url)}")
        if not self.query.strip():
            raise FieldFault("query", "must be a query")
        return self


class Metric(Part):
    """What is kept at a target per replica: exactly one of these."""

    in_flight: Number | None = None
    """Requests under way per replica."""
    requests_per_second: Number | None = None
    """Per replica."""
    cpu: Share | None = None
    """Share of the reserved CPU in use."""
    memory: Share | None = None
    """Share of the reserved memory in use."""
    prometheus: PrometheusMetric | None = None
    """A number from elsewhere."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("needs exactly one of in_flight, requests_per_second, cpu, memory or prometheus")
        target = getattr(self, given[0])
        if isinstance(target, float) and (fault := _target_fault(target)):
            raise FieldFault(given[0], fault)
        return self


class ScalingPolicy(Part):
    """How much the count may change within a time."""

    type: Literal["Pods", "Percent"]
    """Replicas, or percent of what there was when the time began."""
    value: Annotated[int, *whole(1, 100_000)]
    """So many, or so many percent."""
    periodSeconds: Annotated[int, *whole(1, 1800)]  # noqa: N815  (HPA's spelling)
    """The time, in seconds."""


class ScalingRules(Part):
    """Limits in one direction."""

    stabilizationWindowSeconds: Annotated[int, *whole(0, 3600)] | None = None  # noqa: N815  (HPA's spelling)
    """Up: all recommendations of so long must agree; down: the highest of them holds. Without it as the mode has it."""
    selectPolicy: Literal["Max", "Min", "Disabled"] = "Max"  # noqa: N815  (HPA's spelling)
    """Which policy counts: the one that allows most, or least; or no change in this direction."""
    policies: Annotated[list[ScalingPolicy], Field(max_length=16)] | None = None
    """Without them as the mode has it."""
    tolerance: Annotated[float, *number(0, 1)] | None = None
    """How far from its target, as a part of it, a metric may be before anything changes. Without it 0.1 in mode `hpa`,
    else 0."""

    @model_validator(mode="after")
    def _some_policy(self) -> Self:
        if self.policies == []:
            raise FieldFault("policies", "must have one at least; selectPolicy: Disabled forbids the direction")
        return self


class Behavior(Part):
    """Limits on how fast the count changes, spelled as in Kubernetes' HorizontalPodAutoscaler (v2)."""

    scaleUp: ScalingRules | None = None  # noqa: N815  (HPA's spelling)
    """Limits on growing."""
    scaleDown: ScalingRules | None = None  # noqa: N815  (HPA's spelling)
    """Limits on shrinking."""


class ScaleSchedule(Part):
    """Other bounds, from a moment on."""

    cron: Cron
    """When it begins to hold."""
    min: Replicas
    """`min` from then on."""
    max: Replicas
    """`max` from then on; 0: none at all, and who asks is told so (503)."""
    zone: Zone = "UTC"
    """Time zone of the fields."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise FieldFault("min", f"must not be above max, got {self.min} and {self.max}")
        return self


class Scale(Part):
    """How many replicas, by what is measured."""

    min: Replicas = 1
    """Fewest replicas."""
    max: Replicas = 10
    """Most replicas."""
    metrics: Annotated[list[Metric], Field(max_length=16)] = []
    """What the count follows; the one that asks for most decides."""
    mode: Literal["predictive", "kpa", "hpa"] = "predictive"
    """How the count is computed."""
    behavior: Behavior | None = None
    """Limits on how fast it changes; they hold in every mode."""
    scale_down_delay: Duration = 0.0
    """How long less must suffice before it scales down."""
    to_zero_after: Duration = 0.0
    """Without requests for so long, no replica remains; 0 keeps `min`."""
    schedules: Annotated[list[ScaleSchedule], Field(max_length=64)] = []
    """Bounds for certain times: the one that began last holds."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise FieldFault("min", f"must not be above max, got {self.min} and {self.max}")
        if not self.max:
            raise FieldFault("max", "must be above zero")
        return self


class Schedule(Part):
    """When a cron service runs."""

    cron: Cron
    """Five fields: minute, hour, day, month, weekday; or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`."""
    zone: Zone = "UTC"
    """Time zone of the fields."""
    overlap: Literal["skip", "allow", "replace"] = "skip"
    """When a run is due and one still runs: leave the new one out, run both, or stop the old one."""


class Job(Part):
    """Work that ends: a replica that exits with code 0 is done."""

    completions: Completions = 1
    """How many replicas must succeed: slots 1 to `completions`, each once."""
    parallelism: Positive = 1
    """How many run at once."""
    retries: Count = 3
    """How many replicas may fail before the job has failed."""
    deadline: Duration = 3600.0
    """How long the job may take in all, waiting included; then it has failed."""
