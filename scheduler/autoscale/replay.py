"""A recorded series through the autoscaler: what it would have decided, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mesh.model import ReplicaState
from mesh.scheduler.autoscale import hpa
from mesh.scheduler.autoscale.autoscaler import Autoscaler
from mesh.scheduler.autoscale.model import Decision, Reading, ReplicaReading, Sample, Target
from mesh.spec.scale import Scale

SERVICE = "replay"
"""The name of the service in its sentences."""

RESOURCES = ("cpu", "memory")


@dataclass(frozen=True, slots=True)
class Point:
    """What was read at a time. `metrics`: sums; of CPU and memory the mean; None: missing.

    Replicas are told one by one (`replicas`), or counted: `ready` ones that tell their part, `missing` ones that are
    ready and do not, `unready` ones, and `dying` ones; `ready` None: all that are wanted and not among the others.
    """

    time: float
    metrics: Mapping[str, float | None]
    current: int | None = None
    """The count that was wanted then; None: what was decided before."""
    ready: int | None = None
    missing: int = 0
    unready: int = 0
    dying: int = 0
    replicas: Sequence[ReplicaReading] | None = None
    waiting: int = 0
    traffic: float | None = None
    held: int | None = None


@dataclass(frozen=True, slots=True)
class Script:
    """A series, and the service that it is of.

    `start_up`: seconds from a decision to a ready replica, where the points do not tell how many are ready.
    """

    scale: Scale
    replicas: int
    points: Sequence[Point]
    interval: float = hpa.INTERVAL
    start_up: float = 0.0


def replay(script: Script) -> list[Decision]:
    """A decision for each point, also where it changes nothing."""
    return _Replay(script).decisions()


@dataclass(slots=True)
class _Replay:
    script: Script
    _current: int = 0
    _ready: int = 0
    _starting: list[tuple[float, int]] = field(default_factory=list)

    def decisions(self) -> list[Decision]:
        script = self.script
        if not script.points:
            return []
        autoscaler = Autoscaler(script.points[0].time, script.interval)
        self._current = self._ready = script.replicas
        # a count of zero that `min` does not allow is an operator's
        stopped = script.replicas == 0 and script.scale.min > 0 and not script.scale.to_zero_after
        found = []
        for point in script.points:
            if point.current is not None and point.current != self._current:
                self._set(point.time, point.current, 0.0)
            held = point.held if point.held is not None else 0 if stopped and not self._current else None
            autoscaler.follow({SERVICE: Target(scale=script.scale, held=held)})
            autoscaler.tick(point.time, {SERVICE: self._reading(point)})
            found.append(autoscaler.explain(SERVICE))
            if found[-1].replicas != self._current:
                self._set(point.time, found[-1].replicas, script.start_up)
        return found

    def _set(self, now: float, count: int, start_up: float) -> None:
        """Another count is wanted: what is more becomes ready in a while, what is less goes at once, newest first."""
        more = count - self._current
        while more < 0 and self._starting:
            at, number = self._starting.pop()
            if number + more > 0:
                self._starting.append((at, number + more))
            more = min(0, number + more)
        if more > 0:
            self._starting.append((now + start_up, more))
        self._ready, self._current = self._ready + min(more, 0), count

    def _reading(self, point: Point) -> Reading:
        while self._starting and self._starting[0][0] <= point.time:
            self._ready += self._starting.pop(0)[1]
        replicas = list(point.replicas) if point.replicas is not None else self._counted(point)
        # a sum that none of them has told is none
        untold = point.missing > 0 and not any(replica.values for replica in replicas)
        metrics = {
            key: Sample(fault="no ready replica told it") if untold and not key.startswith("prometheus")
            else Sample(value=value, fault="" if value is not None else "it is missing in the series")
            for key, value in point.metrics.items()
        }  # fmt: skip
        return Reading(
            current=self._current, replicas=replicas, metrics=metrics, waiting=point.waiting, traffic=point.traffic
        )  # fmt: skip

    def _counted(self, point: Point) -> list[ReplicaReading]:
        """Replicas of which only the number is known: the ready ones have equal parts of each metric."""
        others = point.missing + point.unready + point.dying
        ready = point.ready if point.ready is not None else max(self._ready - others, 0)
        unready = point.unready if point.ready is not None else point.unready + self._current - self._ready
        parts = {
            key: value if key in RESOURCES else value / ready
            for key, value in point.metrics.items()
            if value is not None and ready and not key.startswith("prometheus")
        }
        groups: Sequence[tuple[int, ReplicaState, dict[str, float]]] = (
            (ready, ReplicaState.READY, parts),
            (point.missing, ReplicaState.READY, {}),
            (unready, ReplicaState.STARTING, {}),
            (point.dying, ReplicaState.DRAINING, {}),
        )
        return [
            ReplicaReading(id=f"{state.value}-{number}", state=state, values=values)
            for count, state, values in groups
            for number in range(1, count + 1)
        ]
