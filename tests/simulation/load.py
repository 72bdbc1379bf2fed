"""What services are asked for, and how the leader hears of it: all clients come in at the first node, come what may."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mesh.autoscaling.agents import Silent
from mesh.dataplane.load import Load, LoadReport, ServiceReport, Total
from mesh.dataplane.waiting import WaitingBoard, WaitingReport

if TYPE_CHECKING:
    from tests.simulation.cluster import Cluster

GATE = "n1"
PORT = "http"
WINDOW = 10.0
WAIT = 30.0


class Requests:
    """In flight, by service; each takes a second."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._in_flight: dict[str, float] = {}
        self._busy: dict[str, float] = {}
        self._since = cluster.loop.time()
        self._offered: Collection[str] = ()
        self._board = WaitingBoard()

    def offered(self, services: Collection[str]) -> None:
        """The gate's data plane has endpoints for these from now on."""
        self._offered = services
        self._hold()

    def change(self, service: str, in_flight: float) -> None:
        self._count()
        self._in_flight[service] = in_flight
        self._hold()

    async def ask(self, _: object, node: str, admin: str, query: str = "") -> LoadReport | Silent:
        """Stands for `mesh.autoscaling.agents.ask`."""
        del admin, query
        await asyncio.sleep(2 * self._cluster.peers.trip())
        if not self._answers(node):
            return Silent(node=node, problem="it does not answer")
        self._count()
        services = {service: self._report(service) for service in self._in_flight} if node == GATE else {}
        return LoadReport(node=node, time=time.time(), window=WINDOW, services=services)

    async def waiting(self, admin: str, since: str) -> WaitingReport:
        """Stands for a question of `mesh.autoscaling.waiting`; `since`: empty, or `&since=<version>`."""
        node = urlsplit(admin).hostname or ""
        await asyncio.sleep(2 * self._cluster.peers.trip())
        if not self._answers(node):
            raise TimeoutError
        if node != GATE:
            await asyncio.sleep(WAIT)
            return WaitingReport(1, {})
        return await self._board.report(int(since.rpartition("=")[2]) if since else None, WAIT)

    def _answers(self, node: str) -> bool:
        host = self._cluster.hosts[node]
        return host.process is not None and not (host.process.dead or host.process.paused or host.cable.mute)

    def _hold(self) -> None:
        """Requests of services without a replica are held."""
        held = {
            service: round(load) for service, load in self._in_flight.items() if load and service not in self._offered
        }
        self._board.told("proxy", held)

    def _report(self, service: str) -> ServiceReport:
        now, busy = self._in_flight[service], self._busy[service]
        total = Total(requests=round(busy), busy=busy)
        load = Load(rps=now, in_flight=now, in_flight_now=round(now), total=total)
        return ServiceReport(rps=now, in_flight=now, in_flight_now=round(now), total=total, ports={PORT: load})

    def _count(self) -> None:
        now = self._cluster.loop.time()
        for service, in_flight in self._in_flight.items():
            self._busy[service] = self._busy.get(service, 0.0) + in_flight * (now - self._since)
        self._since = now
