"""Counting without a library call on the hot path: plain integers, shown as families and loads on demand.

One object per service port (`Stats`), per endpoint of it (`EndpointStats`) and per route (`RouteStats`): a call or two
each per request. Memory and series are bounded by the Table: what left it is forgotten after `RETENTION`.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import ClassVar

from mesh.dataplane.load import BOUNDS, ROUND_BOUNDS, EndpointLoad, PortLoad
from mesh.metrics import Family, Sample

RETENTION = 300.0
"""Seconds that an endpoint's series stay after it left: five scrapes of a minute, so that its last counts are seen."""


class Answers:
    """Requests that ended, by class of their status, and how long they took."""

    __slots__ = ("classes", "in_flight", "latency", "latency_sum")
    bounds: ClassVar[tuple[float, ...]] = ROUND_BOUNDS

    def __init__(self) -> None:
        self.in_flight = 0
        self.classes = [0] * 10  # by first digit of the status; 0: the client left before an answer
        self.latency = [0] * (len(self.bounds) + 1)
        self.latency_sum = 0.0

    def answered(self, status: int, seconds: float) -> None:
        """A request ended with `status` (0: its client left)."""
        self.classes[status // 100] += 1
        self.latency[bisect_left(self.bounds, seconds)] += 1
        self.latency_sum += seconds

    def refused(self, status: int) -> None:
        """A request was answered with `status` before it could be served: it counts, its time does not."""
        self.classes[status // 100] += 1


class Holds(Answers):
    """Those that waited for a service to start from zero, and for how long."""

    __slots__ = ("begun",)

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0

    def count(self, seconds: float) -> None:
        self.latency[bisect_left(self.bounds, seconds)] += 1
        self.latency_sum += seconds


class RouteStats(Answers):
    """What became of the requests of one route."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class EndpointStats(Answers):
    """What became of the tries at one endpoint: answered, or failed without an answer."""

    __slots__ = ("ejected", "ejections", "failures", "left", "told_count", "told_failures")

    def __init__(self) -> None:
        super().__init__()
        self.failures: dict[str, int] = {}  # of tries, by reason
        self.ejected = False
        self.ejections = 0
        self.left = 0.0  # when it left the Table, monotonic seconds; 0: it is there
        self.told_count = self.told_failures = 0

    def failed(self, reason: str) -> None:
        self.failures[reason] = self.failures.get(reason, 0) + 1

    def eject(self, ejected: bool) -> None:
        """It gets no traffic for its failures from now on, or does again."""
        self.ejections += ejected and not self.ejected
        self.ejected = ejected


class Stats(Answers):
    """What became of one service port's traffic."""

    __slots__ = (
        "_told", "begun", "bytes_in", "bytes_out", "connections", "endpoints", "failures", "handshakes", "held",
        "opened", "queued", "rate_limited", "retries",
    )  # fmt: skip
    bounds = BOUNDS

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0.0  # the sum of the times at which what is in flight began
        self.queued = 0  # of those in flight, and of connections: wait for their turn
        self.held: Holds | None = None  # once there was one
        self.rate_limited = 0
        self.connections = 0  # of clients, open now
        self.opened = 0
        self.bytes_in = 0  # from clients
        self.bytes_out = 0  # to clients
        self.retries = 0
        self.failures: dict[str, int] = {}  # of tries, by reason
        self.handshakes: dict[str, int] = {}  # of TLS, by result
        self.endpoints: dict[str, EndpointStats] = {}
        self._told = _Told()

    def begin(self, now: float) -> None:
        """A request has come; `now`: monotonic seconds."""
        self.in_flight += 1
        self.begun += now

    def end(self, began: float, now: float, status: int) -> None:
        """The request that came at `began` ended with `status` (0: its client left)."""
        self.in_flight -= 1
        self.begun = self.begun - began if self.in_flight else 0.0  # so that roundings do not add up
        seconds = now - began
        self.classes[status // 100] += 1  # as `answered`, without a call
        self.latency[bisect_left(BOUNDS, seconds)] += 1
        self.latency_sum += seconds

    def failed(self, reason: str) -> None:
        self.failures[reason] = self.failures.get(reason, 0) + 1

    def shook_hands(self, result: str) -> None:
        """A TLS handshake ended: `ok`, or why not."""
        self.handshakes[result] = self.handshakes.get(result, 0) + 1

    def hold(self) -> None:
        """One waits for the service to start from zero."""
        self.held = self.held or Holds()
        self.held.in_flight += 1
        self.held.begun += 1
        self.queued += 1

    def held_for(self, seconds: float) -> None:
        """One that waited for the start does so no more."""
        assert self.held is not None
        self.held.in_flight -= 1
        self.held.count(seconds)
        self.queued -= 1

    # ── endpoints

    def endpoint(self, id: str) -> EndpointStats:
        """Of the endpoint with this id; the same object as long as it is counted."""
        return self.endpoints.setdefault(id, EndpointStats())

    def keep(self, ids: Collection[str], now: float) -> None:
        """These endpoints are in the Table; the others are forgotten after a while."""
        for id, endpoint in self.endpoints.items():
            endpoint.left = 0.0 if id in ids else endpoint.left or now

    def forget(self, now: float) -> None:
        """Drops endpoints that left long ago."""
        for id in [id for id, each in self.endpoints.items() if each.left and now - each.left > RETENTION]:
            if not self.endpoints[id].in_flight:
                del self.endpoints[id]

    # ── the last seconds

    def busy(self, now: float) -> float:
        """Request-seconds up to now: the integral of the requests in flight.

        Exact, for two additions per request: what has ended took `latency_sum`, what is open has taken now - its start.
        """
        return self.latency_sum + self.in_flight * now - self.begun

    def take_load(self, service: str, port: str, now: float) -> PortLoad | None:
        """What came since the last call; None if nothing moved."""
        told = self._told
        gauges = (self.in_flight, self.queued, self.connections, self.opened, self.retries, self.latency_sum)
        if gauges == told.gauges and not self.in_flight:
            return None
        busy = self.busy(now)
        load = PortLoad(
            service,
            port,
            requests=sum(self.classes[1:]) - sum(told.classes[1:]),
            failures=sum(self.classes[5:]) - sum(told.classes[5:]),
            busy=max(busy - told.busy, 0.0),
            latency={
                index: count - before
                for index, (count, before) in enumerate(zip(self.latency, told.latency, strict=True))
                if count != before
            },
            retries=self.retries - told.retries,
            opened=self.opened - told.opened,
            endpoints=[*self._take_endpoints()],
            in_flight=self.in_flight,
            queued=self.queued,
            connections=self.connections,
            arrived=(arrived := sum(self.classes) + self.in_flight) - told.arrived,
        )
        told.gauges, told.arrived = gauges, arrived
        told.classes, told.latency = self.classes.copy(), self.latency.copy()
        told.busy, told.retries, told.opened = busy, self.retries, self.opened
        return load

    def _take_endpoints(self) -> Iterable[EndpointLoad]:
        for id, each in self.endpoints.items():
            without_answer = sum(each.failures.values())
            count, failures = sum(each.classes[1:]) + without_answer, sum(each.classes[5:]) + without_answer
            if each.in_flight or each.ejected or count != each.told_count or failures != each.told_failures:
                yield EndpointLoad(
                    id, count - each.told_count, failures - each.told_failures, each.in_flight, each.ejected
                )
                each.told_count, each.told_failures = count, failures


class _Told:
    """What was told of a Stats the last time."""

    __slots__ = ("arrived", "busy", "classes", "gauges", "latency", "opened", "retries")

    def __init__(self) -> None:
        self.gauges: tuple[float, ...] = (0, 0, 0, 0, 0, 0.0)
        self.classes = [0] * 10
        self.latency = [0] * (len(BOUNDS) + 1)
        self.busy = 0.0
        self.retries = self.opened = self.arrived = 0


# ── as metrics ───────────────────────────────────────────────────────────────────────────────

_Labels = dict[str, str]


def families(
    stats: Mapping[tuple[str, str], Stats], routes: Mapping[str, RouteStats], listeners: Mapping[str, Stats]
) -> list[Family]:
    """The metrics of all service ports, by (service, port), of routes, by name, and of their listeners, by address."""
    now = time.monotonic()
    for each in stats.values():
        each.forget(now)
    return [
        *_port_families(stats),
        *_endpoint_families(stats),
        *_route_families(routes),
        *_listener_families(listeners),
    ]


def _port_families(stats: Mapping[tuple[str, str], Stats]) -> Iterable[Family]:
    ports = [(each, {"service": service, "port": port}) for (service, port), each in stats.items()]

    def counter(name: str, help: str, samples: Callable[[Stats], Mapping[str, float]], label: str) -> Family:
        return _family("counter", name, help, (
            Sample(count, {**labels, label: key}) for each, labels in ports for key, count in samples(each).items()
        ))  # fmt: skip

    def single(kind: str, name: str, help: str, value: Callable[[Stats], float]) -> Family:
        return _family(kind, name, help, (Sample(value(each), labels) for each, labels in ports))

    yield _requests("requests", "HTTP requests, by class of the status (none: the client left).", ports)
    yield _seconds("request_seconds", "From a request's head to the end of its response.", ports)
    yield single("gauge", "in_flight", "HTTP requests being served, or waiting.", lambda each: each.in_flight)
    yield single("gauge", "queued", "Requests and connections waiting for their turn.", lambda each: each.queued)
    yield single("gauge", "connections", "Open client connections.", lambda each: each.connections)
    yield single("counter", "connections_opened", "Client connections accepted.", lambda each: each.opened)
    yield single("counter", "retries", "Further tries of requests and connections.", lambda each: each.retries)
    yield single("counter", "rate_limited", "Requests refused by a rate limit.", lambda each: each.rate_limited)
    yield counter("upstream_failures", "Failed tries, by reason.", lambda each: each.failures, "reason")
    yield counter("tls_handshakes", "TLS handshakes with clients, by result.", lambda each: each.handshakes, "result")
    yield counter("bytes", "Payload bytes: in from clients, out to clients.",
                  lambda each: {"in": each.bytes_in, "out": each.bytes_out}, "direction")  # fmt: skip
    held = [(each.held, labels) for each, labels in ports if each.held is not None]
    yield _family("gauge", "held", "Requests and connections waiting for a service to start from zero.",
                  (Sample(each.in_flight, labels) for each, labels in held))  # fmt: skip
    yield _family("counter", "holds", "Requests and connections that waited for a service to start from zero.",
                  (Sample(each.begun, labels) for each, labels in held))  # fmt: skip
    yield _family("histogram", "held_seconds", "How long they waited, served or not.",
                  (sample for each, labels in held for sample in _histogram(each, labels)))  # fmt: skip


def _endpoint_families(stats: Mapping[tuple[str, str], Stats]) -> Iterable[Family]:
    endpoints = [
        (endpoint, {"service": service, "port": port, "endpoint": id})
        for (service, port), each in stats.items()
        for id, endpoint in each.endpoints.items()
    ]
    present = [(each, labels) for each, labels in endpoints if not each.left]
    yield _requests("endpoint_requests", "Tries that an endpoint answered, by class of the status.", endpoints)
    yield _seconds("endpoint_request_seconds", "From a try's start to the end of the endpoint's response.", endpoints)
    yield _family("gauge", "endpoint_in_flight", "Tries at an endpoint under way.",
                  (Sample(each.in_flight, labels) for each, labels in present))  # fmt: skip
    yield _family("gauge", "endpoint_ejected", "Workers that send an endpoint nothing for its failures.",
                  (Sample(int(each.ejected), labels) for each, labels in present))  # fmt: skip
    yield _family("counter", "endpoint_ejections", "Times an endpoint was taken out for its failures.",
                  (Sample(each.ejections, labels) for each, labels in endpoints))  # fmt: skip
    yield _family("counter", "endpoint_failures", "Failed tries at an endpoint, by reason.", (
        Sample(count, {**labels, "reason": reason})
        for each, labels in endpoints for reason, count in each.failures.items()
    ))  # fmt: skip


def _route_families(routes: Mapping[str, RouteStats]) -> Iterable[Family]:
    counted = [(each, {"route": name}) for name, each in routes.items()]
    yield _requests("route_requests", "HTTP requests of a route, by class of the status.", counted)
    yield _seconds("route_request_seconds", "From a request's head to the end of its response.", counted)
    yield _family("gauge", "route_in_flight", "HTTP requests of a route being served, or waiting.",
                  (Sample(each.in_flight, labels) for each, labels in counted))  # fmt: skip


def _listener_families(listeners: Mapping[str, Stats]) -> Iterable[Family]:
    """What is counted before it is known which service a client wants."""
    counted = [(each, {"listen": address}) for address, each in listeners.items()]
    yield _family("gauge", "route_connections", "Open client connections of routes.",
                  (Sample(each.connections, labels) for each, labels in counted))  # fmt: skip
    yield _family("counter", "route_connections_opened", "Client connections of routes accepted.",
                  (Sample(each.opened, labels) for each, labels in counted))  # fmt: skip
    yield _requests("route_refused", "Requests that no route took, or that were not well formed, by class.", counted)
    yield _family("counter", "route_tls_handshakes", "TLS handshakes of routes, by result.", (
        Sample(count, {**labels, "result": result})
        for each, labels in counted for result, count in each.handshakes.items()
    ))  # fmt: skip


def _family(kind: str, name: str, help: str, samples: Iterable[Sample]) -> Family:
    return Family(f"mesh_proxy_{name}", help, kind, [*samples])  # type: ignore[arg-type]


def _requests(name: str, help: str, counted: Iterable[tuple[Answers, _Labels]]) -> Family:
    return _family("counter", name, help, (
        Sample(count, {**labels, "code": f"{digit}xx" if digit else "none"})
        for each, labels in counted for digit, count in enumerate(each.classes) if count
    ))  # fmt: skip


def _seconds(name: str, help: str, counted: Iterable[tuple[Answers, _Labels]]) -> Family:
    return _family("histogram", name, help, (
        sample for each, labels in counted if any(each.classes) for sample in _histogram(each, labels)
    ))  # fmt: skip


def _histogram(answers: Answers, labels: _Labels) -> Iterable[Sample]:
    total, first = 0, 0
    for bound in ROUND_BOUNDS:
        end = answers.bounds.index(bound) + 1
        total += sum(answers.latency[first:end])
        first = end
        yield Sample(total, {**labels, "le": str(bound)}, "_bucket")
    total += sum(answers.latency[first:])
    yield Sample(total, {**labels, "le": "+Inf"}, "_bucket")
    yield Sample(answers.latency_sum, labels, "_sum")
    yield Sample(total, labels, "_count")
