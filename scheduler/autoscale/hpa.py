"""The count that Kubernetes' HorizontalPodAutoscaler asks for, exactly: formula, tolerance, readiness, missing metrics.

Source: kubernetes/pkg/controller/podautoscaler, `replica_calculator.go` and `horizontal.go`. What is HPA's here:

- `in_flight` and `requests_per_second` are *Pods* metrics: the mean over the replicas. A replica that is not ready is
  in no proxy's list, so it is as a pending pod: set aside.
- `cpu` and `memory` are *Resource* metrics: each replica's share of what it reserves. Replicas of which CPU cannot be
  trusted yet (not ready, or measured from before they were) are set aside; memory has no such rule.
- Prometheus is an *External* metric with an average value: the query's number over all replicas there are.
- At a count of 0, and where no replica tells its own part, the whole service's sum stands for its parts.

Two deviations, both in the last digit: a ratio is not cut to whole percents, and a product such as 1.1 · 10 is 11.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mesh.model import ReplicaState
from mesh.scheduler.autoscale.model import MetricDecision, Reading, ReplicaReading, Sample, key_of
from mesh.spec.scale import Metric

INTERVAL = 15.0
"""Seconds between two looks: --horizontal-pod-autoscaler-sync-period."""
TOLERANCE = 0.1
"""--horizontal-pod-autoscaler-tolerance."""
CPU_INITIALIZATION = 300.0
"""Seconds after a replica's start in which its CPU counts only while it is ready: …-cpu-initialization-period."""
INITIAL_READINESS = 30.0
"""Seconds after its start: not ready since then, it has never been ready: …-initial-readiness-delay."""
MOST = 1e15
"""What is above that was not measured."""

_DIGITS = 9
"""Decimals to which ratios are compared: sums of floats differ in the last ones."""

_PENDING = frozenset({ReplicaState.ASSIGNED, ReplicaState.PULLING, ReplicaState.STARTING})
_GONE = frozenset({ReplicaState.DRAINING, ReplicaState.STOPPED, ReplicaState.FAILED, ReplicaState.LOST})


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far below (`down`) and above (`up`) 1 the ratio may be before the count changes."""

    down: float = TOLERANCE
    up: float = TOLERANCE

    def covers(self, ratio: float) -> bool:
        """Both ends included, whatever the rounding of floats: 55 % of 50 % is 1.1."""
        return -self.down <= round(ratio - 1.0, _DIGITS) <= self.up


@dataclass(slots=True)
class _Groups:
    """Replicas as HPA sorts them: `counted` (their values), those set aside, those whose metric is missing."""

    counted: list[float] = field(default_factory=list)
    aside: int = 0
    missing: int = 0


def is_sound(value: float | None) -> bool:
    """Whether a measured value can be gone by: it is there, a number, not negative, and not beyond all bounds."""
    return value is not None and 0 <= value <= MOST


def sound(sample: Sample | None) -> float | None:
    """A metric's value; None where it failed."""
    return sample.value if sample is not None and is_sound(sample.value) else None


def fault_of(sample: Sample | None) -> str:
    """Why a metric has failed, or is told in part only; empty if it is sound."""
    if sample is None:
        return "it was not told"
    if sample.value is not None and sound(sample) is None:
        return f"{sample.value} is no number to go by"
    return sample.fault or ("it has no value" if sample.value is None else "")


def ceil(amount: float) -> int:
    """Whole replicas for an amount, without those that only a rounding error asks for; MOST at most."""
    amount = min(amount, MOST)
    return math.ceil(amount - 1e-9 * max(1.0, amount))


def target_of(metric: Metric) -> float:
    """What a metric should be per replica."""
    if metric.prometheus is not None:
        return metric.prometheus.target
    return next(value for value in (metric.in_flight, metric.requests_per_second, metric.cpu, metric.memory) if value)


def proposal(metric: Metric, reading: Reading, now: float, tolerance: Tolerance) -> MetricDecision:
    """What one metric asks for."""
    key, target = key_of(metric), target_of(metric)
    sample = reading.metrics.get(key)
    if metric.prometheus is not None:
        value = sound(sample)
        replicas = None if value is None else _average(value, target, reading, tolerance)
        each = None if value is None else value / max(_living(reading), 1)
        return MetricDecision(
            metric=key, value=each, target=target, recommendation=replicas, fault=fault_of(sample)
        )  # fmt: skip
    whole = metric.cpu is None and metric.memory is None
    groups = _sort(reading, key, now, cpu=metric.cpu is not None, proxied=whole)
    if whole and not any(key in replica.values for replica in reading.replicas):
        return _of_the_sum(key, target, reading, groups, tolerance)
    partly = sample.fault if sample is not None and sample.value is not None else ""
    if not groups.counted:
        fault = partly or fault_of(sample) or "no ready replica told it"
        return MetricDecision(metric=key, value=None, target=target, recommendation=None, fault=fault)
    mean = sum(groups.counted) / len(groups.counted)
    # a missing replica uses all of its request (a resource), or just the target, when that keeps from scaling down
    fallback = target if whole else 1.0
    count, note = _desired(groups, target, fallback, reading.current, tolerance, plain=whole)
    return MetricDecision(metric=key, value=mean, target=target, recommendation=count, fault=partly, note=note)


def _of_the_sum(key: str, target: float, reading: Reading, groups: _Groups, tolerance: Tolerance) -> MetricDecision:
    """Where no replica tells its part: each ready one has an equal part of the sum."""
    sample = reading.metrics.get(key)
    total, fault = sound(sample), fault_of(sample)
    ready = groups.missing  # ready, and none of them tells
    if total is None or (reading.current and not ready):
        fault = fault or "no replica is ready"
        return MetricDecision(metric=key, value=None, target=target, recommendation=None, fault=fault)
    if not reading.current:
        count = ceil(total / target)
        return MetricDecision(metric=key, value=total, target=target, recommendation=count, fault=fault)
    even = _Groups([total / ready] * ready, groups.aside)
    count, note = _desired(even, target, target, reading.current, tolerance, plain=True)
    each = total / ready
    return MetricDecision(metric=key, value=each, target=target, recommendation=count, fault=fault, note=note)


def _desired(
    groups: _Groups, target: float, fallback: float, current: int, tolerance: Tolerance, *, plain: bool
) -> tuple[int, str]:
    """calcPlainMetricReplicas and GetResourceReplicas (the same but for what a missing replica is taken to use), and
    which replicas did not count as they are."""
    ratio = _ratio(groups.counted, target)
    up = ratio > 1.0
    if not (groups.aside and up) and not groups.missing:
        return current if tolerance.covers(ratio) else ceil(sum(groups.counted) / target), ""
    values, notes = list(groups.counted), []
    if groups.missing and (plain or ratio != 1.0):
        taken = fallback if ratio < 1.0 else 0.0
        values += [taken] * groups.missing
        notes.append(f"{groups.missing} that told nothing as {taken:.4g}")
    if groups.aside and up:
        values += [0.0] * groups.aside
        notes.append(f"{groups.aside} not ready as 0")
    again = _ratio(values, target)
    note = f"{' and '.join(notes)}: {again * target:.4g}" if notes else ""
    count = ceil(sum(values) / target)
    turned = (ratio < 1.0 < again) or (again < 1.0 < ratio)
    against = (again < 1.0 and count > current) or (again > 1.0 and count < current)
    return current if tolerance.covers(again) or turned or against else count, note


def _ratio(values: list[float], target: float) -> float:
    """Of the mean to the target, for comparing."""
    return round(sum(values) / len(values) / target, _DIGITS)


def _average(value: float, target: float, reading: Reading, tolerance: Tolerance) -> int:
    """GetExternalPerPodMetricReplicas; with no replica there is no ratio, and so no tolerance."""
    living = _living(reading)
    if living and tolerance.covers(value / (target * living)):
        return living
    return ceil(value / target)


def _living(reading: Reading) -> int:
    return sum(replica.state not in _GONE for replica in reading.replicas)


def _sort(reading: Reading, key: str, now: float, *, cpu: bool, proxied: bool) -> _Groups:
    """groupPods."""
    groups = _Groups()
    for replica in reading.replicas:
        if replica.state in _GONE:
            continue
        ready = replica.state == ReplicaState.READY
        if replica.state in _PENDING or (proxied and not ready):
            groups.aside += 1
            continue
        value = replica.values.get(key)
        if value is None or not is_sound(value):
            groups.missing += 1
        elif cpu and _untrusted(replica, ready, now):
            groups.aside += 1
        else:
            groups.counted.append(value)
    return groups


def _untrusted(replica: ReplicaReading, ready: bool, now: float) -> bool:
    """Whether its CPU says something about its start rather than its load."""
    if replica.started is None or replica.changed is None:
        return not ready
    if now < replica.started + CPU_INITIALIZATION:
        return not ready or (replica.measured_from is not None and replica.measured_from < replica.changed)
    return not ready and replica.changed < replica.started + INITIAL_READINESS
