"""The `scale`, `schedule` and `job` of a spec: how many replicas, and when."""

from typing import Annotated, Any, Literal, Self

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
    Word,
    Zone,
)


class PrometheusMetric(Part):
    """A query whose result should be `target` per replica."""

    url: Text
    """Base URL of the Prometheus server."""
    query: Text
    """PromQL that yields one number."""
    target: Number
    """What it should be per replica."""


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
        if getattr(self, given[0]) == 0:
            raise FieldFault(given[0], "must be above zero")
        return self


class ScaleSchedule(Part):
    """Other bounds, from a moment on."""

    cron: Cron
    """When it begins to hold."""
    min: Replicas
    """`min` from then on."""
    max: Replicas
    """`max` from then on."""


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
    behavior: dict[Word, Any] = {}
    """Limits on how fast it changes."""
    scale_down_delay: Duration = 0.0
    """How long less must suffice before it scales down."""
    to_zero_after: Duration = 0.0
    """Without requests for so long, no replica remains; 0 keeps `min`."""
    schedules: Annotated[list[ScaleSchedule], Field(max_length=64)] = []
    """Bounds for certain times."""

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
