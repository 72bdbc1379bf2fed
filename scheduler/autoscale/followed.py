"""One service that follows its load: its bounds by the clock, what became of what was decided, HPA's looks at it."""

from __future__ import annotations

import math
from typing import NamedTuple

from mesh.cron import last_run, next_run
from mesh.model import ReplicaState
from mesh.scheduler.autoscale import hpa
from mesh.scheduler.autoscale.limits import Change, Limits, Recommendations, limits_of
from mesh.scheduler.autoscale.model import Limit, MetricDecision, Reading, Target, key_of
from mesh.spec.scale import Metric, Scale

LONGEST_PERIOD = 1800.0
"""Seconds after which a change counts in no policy."""


class Bounds(NamedTuple):
    """The fewest and the most replicas, until a time."""

    low: int
    high: int
    schedule: str = ""
    """The cron of the schedule that holds, if one does."""
    until: float = math.inf


class Verdict(NamedTuple):
    """What HPA made of a look: what it recommends, how many it would have, and what kept it from that."""

    recommendation: int
    replicas: int
    limit: Limit


class Followed:
    """What is known about one service, but for the numbers that are kept for all services together."""

    def __init__(self, name: str, target: Target) -> None:
        self.name = name
        self.reading: Reading | None = None
        self.first = math.inf
        self.changes: list[Change] = []
        self.metrics: list[MetricDecision] = []
        """What each metric asked for at HPA's last look."""
        self.recommendations: Recommendations | None = None
        self._asked: tuple[float, int, int] | None = None
        self.retarget(target)

    def retarget(self, target: Target) -> None:
        """Its spec, or the count held by hand, has changed."""
        self.target = target
        self.scale: Scale = target.scale
        self.limits: Limits = limits_of(target.scale)
        self.tolerance = hpa.Tolerance(self.limits.down.tolerance, self.limits.up.tolerance)
        self.windowed = self.limits.down.window > 0 or self.limits.up.window > 0
        self.keys = [key_of(metric) for metric in target.scale.metrics]

    def bounds(self, now: float) -> Bounds:
        """`min` and `max`, or those of the schedule that began last."""
        begun = [(begin, number) for number, one in enumerate(self.scale.schedules)
                 if (begin := last_run(one.cron, one.zone, now)) is not None]  # fmt: skip
        until = min((end for one in self.scale.schedules if (end := next_run(one.cron, one.zone, now)) is not None),
                    default=math.inf)  # fmt: skip
        if not begun:
            return Bounds(self.scale.min, self.scale.max, until=until)
        schedule = self.scale.schedules[max(begun)[1]]
        return Bounds(schedule.min, schedule.max, schedule.cron, until)

    def take(self, reading: Reading, now: float) -> int:
        """Another reading; by how much the count has changed since the last."""
        previous, self.reading = self.reading, reading
        if previous is None:
            self.first = now
            self.recommendations = Recommendations(now, reading.current)
            return 0
        change = reading.current - previous.current
        if change and self._asked is not None and self._asked[1:] == (previous.current, reading.current):
            self.changes = [one for one in self.changes if one.time > now - LONGEST_PERIOD]
            self.changes.append(Change(self._asked[0], change))
            if not previous.current:  # that it was woken with so many begins its windows
                self.recommendations = Recommendations(now, reading.current)
        if change:
            self._asked = None
        return change

    def ask(self, now: float, current: int, replicas: int) -> None:
        """A count was decided; it counts as a change once a reading shows it."""
        if self._asked is None or self._asked[1:] != (current, replicas):
            self._asked = (now, current, replicas)

    def within_rate(self, now: float, current: int, count: int) -> int:
        """As much of the way to `count` as the policies allow now."""
        if count > current:
            return min(count, self.limits.most(current, now, self.changes))
        return max(count, self.limits.least(current, now, self.changes)) if count < current else count

    def steady(self, now: float, count: int, current: int) -> int:
        """`count`, as the stabilisation windows have it."""
        assert self.recommendations is not None
        return self.recommendations.stabilised(now, count, current, self.limits)

    def look(self, now: float) -> Verdict:
        """HPA's sync (`reconcileAutoscaler`), but for `min` and `max`."""
        reading = self.reading
        assert reading is not None
        current = reading.current
        metrics = [hpa.proposal(metric, reading, now, self.tolerance) for metric in self.scale.metrics]
        known = [one.recommendation for one in metrics if one.recommendation is not None]
        asked = max(known, default=current)
        failing = any(one.fault for one in metrics)
        self.metrics = metrics
        if not known or (failing and asked < current):
            return Verdict(asked, current, "missing metrics" if failing else "")
        steady = self.steady(now, asked, current)
        count = self.within_rate(now, current, steady)
        limit: Limit = ""
        if count != steady:
            limit = "rate"
        elif steady != asked:
            early = count == current > asked and now <= self.first + self.limits.down.window
            limit = "first window" if early else "stabilisation"
        elif asked == current and any(self._near(one) for one in metrics):
            limit = "tolerance"
        return Verdict(asked, count, limit)

    def _near(self, metric: MetricDecision) -> bool:
        """Whether only the tolerance kept a metric from asking for another count."""
        value, target = metric.value, metric.target
        if value is None or math.isclose(value, target):
            return False
        return self.tolerance.covers(value / target)

    def waking(self) -> int:
        """How many replicas what waits asks for, where there are none."""
        assert self.reading is not None
        waits = 1 if self.reading.waiting or self.reading.traffic else 0
        return max([waits, *(one.recommendation or 0 for one in self.asleep())])

    def asleep(self) -> list[MetricDecision]:
        """What each metric asks for where there are no replicas: HPA's rule, without tolerance."""
        reading = self.reading
        assert reading is not None
        found = []
        for key, metric in zip(self.keys, self.scale.metrics, strict=True):
            sample, target = reading.metrics.get(key), hpa.target_of(metric)
            value, fault = hpa.sound(sample), hpa.fault_of(sample)
            if metric.cpu is not None or metric.memory is not None:
                value, fault = None, "there is no replica"
            elif metric.in_flight is not None:
                value = max(value or 0.0, float(reading.waiting))
            count = None if value is None else hpa.ceil(value / target)
            found.append(MetricDecision(metric=key, value=value, target=target, recommendation=count, fault=fault))
        return found


def parts_of_ready(reading: Reading) -> list[dict[str, float]]:
    """What each ready replica tells."""
    return [replica.values for replica in reading.replicas if replica.state is ReplicaState.READY]


def whole_value(metric: Metric, key: str, reading: Reading, parts: list[dict[str, float]]) -> tuple[float | None, str]:
    """A metric of all replicas together, and why it is missing, or only a part.

    A replica that does not tell its part, though others do, counts nothing, so that it scales nothing up, and is a
    fault, so that it scales nothing down. CPU and memory are sums of shares.
    """
    sample = reading.metrics.get(key)
    value, fault = hpa.sound(sample), hpa.fault_of(sample)
    if metric.prometheus is not None:
        return value, fault
    told = [part[key] for part in parts if key in part]
    if metric.cpu is not None or metric.memory is not None:
        told = [share for share in told if hpa.is_sound(share)]
        value = sum(told) if told else None if value is None else value * len(parts)
    if told and len(told) < len(parts):
        fault = fault or f"{len(parts) - len(told)} of {len(parts)} replicas do not tell it"
    return value, fault


def is_busy(reading: Reading) -> bool:
    """Whether anybody uses the service, or a Prometheus metric would wake it, or a release is on its way; also where
    nobody can tell."""
    unknown = reading.traffic is None
    kinds = ("prometheus", "in_flight", "requests_per_second") if unknown else ("prometheus",)
    told = [sample for key, sample in reading.metrics.items() if key.startswith(kinds)]
    if reading.waiting or reading.traffic or reading.rolling or (unknown and not told):
        return True
    return any(sample.value != 0 or sample.fault for sample in told)
