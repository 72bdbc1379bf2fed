"""What services are asked for, added up over the nodes: pure, time is an argument (monotonic seconds of the leader).

An agent counts from its start, so two answers tell exactly what came between. A node that is silent, or late, makes
what is known a part only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from mesh.dataplane.load import EndpointReport, LoadReport, ReplicaUsage, ServiceReport, Total

STALE = 3.0
"""Seconds for which an answer stands for what a node carries."""

Protocols = Callable[[str], Mapping[str, str] | None]
"""`http`, `tcp` or `udp` by a service's port; None for a service that does not matter."""


class Carried(NamedTuple):
    """What is carried for a service. A connection of TCP counts as a request does that lasts as long."""

    in_flight: float = 0.0  # average since the answer before, with those that wait
    requests: float = 0.0  # that came, per second
    traffic: float = 0.0  # that came since the answer before, or are under way
    queued: int = 0


@dataclass(slots=True)
class _Node:
    """One node: its counters at its last answer, and what they tell."""

    heard: float = -STALE
    told: float = 0.0  # the node's own time of that answer; 0: there was none
    totals: dict[tuple[str, str], Total] = field(default_factory=dict)
    carried: dict[str, Carried] = field(default_factory=dict)
    endpoints: dict[str, Mapping[str, EndpointReport]] = field(default_factory=dict)
    usage: Mapping[str, ReplicaUsage] = field(default_factory=dict)

    def take(self, report: LoadReport, protocols: Protocols, now: float) -> None:
        """The next answer. Of services that it leaves out, nothing has come."""
        seconds = report.time - self.told if self.told else 0.0
        self.carried, self.endpoints = {}, {}
        for name, service in report.services.items():
            if (by_port := protocols(name)) is not None:
                self.carried[name] = self._carried(name, service, by_port, seconds)
                self.endpoints[name] = service.endpoints
        for name, service in report.services.items():
            self.totals.update(((name, port), load.total) for port, load in service.ports.items())
        self.heard, self.told, self.usage = now, report.time, report.usage

    def _carried(self, name: str, service: ServiceReport, protocols: Mapping[str, str], seconds: float) -> Carried:
        in_flight = requests = traffic = 0.0
        for port, load in service.ports.items():
            is_http = protocols.get(port, "http") == "http"
            before = self.totals.get((name, port), Total())
            came = _since(before, load.total)
            arrived = came.requests if is_http else came.connections
            open_now = load.in_flight_now if is_http else load.connections
            if seconds > 0:
                requests += arrived / seconds
                in_flight += came.busy / seconds if is_http else open_now
            else:  # the first answer: what it says of the last ten seconds must do
                arrived = 0
                requests += load.rps if is_http else load.connection_rate
                in_flight += load.in_flight if is_http else open_now
            traffic += arrived + open_now
        return Carried(in_flight, requests, traffic, service.queued)


def _since(before: Total, now: Total) -> Total:
    """What came; an agent that was restarted counts anew."""
    if now.requests < before.requests or now.busy < before.busy or now.connections < before.connections:
        return now
    return Total(
        requests=now.requests - before.requests,
        busy=now.busy - before.busy,
        connections=now.connections - before.connections,
    )


class Demand:
    """What the last answers of all nodes tell."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}

    def expect(self, nodes: Collection[str]) -> None:
        """These, and no others, carry something."""
        self._nodes = {name: self._nodes.get(name) or _Node() for name in sorted(nodes)}

    def take(self, node: str, report: LoadReport, protocols: Protocols, now: float) -> None:
        """A node's answer."""
        if node in self._nodes:
            self._nodes[node].take(report, protocols, now)

    def silent(self, now: float) -> tuple[str, ...]:
        """Nodes of which nothing recent is known."""
        return tuple(name for name, node in self._nodes.items() if now - node.heard >= STALE)

    @property
    def active(self) -> set[str]:
        """Services that carry something, or did a moment ago."""
        return {name for node in self._nodes.values() for name in node.carried}

    def of(self, service: str, now: float) -> Carried:
        """What all nodes that are known carry for it."""
        parts = [node.carried[service] for node in self._fresh(now) if service in node.carried]
        return Carried(*map(sum, zip(*parts, strict=True))) if parts else Carried()

    def of_endpoint(self, service: str, id: str, now: float) -> tuple[float, float]:
        """What one replica has in flight, and gets per second."""
        parts = [known for node in self._fresh(now) if (known := node.endpoints.get(service, {}).get(id))]
        return float(sum(part.in_flight_now for part in parts)), sum(part.rps for part in parts)

    def usage(self, node: str, id: str, now: float) -> ReplicaUsage | None:
        """What a replica uses, as its own node tells."""
        known = self._nodes.get(node)
        return known.usage.get(id) if known and now - known.heard < STALE else None

    def _fresh(self, now: float) -> Iterable[_Node]:
        return (node for node in self._nodes.values() if now - node.heard < STALE)
