"""The proxy as one data plane: listeners and backends kept as the Table says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from mesh.aio import Tasks
from mesh.metrics import Family
from mesh.proxy import stats
from mesh.proxy.backend import Backend
from mesh.proxy.context import Context
from mesh.proxy.http1 import Request
from mesh.proxy.l4 import TcpSession
from mesh.proxy.l7 import ClientConnection
from mesh.proxy.listener import Listeners
from mesh.table import Table, TableDelta, TablePort, TableService

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""Between two attempts to open listeners that could not be opened."""
CLOSE_SECONDS = 5.0
"""For open requests and connections when the proxy is told to stop."""


class ServiceSite:
    """A service port's own listener: every request goes to that service."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def backend_for(self, request: Request) -> Backend | None:
        return self._backend

    def connected(self, change: int) -> None:
        self._backend.stats.connections += change
        self._backend.stats.opened += change > 0


class ProxyServer:
    """Proxies every service port of a Table. `node`: this host's name, for choices that prefer what is near.

    Args:
        trust: networks whose X-Forwarded-… fields are believed and added to (default: nobody's).
    """

    def __init__(self, *, node: str | None = None, trust: Sequence[str] = ()) -> None:
        self.node = node
        self._trust = trust
        self._backends: dict[tuple[str, str], Backend] = {}
        self._unserved: list[str] = []
        self._tasks = Tasks()

    async def start(self) -> None:
        """Listeners come with the Table; nothing is opened before."""
        loop = asyncio.get_running_loop()
        self._context = Context(loop, self._trust)
        self._listeners = Listeners(loop)
        self._lock = asyncio.Lock()
        self._tasks.spawn(self._retry_listeners(), "retry listeners")

    async def update(self, table: Table, delta: TableDelta | None) -> None:
        """Serves `table` from now on. When it returns, what left the Table gets no new request or connection."""
        known = {service for service, _ in self._backends}
        for name in table.services.keys() | known if delta is None else delta.services:
            self._update_service(name, table.services.get(name))
        async with self._lock:
            await self._listeners.update(self._wanted(table))

    def _update_service(self, name: str, service: TableService | None) -> None:
        ports = service.ports if service is not None else {}
        for port in ports:
            self._backends.setdefault((name, port), Backend(name, port)).update(service)
        for key in [key for key in self._backends if key[0] == name and key[1] not in ports]:
            self._backends.pop(key).update(None)

    def _wanted(self, table: Table) -> dict[str, tuple[str, Callable[[], asyncio.Protocol]]]:
        """What to listen on. Nothing for services that have neither a VIP nor a `listen`."""
        wanted: dict[str, tuple[str, Callable[[], asyncio.Protocol]]] = {}
        self._unserved = []
        for name, service in table.services.items():
            for port_name, port in service.ports.items():
                where = f"{name}.{port_name}"
                address = port.listen or (f"{service.vip}:{port.port}" if service.vip else None)
                if port.protocol == "udp":
                    self._unserved.append(f"{where}: udp is not served yet")
                elif address is not None:
                    wanted[where] = (address, self._factory(self._backends[name, port_name], port))
        return wanted

    def _factory(self, backend: Backend, port: TablePort) -> Callable[[], asyncio.Protocol]:
        context = self._context
        if port.protocol == "http":
            site = ServiceSite(backend)
            return lambda: ClientConnection(site, context)
        return lambda: TcpSession(backend, context)

    async def _retry_listeners(self) -> None:
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            async with self._lock:
                await self._listeners.retry()

    def problems(self) -> list[str]:
        settings = [f"{backend.name}: traffic.{problem}"
                    for backend in self._backends.values() for problem in backend.problems]  # fmt: skip
        return self._listeners.problems() + self._unserved + settings

    def metrics(self) -> list[Family]:
        return stats.families({key: backend.stats for key, backend in self._backends.items()})

    async def close(self) -> None:
        """Accepts no more, lets open work end within a few seconds, closes."""
        context = self._context
        context.closing = True
        await self._tasks.close()
        await self._listeners.close()
        for client in list(context.clients):
            client.close_when_idle()
        await context.emptied(CLOSE_SECONDS)
        for client in list(context.clients):
            client.transport.abort()
        for session in list(context.sessions):
            session.end(reset=True)
        for backend in self._backends.values():
            backend.close()
        await context.tasks.close()
        context.wheel.close()
