"""What a node's proxy carries, second by second: counted by its workers, added up by their supervisor.

Workers tell what came since they last told (`PortLoad`, deltas but for the last four fields), each time within one
second of the machine's monotonic clock. So the sums over several workers, and over workers that follow one another,
are exact. `LoadWindow` is pure: time is an argument.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from math import sqrt
from typing import Any

import msgspec

WINDOW = 10
"""Seconds, the present one included."""

ROUND_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the latency histogram that Prometheus sees, seconds."""

_PER_DECADE = 16
BOUNDS = tuple(sorted({*ROUND_BOUNDS, *(1e-4 * 10 ** (step / _PER_DECADE) for step in range(6 * _PER_DECADE + 1))}))
"""Those of the histogram that quantiles are read from: 0.1 ms to 100 s, 16 for a factor of ten, so that the middle of a
bucket is within 7.5 % of what fell into it."""


class EndpointLoad(msgspec.Struct, frozen=True, array_like=True):
    """One endpoint's part."""

    id: str
    requests: int  # tries
    failures: int  # of them without an answer, or with 5xx
    in_flight: int
    ejected: bool


class PortLoad(msgspec.Struct, frozen=True, array_like=True):
    """What one worker did for one service port since it last told."""

    service: str
    port: str
    requests: int  # that ended with a status
    failures: int  # of them with 5xx
    busy: float  # the integral of the requests in flight: request-seconds
    latency: dict[int, int]  # by index into BOUNDS
    retries: int
    opened: int  # connections of clients
    endpoints: list[EndpointLoad]
    in_flight: int  # now, with those that wait
    queued: int
    connections: int
    arrived: int = 0  # requests that began since it last told


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """Counted since the agent began: who asks twice has exactly what came between, however short it lasted.

    Requests count as they arrive, not as they end: a service that is too slow shows its whole load.
    """

    requests: int = 0
    busy: float = 0.0  # the integral of the requests in flight, with those that wait: request-seconds
    connections: int = 0  # that were opened

    def __add__(self, more: Total) -> Total:
        return Total(
            requests=self.requests + more.requests,
            busy=self.busy + more.busy,
            connections=self.connections + more.connections,
        )


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Over the window: rates per second, times in seconds. None where there was nothing to tell it from."""

    rps: float = 0.0
    in_flight: float = 0.0  # average, with those that wait for an endpoint
    in_flight_now: int = 0
    queued: int = 0
    p50: float | None = None
    p99: float | None = None
    success_ratio: float | None = None  # not 5xx
    retries: float = 0.0
    connections: int = 0  # of clients, open now
    connection_rate: float = 0.0
    latency: list[tuple[float, int]] = []  # requests by the upper bound of their time; from it are p50 and p99
    total: Total = Total()


class EndpointReport(msgspec.Struct, frozen=True, kw_only=True):
    rps: float
    in_flight_now: int
    success_ratio: float | None
    ejected: bool


class ServiceReport(Load, frozen=True, kw_only=True):
    """All ports of a service, then each."""

    ejected: int = 0  # endpoints that get no traffic for their failures
    ports: dict[str, Load] = {}
    endpoints: dict[str, EndpointReport] = {}

    @property
    def active(self) -> bool:
        """It carries something, or did within the window."""
        return bool(self.rps or self.in_flight or self.in_flight_now or self.connections or self.connection_rate)


class ReplicaUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica of this node uses, whoever sends it requests."""

    cpu: float | None  # millicores, over the window; None until there is one
    memory: int  # bytes now
    window: float  # seconds


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `/v1/stats` answers."""

    node: str
    time: float  # Unix seconds
    window: float  # seconds that the figures are over: less than ten only at the start
    services: dict[str, ServiceReport]
    usage: dict[str, ReplicaUsage] = {}  # by replica, of the services that were asked for


class _Sum:
    """A second's, or a window's, of one port or of several."""

    __slots__ = ("busy", "endpoints", "failures", "latency", "opened", "requests", "retries")

    def __init__(self) -> None:
        self.requests = 0
        self.failures = 0
        self.busy = 0.0
        self.retries = 0
        self.opened = 0
        self.latency: Counter[int] = Counter()
        self.endpoints: dict[str, tuple[int, int]] = {}  # requests, failures

    def add(self, more: PortLoad | _Sum) -> None:
        self.requests += more.requests
        self.failures += more.failures
        self.busy += more.busy
        self.retries += more.retries
        self.opened += more.opened
        self.latency.update(more.latency)
        parts = (
            more.endpoints.items()
            if isinstance(more, _Sum)
            else ((each.id, (each.requests, each.failures)) for each in more.endpoints)
        )
        for id, (requests, failures) in parts:
            before = self.endpoints.get(id, (0, 0))
            self.endpoints[id] = (before[0] + requests, before[1] + failures)


_Key = tuple[str, str]


class LoadWindow:
    """The last ten seconds of all workers. Bounded by what they proxy in that time."""

    def __init__(self, now: float) -> None:
        """`now`, here and below: monotonic seconds of the machine."""
        self._began = now
        self._seconds: dict[int, dict[_Key, _Sum]] = {}
        self._present: dict[Hashable, dict[_Key, PortLoad]] = {}
        self._totals: dict[_Key, Total] = {}

    def add(self, worker: Hashable, second: int, loads: Iterable[PortLoad], now: float) -> None:
        """What `worker` did within `second`, and what it has open now."""
        self._forget_before(int(now) - WINDOW + 1)
        sums = self._seconds.setdefault(second, {})
        present = self._present.setdefault(worker, {})
        for load in loads:
            key = (load.service, load.port)
            sums.setdefault(key, _Sum()).add(load)
            self._totals[key] = self._totals.get(key, Total()) + Total(
                requests=load.arrived, busy=load.busy, connections=load.opened
            )
            present[key] = load

    def left(self, worker: Hashable) -> None:
        """It has nothing open any more; what it did still counts."""
        self._present.pop(worker, None)

    def report(self, ports: Mapping[str, Iterable[str]], now: float, *, node: str = "") -> LoadReport:
        """The load of these services, by their ports' names."""
        first = int(now) - WINDOW + 1
        self._forget_before(first)
        self._totals = {key: total for key, total in self._totals.items() if key[0] in ports}
        seconds = max(now - max(self._began, first), 0.001)
        return LoadReport(
            node=node,
            time=time.time(),
            window=round(seconds, 3),
            services={service: self._service(service, names, seconds) for service, names in ports.items()},
        )

    def _forget_before(self, second: int) -> None:
        for old in [each for each in self._seconds if each < second]:
            del self._seconds[old]

    def _service(self, service: str, names: Iterable[str], seconds: float) -> ServiceReport:
        whole, ports, open_now = _Sum(), {}, []
        for name in names:
            key = (service, name)
            port = _Sum()
            for sums in self._seconds.values():
                if key in sums:
                    port.add(sums[key])
            present = [loads[key] for loads in self._present.values() if key in loads]
            ports[name] = Load(**_figures(port, present, seconds), total=self._totals.get(key, Total()))
            whole.add(port)
            open_now += present
        endpoints = _endpoints(whole, open_now, seconds)
        return ServiceReport(
            **_figures(whole, open_now, seconds),
            ejected=sum(each.ejected for each in endpoints.values()),
            ports=ports,
            endpoints=endpoints,
            total=sum((port.total for port in ports.values()), Total()),
        )


def _figures(sums: _Sum, present: list[PortLoad], seconds: float) -> dict[str, Any]:
    return {
        "rps": sums.requests / seconds,
        "in_flight": sums.busy / seconds,
        "in_flight_now": sum(load.in_flight for load in present),
        "queued": sum(load.queued for load in present),
        "p50": quantile(sums.latency, 0.5),
        "p99": quantile(sums.latency, 0.99),
        "success_ratio": _success(sums.requests, sums.failures),
        "retries": sums.retries / seconds,
        "connections": sum(load.connections for load in present),
        "connection_rate": sums.opened / seconds,
        "latency": [(_bound(index), count) for index, count in sorted(sums.latency.items())],
    }


def _bound(index: int) -> float:
    """The upper bound of a bucket, as it is told; 1000 s stand for all that took longer than the last."""
    return round(BOUNDS[index], 7) if index < len(BOUNDS) else 1000.0


_INDEX = {_bound(index): index for index in range(len(BOUNDS) + 1)}


def _endpoints(sums: _Sum, present: list[PortLoad], seconds: float) -> dict[str, EndpointReport]:
    in_flight: Counter[str] = Counter()
    ejected = set()
    for load in present:
        for each in load.endpoints:
            in_flight[each.id] += each.in_flight
            if each.ejected:
                ejected.add(each.id)
    return {
        id: EndpointReport(
            rps=requests / seconds, in_flight_now=in_flight[id], success_ratio=_success(requests, failures),
            ejected=id in ejected,
        )
        for id in sorted(sums.endpoints.keys() | in_flight.keys())
        for requests, failures in [sums.endpoints.get(id, (0, 0))]
    }  # fmt: skip


def _success(requests: int, failures: int) -> float | None:
    return 1 - failures / requests if requests else None


def quantile(latency: Mapping[int, int], share: float) -> float | None:
    """Seconds that `share` of the requests took at most; None without any. Within 8 % from 0.1 ms to 100 s."""
    total = sum(latency.values())
    if not total:
        return None
    below = 0
    for index in sorted(latency):
        below += latency[index]
        if below >= share * total:
            break
    if index == 0:
        return BOUNDS[0]
    return sqrt(BOUNDS[index - 1] * BOUNDS[min(index, len(BOUNDS) - 1)])


def merged(reports: Iterable[LoadReport]) -> dict[str, ServiceReport]:
    """The load of all services over several nodes, without their single ports."""
    by_service: dict[str, list[ServiceReport]] = {}
    for report in reports:
        for name, service in report.services.items():
            by_service.setdefault(name, []).append(service)
    return {name: _together(parts) for name, parts in by_service.items()}


def _together(parts: list[ServiceReport]) -> ServiceReport:
    latency: Counter[int] = Counter()
    for part in parts:
        latency.update({_INDEX[bound]: count for bound, count in part.latency if bound in _INDEX})
    ids = sorted({id for part in parts for id in part.endpoints})
    endpoints = {id: _endpoint([part.endpoints[id] for part in parts if id in part.endpoints]) for id in ids}
    return ServiceReport(
        rps=sum(part.rps for part in parts),
        in_flight=sum(part.in_flight for part in parts),
        in_flight_now=sum(part.in_flight_now for part in parts),
        queued=sum(part.queued for part in parts),
        p50=quantile(latency, 0.5),
        p99=quantile(latency, 0.99),
        success_ratio=_weighted(parts),
        retries=sum(part.retries for part in parts),
        connections=sum(part.connections for part in parts),
        connection_rate=sum(part.connection_rate for part in parts),
        latency=[(_bound(index), count) for index, count in sorted(latency.items())],
        ejected=sum(each.ejected for each in endpoints.values()),
        endpoints=endpoints,
        total=sum((part.total for part in parts), Total()),
    )


def _endpoint(parts: list[EndpointReport]) -> EndpointReport:
    return EndpointReport(
        rps=sum(part.rps for part in parts),
        in_flight_now=sum(part.in_flight_now for part in parts),
        success_ratio=_weighted(parts),
        ejected=any(part.ejected for part in parts),
    )


def _weighted(parts: Iterable[Load | EndpointReport]) -> float | None:
    """The success ratio over all, each by its requests."""
    told = [(part.success_ratio, part.rps) for part in parts if part.success_ratio is not None]
    total = sum(rps for _, rps in told)
    return sum(ratio * rps for ratio, rps in told) / total if total else None
