"""From what is carried and what runs to the readings of the pure autoscaler: pure as well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mesh.autoscaling.demand import Demand
from mesh.model import ReplicaState, RolloutState, ServicePlan, Want
from mesh.scheduler.autoscale.model import Reading, ReplicaReading, Sample, key_of
from mesh.scheduler.blueprint import blueprint_or_none
from mesh.scheduler.classify import Replica
from mesh.scheduler.hosts import Condition
from mesh.scheduler.sentences import listed
from mesh.spec.scale import Scale

RESOURCES = frozenset({"cpu", "memory"})
"""Metrics that only a replica's own node can tell."""
_UNDER_WAY = (RolloutState.ROLLING, RolloutState.CANARY, RolloutState.PAUSED)

Elsewhere = Callable[[str, str], Sample]
"""What a Prometheus at this URL answers to a query."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When it is: by the leader's monotonic clock, and in Unix seconds."""

    monotonic: float
    unix: float


def metrics_of(scale: Scale) -> set[str]:
    """The keys of a service's metrics."""
    return {key_of(metric) for metric in scale.metrics}


def read(
    scale: Scale,
    plan: ServicePlan,
    current: int,
    muster: Mapping[str, Sequence[Replica]],
    demand: Demand,
    elsewhere: Elsewhere,
    held_requests: int,
    now: Moment,
) -> Reading:
    """All that is known of one service.

    Args:
        scale: how it follows its load.
        plan: what became of its wish: its releases, and what they reserve.
        current: the replicas that are wanted now.
        muster: its replicas by node; of a rollout those of both releases.
        demand: what the proxies carry.
        elsewhere: what a Prometheus says.
        held_requests: that wait for a service at zero.
        now: when it is.
    """
    wanted = metrics_of(scale)
    carried = demand.of(plan.service, now.monotonic)
    silent = demand.silent(now.monotonic)
    partial = f"{listed(list(silent))}: not known what the proxies there carry" if silent else ""
    replicas = [_replica(replica, plan, wanted, demand, now) for replica in _counted(muster)]
    ready = any(replica.state is ReplicaState.READY for replica in replicas)
    samples: dict[str, Sample] = {}
    for metric in scale.metrics:
        key = key_of(metric)
        if metric.prometheus is not None:
            samples[key] = elsewhere(metric.prometheus.url, metric.prometheus.query)
        elif key in RESOURCES:
            samples[key] = _mean(key, replicas)
        else:
            value = carried.in_flight if key == "in_flight" else carried.requests
            samples[key] = Sample(value=value, fault=partial)
    return Reading(
        current=current,
        replicas=replicas,
        metrics=samples,
        waiting=0 if ready else max(carried.queued, held_requests),
        traffic=None if silent else carried.traffic + held_requests,
        rolling=len(plan.releases) > 1 and plan.rollout.state in _UNDER_WAY,
    )


def _counted(muster: Mapping[str, Sequence[Replica]]) -> Iterable[Replica]:
    """Those that are to run, but for what is lost or has ended."""
    return (
        replica
        for node in sorted(muster)
        for replica in muster[node]
        if replica.assignment.want is Want.RUN
        and not replica.state.ended
        and replica.state is not ReplicaState.DRAINING
        and replica.condition not in (Condition.GONE, Condition.LOST)
    )


def _replica(replica: Replica, plan: ServicePlan, wanted: set[str], demand: Demand, now: Moment) -> ReplicaReading:
    report = replica.report
    values: dict[str, float] = {}
    in_flight, requests = demand.of_endpoint(plan.service, replica.id, now.monotonic)
    if "in_flight" in wanted:
        values["in_flight"] = in_flight
    if "requests_per_second" in wanted:
        values["requests_per_second"] = requests
    usage = demand.usage(replica.node, replica.id, now.monotonic) if wanted & RESOURCES else None
    blueprint = blueprint_or_none(plan, replica.assignment.release) if usage else None
    if usage and blueprint:
        if "cpu" in wanted and usage.cpu is not None and blueprint.demand.cpu:
            values["cpu"] = usage.cpu / blueprint.demand.cpu
        if "memory" in wanted and blueprint.demand.memory:
            values["memory"] = usage.memory / blueprint.demand.memory
    return ReplicaReading(
        id=replica.id,
        state=replica.state,
        started=report.started or None if report else None,
        changed=replica.since if report and replica.state.alive else None,
        measured_from=now.unix - usage.window if usage else None,
        values=values,
    )


def _mean(key: str, replicas: Sequence[ReplicaReading]) -> Sample:
    values = [replica.values[key] for replica in replicas if key in replica.values]
    if not values:
        return Sample(fault=f"no replica tells its {key}")
    return Sample(value=sum(values) / len(values))
