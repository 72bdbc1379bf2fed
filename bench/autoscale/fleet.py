"""A fluid model of services under load, scaled by the real autoscaler.

A replica carries `capacity` requests at once, and should carry 70 % of that. One that is decided on is ready START
seconds later; what is more than enough goes at once. The autoscaler is told of each second when it is over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from bench.autoscale.loads import Load
from mesh.model import ReplicaState
from mesh.scheduler.autoscale.autoscaler import Autoscaler
from mesh.scheduler.autoscale.model import Reading, ReplicaReading, Sample, Target
from mesh.scheduler.autoscale.windows import Floats
from mesh.spec.scale import Scale

START = 3
"""Seconds from a decision to a ready replica."""
TARGET = 0.7
"""What a replica should carry, as a part of what it can."""
SCRAPE = 15
"""Seconds over which HPA's metrics are means: metrics-server's resolution."""
WINDOW = 60

RULES = {
    "predictive (ours)": ("predictive", "in_flight"),
    "KPA": ("kpa", "in_flight"),
    "HPA on requests per second": ("hpa", "requests_per_second"),
    "HPA on CPU": ("hpa", "cpu"),
}


@dataclass(slots=True)
class Run:
    """One service under one rule. `wanted` and `ready`: at the end and during each second."""

    load: Load
    rule: str
    capacity: float
    wanted: list[int] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    _count: int = 0
    _ready: int = 0
    _starting: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._count = self._ready = max(1, math.ceil(self.load.in_flight[0] / (TARGET * self.capacity)))

    @property
    def target(self) -> Target:
        mode, metric = RULES[self.rule]
        each = TARGET * self.capacity
        aim: Any = {"in_flight": each, "cpu": TARGET, "requests_per_second": each / self.load.duration}[metric]
        return Target(scale=Scale.model_validate({"max": 100_000, "mode": mode, "metrics": [{metric: aim}]}))

    def pass_second(self, second: int) -> Reading:
        """The second passes; what the autoscaler reads of it."""
        self._ready += sum(count for at, count in self._starting if at <= second)
        self._starting = [one for one in self._starting if one[0] > second]
        self.ready.append(self._ready)
        key, value = self._measured(second)
        part = value if key == "cpu" else value / self._ready
        ready = ReplicaReading(id="", state=ReplicaState.READY, values={key: part})
        starting = ReplicaReading(id="", state=ReplicaState.STARTING)
        return Reading(
            current=self._count,
            replicas=[ready] * self._ready + [starting] * (self._count - self._ready),
            metrics={key: Sample(value=value)},
        )

    def _measured(self, second: int) -> tuple[str, float]:
        """The rule's metric: in flight in this second, or the mean of the last 15."""
        _, metric = RULES[self.rule]
        if metric == "in_flight":
            return metric, float(self.load.in_flight[second])
        recent = slice(max(0, second - SCRAPE + 1), second + 1)
        if metric == "requests_per_second":
            return metric, float(self.load.arrivals[recent].mean())
        carried = self.load.in_flight[recent] / (np.array(self.ready[recent]) * self.capacity)
        return metric, float(np.minimum(carried, 1.0).mean())  # no replica is busier than busy

    def scale(self, second: int, count: int) -> None:
        """The autoscaler's decision at the end of a second."""
        if count > self._count:
            self._starting.append((second + 1 + START, count - self._count))
        fewer = self._count - count
        while fewer > 0 and self._starting:  # the newest first
            at, number = self._starting.pop()
            if number > fewer:
                self._starting.append((at, number - fewer))
            fewer = max(0, fewer - number)
        self._ready -= max(fewer, 0)
        self._count = count

    # ── what came of it ──────────────────────────────────────────────────────────────────────

    @property
    def short(self) -> float:
        """The part of the seconds in which more came than could be carried."""
        return float((self.load.in_flight > np.array(self.ready) * self.capacity).mean())

    @property
    def excess(self) -> float:
        """The part of the load that was more than could be carried."""
        beyond = np.maximum(self.load.in_flight - np.array(self.ready) * self.capacity, 0)
        return float(beyond.sum() / self.load.in_flight.sum())

    @property
    def cost(self) -> float:
        """Replicas, those that start included, over those that whoever knew each second would have had."""
        return float(sum(self.wanted) / self.ideal().sum())

    def ideal(self) -> Floats:
        found: Floats = np.maximum(1, np.ceil(self.load.in_flight / (TARGET * self.capacity)))
        return found

    @property
    def changes(self) -> int:
        return int(np.count_nonzero(np.diff(self.wanted)))

    def turns(self) -> tuple[float, int]:
        """Changes of direction a minute, and the most in any minute."""
        steps = [(second, after > before) for second, (before, after) in
                 enumerate(pairwise(self.wanted)) if before != after]  # fmt: skip
        turns = np.array([second for (_, before), (second, after) in pairwise(steps)
                          if before != after])  # fmt: skip
        most = max((int(((turns >= turn) & (turns < turn + WINDOW)).sum()) for turn in turns), default=0)
        return len(turns) / (len(self.wanted) / WINDOW), most


def play(runs: Sequence[Run]) -> None:
    """All of them at once, as so many services of one cluster: HPA looks at each in another second of the fifteen."""
    autoscaler = Autoscaler(0)
    autoscaler.follow({str(number): run.target for number, run in enumerate(runs)})
    for second in range(max(run.load.seconds for run in runs)):
        readings = {}
        for number, run in enumerate(runs):
            if second < run.load.seconds:
                readings[str(number)] = run.pass_second(second)
        for decision in autoscaler.tick(second + 1, readings):
            runs[int(decision.service)].scale(second, decision.replicas)
        for run in runs:
            if second < run.load.seconds:
                run.wanted.append(run._count)
