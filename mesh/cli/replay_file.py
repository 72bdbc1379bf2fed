"""The file of `mesh autoscale --replay`: how a service scales, and what was measured when."""

from __future__ import annotations

import math
from datetime import date
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from mesh.cron import parse_time
from mesh.model import ReplicaState
from mesh.scheduler.autoscale.model import ReplicaReading, key_of
from mesh.scheduler.autoscale.replay import RESOURCES, Point, Script
from mesh.spec.errors import SpecError, sentences
from mesh.spec.fields import Count, Duration, Part, Replicas
from mesh.spec.files import read_document
from mesh.spec.scale import Scale
from mesh.units import shown

MAX_POINTS = 100_000
MAX_REPLICAS = 10_000
"""In one point."""
_LAST = 2e11
"""Unix seconds, some thousand years."""


def _time(value: object) -> float:
    if isinstance(value, date):  # TOML has dates
        value = value.isoformat()
    if isinstance(value, str):
        return parse_time(value, "UTC")
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LAST:
        return float(value)
    raise ValueError(f"must be a time such as 2026-03-29T00:00:00Z, or Unix seconds, got {shown(value)}")


def _value(value: object) -> float | None:
    """A measured number: also what is no sound one, for that happens. Nothing: it is missing."""
    try:
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return None if value is None else float(value)
        if isinstance(value, str):
            return float(value[:-1]) / 100 if value.endswith("%") else float(value)
    except OverflowError:
        return math.inf
    except ValueError:
        pass
    raise ValueError(f"must be a number, a share such as 70%, or nothing where it is missing, got {shown(value)}")


Time = Annotated[float, BeforeValidator(_time)]
Value = Annotated[float | None, BeforeValidator(_value)]


class ReplicaPart(Part):
    """One replica at a time: its state, and its part of each metric."""

    state: Literal["ready", "unready", "starting", "dying", "failed"] = "ready"
    metrics: dict[str, Value] = {}
    started: Time | None = None
    changed: Time | None = None
    measured_from: Time | None = None


class PointPart(Part):
    """What was measured at a time."""

    time: Time
    load: Value = None
    metrics: dict[str, Value] = {}
    current: Replicas | None = None
    ready: Replicas | None = None
    missing: Replicas = 0
    unready: Replicas = 0
    dying: Replicas = 0
    replicas: dict[str, ReplicaPart] | None = None
    waiting: Count = 0
    traffic: Value = None
    held: Replicas | None = None


class FilePart(Part):
    """The whole file."""

    scale: Scale
    replicas: Replicas = 1
    interval: Duration = 15.0
    start_up: Duration = 0.0
    series: Annotated[list[PointPart], Field(max_length=MAX_POINTS)]


_STATES = {
    "ready": ReplicaState.READY,
    "unready": ReplicaState.RUNNING,
    "starting": ReplicaState.STARTING,
    "dying": ReplicaState.DRAINING,
    "failed": ReplicaState.FAILED,
}


def read_script(file: str) -> Script:
    """The script in a file; see `read_document`. Raises `SpecError`."""
    return read_document(file, script_of)


def script_of(data: Any) -> Script:
    """The script in a document. Raises `SpecError` with every fault, as `path: sentence`."""
    try:
        part = FilePart.model_validate(data)
    except ValidationError as error:
        raise SpecError([fault.removeprefix(": ") for fault in sentences(error, FilePart)]) from None
    keys = _names(part.scale)
    faults: list[str] = []
    points = [_point(f"series.{number}", one, keys, faults) for number, one in enumerate(part.series)]
    for number, (before, after) in enumerate(pairwise(points), 1):
        if after.time <= before.time:
            faults.append(f"series.{number}.time: must be later than the one before, {before.time:.10g}")
    if faults:
        raise SpecError(faults)
    return Script(part.scale, part.replicas, points, part.interval, part.start_up)


def _names(scale: Scale) -> dict[str, str]:
    """The metrics by the names that a series may use: the query of the only Prometheus metric need not be repeated."""
    keys = dict.fromkeys(map(key_of, scale.metrics))
    kinds = [key.partition(":")[0] for key in keys]
    return {kind if kinds.count(kind) == 1 else key: key for kind, key in zip(kinds, keys, strict=True)}


def _point(path: str, part: PointPart, keys: dict[str, str], faults: list[str]) -> Point:
    metrics = _metrics(f"{path}.metrics", part.metrics, keys, faults)
    if "load" in part.model_fields_set:
        if len(keys) == 1:
            metrics[next(iter(keys.values()))] = part.load
        else:
            faults.append(f"{path}.load: is for one metric, name them under metrics: there are {len(keys)}")
    counted = sum((part.ready or 0, part.missing, part.unready, part.dying))
    if max(counted, len(part.replicas or ()), part.current or 0) > MAX_REPLICAS:
        faults.append(f"{path}: must have at most {MAX_REPLICAS} replicas")
    if part.replicas is not None and counted:
        faults.append(f"{path}.replicas: stands for ready, missing, unready and dying: leave those out")
    replicas = (
        None
        if part.replicas is None
        else [
            ReplicaReading(
                id=name,
                state=_STATES[one.state],
                started=one.started,
                changed=one.changed,
                measured_from=one.measured_from,
                values=_told(_metrics(f"{path}.replicas.{name}.metrics", one.metrics, keys, faults)),
            )
            for name, one in part.replicas.items()
        ]
    )
    if replicas:
        metrics = {**_summed(replicas, keys), **metrics}
    return Point(
        time=part.time,
        metrics=metrics,
        current=part.current,
        ready=part.ready,
        missing=part.missing,
        unready=part.unready,
        dying=part.dying,
        replicas=replicas,
        waiting=part.waiting,
        traffic=part.traffic,
        held=part.held,
    )


def _metrics(path: str, told: dict[str, float | None], keys: dict[str, str], faults: list[str]) -> dict[str, Any]:
    found = {}
    for name, value in told.items():
        key = name if name in keys.values() else keys.get(name)
        if key is None:
            faults.append(f"{path}.{name}: is no metric of scale, which has {', '.join(keys) or 'none'}")
        else:
            found[key] = value
    return found


def _told(metrics: dict[str, float | None]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if value is not None}


def _summed(replicas: list[ReplicaReading], keys: dict[str, str]) -> dict[str, float | None]:
    """The whole service's metrics, from its replicas'."""
    found: dict[str, float | None] = {}
    for key in keys.values():
        values = [one.values[key] for one in replicas if key in one.values]
        if values:
            found[key] = sum(values) / (len(values) if key in RESOURCES else 1)
    return found
