"""Counting without a library call on the hot path: plain integers per service port, shown as families on demand."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping

from mesh.metrics import Family, Sample

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the latency histogram, seconds."""


class Stats:
    """What became of one service port's traffic."""

    __slots__ = (
        "bytes_in", "bytes_out", "classes", "connections", "failures", "in_flight", "latency", "latency_sum", "opened",
        "retries",
    )  # fmt: skip

    def __init__(self) -> None:
        self.classes = [0] * 6  # by first digit of the status; 0: the client left before an answer
        self.latency = [0] * (len(BUCKETS) + 1)
        self.latency_sum = 0.0
        self.in_flight = 0
        self.connections = 0  # of clients, open now
        self.opened = 0
        self.bytes_in = 0  # from clients
        self.bytes_out = 0  # to clients
        self.retries = 0
        self.failures: dict[str, int] = {}  # of tries, by reason

    def answered(self, status: int, seconds: float) -> None:
        """A request ended with `status` (0: its client left)."""
        self.classes[status // 100 if status < 600 else 5] += 1
        self.latency[bisect_left(BUCKETS, seconds)] += 1
        self.latency_sum += seconds

    def failed(self, reason: str) -> None:
        self.failures[reason] = self.failures.get(reason, 0) + 1


def families(stats: Mapping[tuple[str, str], Stats]) -> list[Family]:
    """The metrics of all service ports; keys are (service, port)."""
    all_of = [(each, {"service": service, "port": port}) for (service, port), each in stats.items()]

    def single(name: str) -> Iterable[Sample]:
        return (Sample(getattr(each, name), labels) for each, labels in all_of)

    return [
        Family("mesh_proxy_requests", "HTTP requests, by class of the status (none: the client left).", "counter", [
            Sample(count, {**labels, "code": f"{digit}xx" if digit else "none"})
            for each, labels in all_of for digit, count in enumerate(each.classes) if count
        ]),
        Family("mesh_proxy_request_seconds", "From a request's head to the end of its response.", "histogram", [
            sample for each, labels in all_of if any(each.latency) for sample in _histogram(each, labels)
        ]),
        Family("mesh_proxy_in_flight", "HTTP requests being served.", "gauge", [*single("in_flight")]),
        Family("mesh_proxy_connections", "Open client connections.", "gauge", [*single("connections")]),
        Family("mesh_proxy_connections_opened", "Client connections accepted.", "counter", [*single("opened")]),
        Family("mesh_proxy_retries", "Further tries of requests and connections.", "counter", [*single("retries")]),
        Family("mesh_proxy_upstream_failures", "Failed tries, by reason.", "counter", [
            Sample(count, {**labels, "reason": reason})
            for each, labels in all_of for reason, count in each.failures.items()
        ]),
        Family("mesh_proxy_bytes", "Payload bytes: in from clients, out to clients.", "counter", [
            Sample(count, {**labels, "direction": direction})
            for each, labels in all_of for direction, count in (("in", each.bytes_in), ("out", each.bytes_out))
        ]),
    ]  # fmt: skip


def _histogram(stats: Stats, labels: dict[str, str]) -> Iterable[Sample]:
    total = 0
    for bound, count in zip((*BUCKETS, float("inf")), stats.latency, strict=True):
        total += count
        yield Sample(total, {**labels, "le": "+Inf" if bound == float("inf") else str(bound)}, "_bucket")
    yield Sample(stats.latency_sum, labels, "_sum")
    yield Sample(total, labels, "_count")
