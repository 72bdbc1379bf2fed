"""The proxy as one data plane: listeners and backends kept as the Table says."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mesh.aio import Tasks
from mesh.dataplane.load import PortLoad
from mesh.metrics import Family
from mesh.proxy.access_log import AccessLog, log_families
from mesh.proxy.arrival import expect_proxy_header
from mesh.proxy.backend import Backend
from mesh.proxy.context import Context
from mesh.proxy.gateway import Gateway, open_http
from mesh.proxy.l4 import serve_tcp
from mesh.proxy.listener import Listeners, Open, Wanted, serve_sockets
from mesh.proxy.opening import STEP
from mesh.proxy.site import ServiceSite, Subset
from mesh.proxy.stats import RouteStats, families
from mesh.proxy.tls import Keyring
from mesh.proxy.udp import serve_datagrams
from mesh.proxy.waiting import Herald, Tell
from mesh.table import ProxyProtocol, Table, TableDelta, TablePort, TableRoute, TableService, TableTls

RETRY_SECONDS = 1.0
"""Between two attempts to open listeners that could not be opened."""
CLOSE_SECONDS = 5.0
"""For open requests and connections when the proxy is told to stop."""


MAX_OPEN_FILES = 2**20


class ProxyServer:
    """Proxies every service port and route of a Table. `node`: this host's name, for choices that prefer what is near.

    Args:
        trust: networks whose X-Forwarded-… fields are believed and added to (default: nobody's).
        access_log: where to log requests and sessions (default: nowhere).
    """

    def __init__(
        self, *, node: str | None = None, trust: Sequence[str] = (), access_log: AccessLog | None = None
    ) -> None:
        self.node = node
        self._context = Context(trust, access_log)
        self._listeners = Listeners()
        self._lock = asyncio.Lock()
        self._backends: dict[tuple[str, str], Backend] = {}
        self._subsets: dict[Subset, Backend] = {}
        self._gateways: dict[str, Gateway] = {}  # by address
        self._keyring = Keyring()
        self._herald: Herald | None = None
        self._opening: set[Backend] = set()
        self._tasks = Tasks()

    async def start(self) -> None:
        """Listeners come with the Table; nothing is opened before."""
        allow_open_files()
        self._tasks.spawn(self._look_again(), "look again")

    async def update(self, table: Table, delta: TableDelta | None) -> None:
        """Serves `table` from now on. When it returns, what left the Table gets no new request or connection."""
        known = {service for service, _ in self._backends}
        changed: list[Backend] = []
        for name in table.services.keys() | known if delta is None else delta.services:
            changed += self._update_service(name, table.services.get(name))
        if delta is None or delta.routes:
            self._update_routes(table.routes)
        if delta is None or delta.routes or delta.services:
            self._update_subsets(table)
        for backend in changed:
            backend.settle()
        self._open_gates(changed)
        if not self._context.closing:
            async with self._lock:
                await self._listeners.update(self._wanted(table))

    def adopt(self, descriptors: Mapping[str, int]) -> None:
        """Listening sockets of a predecessor, by their places: the first `update` uses those it wants."""
        self._listeners.adopt(descriptors)

    def export(self) -> dict[str, int]:
        """The descriptors of all listening sockets, by their places."""
        return self._listeners.export()

    def _open_gates(self, backends: Iterable[Backend]) -> None:
        """Bit by bit, of those that open."""
        opening = {backend for backend in backends if backend.opening is not None}
        if opening and not self._opening:
            self._tasks.spawn(self._open_further(), "open gates")
        self._opening |= opening

    async def _open_further(self) -> None:
        while self._opening:
            await asyncio.sleep(STEP)
            for backend in self._opening:
                backend.open_further()
            self._opening = {backend for backend in self._opening if backend.opening is not None}

    def _update_service(self, name: str, service: TableService | None) -> Iterator[Backend]:
        """The backends of its ports, those that are gone included."""
        ports = service.ports if service is not None else {}
        for port in ports:
            backend = self._backends.setdefault((name, port), Backend(name, port))
            backend.update(service, self.node)
            yield backend
        for key in [key for key in self._backends if key[0] == name and key[1] not in ports]:
            backend = self._backends.pop(key)
            backend.update(None)
            yield backend

    def _update_routes(self, routes: Mapping[str, TableRoute]) -> None:
        by_address = _routes_by_address(routes)
        old = self._gateways
        self._gateways = {address: old.get(address) or Gateway(address, self._context) for address in by_address}
        for address, those in by_address.items():
            self._gateways[address].update(those)
        for address in old.keys() - by_address.keys():  # connections are still open there
            old[address].update({})
        self._keyring.update({name: route.tls for name, route in routes.items() if isinstance(route.tls, TableTls)})
        self._show_certificates()

    def give_secrets(self, secrets: Mapping[str, str]) -> None:
        """The values of the mesh's secrets that the Table's routes name; they may come before it or after."""
        if self._keyring.give_secrets(secrets):
            self._show_certificates()

    def _show_certificates(self) -> None:
        for gateway in self._gateways.values():
            gateway.show(self._keyring)

    def _update_subsets(self, table: Table) -> None:
        """Those endpoints of services that rules tell apart by tag, and the way of each rule to its services."""
        old, self._subsets = self._subsets, {}
        for subset in {subset for gateway in self._gateways.values() for subset in gateway.subsets}:
            whole = self._backends.get((subset.service, subset.port))
            if whole is not None and (subset.tag is not None or subset.without):
                backend = old.pop(subset, None) or Backend(
                    subset.service, subset.port, subset.tag, whole, subset.without
                )
                self._subsets[subset] = backend
                backend.update(table.services[subset.service], self.node)
        for backend in old.values():
            backend.update(None)
        for gateway in self._gateways.values():
            gateway.follow(self._backend_of)

    def _backend_of(self, subset: Subset) -> Backend | None:
        return self._subsets.get(subset) or self._backends.get((subset.service, subset.port))

    def _wanted(self, table: Table) -> dict[str, Wanted]:
        """What to listen on. Nothing for services that have neither a VIP nor a `listen`."""
        wanted: dict[str, Wanted] = {}
        for name, service in table.services.items():
            for port_name, port in service.ports.items():
                if address := port.listen or (f"{service.vip}:{port.port}" if service.vip else None):
                    backend = self._backends[name, port_name]
                    wanted[backend.name] = Wanted(address, _kind(port), self._serve(backend, port))
        for address, routes in _routes_by_address(table.routes).items():
            names = ", ".join(f"route {name}" for name in routes)
            wanted[names] = self._gateways[address].wanted()
        return wanted

    def _serve(self, backend: Backend, port: TablePort) -> Open:
        if port.protocol == "udp":
            return serve_datagrams(backend, self._context)
        proxied = port.proxy_protocol.accept
        if port.protocol == "tcp":
            serve = serve_tcp(backend, self._context, port.proxy_protocol.send)
            return serve_sockets(expect_proxy_header(serve, self._context, backend.stats.failed) if proxied else serve)
        return open_http(ServiceSite(backend), self._context, proxied=proxied)

    async def _look_again(self) -> None:
        """At what could not be opened, and at certificates in files."""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            if self._keyring.reload():
                self._show_certificates()
            async with self._lock:
                await self._listeners.retry()

    def tell_waiting(self, tell: Tell) -> None:
        self._herald = Herald(self._context.waiting, tell)

    def problems(self) -> list[str]:
        settings = [f"{backend.name}: traffic.{problem}"
                    for backend in self._backends.values() for problem in backend.problems]  # fmt: skip
        routes = [problem for gateway in self._gateways.values() for problem in gateway.problems()]
        routes += self._keyring.problems(time.time())
        log = self._context.access_log
        return self._listeners.problems() + settings + routes + ([log.problem] if log and log.problem else [])

    def _route_stats(self) -> dict[str, RouteStats]:
        return {name: stats for gateway in self._gateways.values()
                for name, stats in gateway.site.routes.items()}  # fmt: skip

    def metrics(self) -> list[Family]:
        counted = {key: backend.stats for key, backend in self._backends.items()}
        listeners = {address: gateway.site.stats for address, gateway in self._gateways.items()}
        return families(counted, self._route_stats(), listeners) + log_families(self._context.access_log)

    def loads(self) -> list[PortLoad]:
        """What came since the last call."""
        now = time.monotonic()
        loads = (backend.stats.take_load(*key, now) for key, backend in self._backends.items())
        return [load for load in loads if load is not None]

    async def close(self, seconds: float = CLOSE_SECONDS, *, shared: bool = False) -> None:
        """Accepts no more, lets open work end within that time, closes.

        shared: another worker has the listening sockets. Then clients see no end: an idle connection stays open for
        their next request, whose response says that it is the last, and is closed only when they seem to rest.
        """
        context = self._context
        context.close_soon(gently=shared)
        await self._tasks.close()
        self._listeners.close(shared=shared)
        for client in list(context.clients):
            client.close_when_idle()
        await context.emptied(seconds)
        for client in list(context.clients):
            client.transport.abort()
        for arrival in list(context.arrivals):
            arrival.end()
        for datagrams in list(context.datagrams):
            datagrams.end()
        for session in list(context.sessions):
            session.end(reset=True, reason="drained")
        for backend in [*self._backends.values(), *self._subsets.values()]:
            backend.close()
        await context.tasks.close()
        context.wheel.close()
        context.hangups.close()
        if self._herald is not None:
            self._herald.close()
        context.pipes.close()
        if context.access_log is not None:
            await context.access_log.close()


def _kind(port: TablePort) -> str:
    """A port of another kind is listened on anew."""
    told = port.proxy_protocol
    return port.protocol if told == ProxyProtocol() else f"{port.protocol} accept={told.accept} send={told.send}"


def allow_open_files() -> None:
    """Raises this process's limit of open files as far as it may: two per connection are needed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _routes_by_address(routes: Mapping[str, TableRoute]) -> dict[str, dict[str, TableRoute]]:
    """Routes that share a listener are one set of rules."""
    by_address: dict[str, dict[str, TableRoute]] = {}
    for name, route in sorted(routes.items()):
        by_address.setdefault(route.listen, {})[name] = route
    return by_address
