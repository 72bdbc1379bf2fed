"""The DNS server of a mesh: UDP and TCP on several addresses, answers from the Table, the rest forwarded."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from mesh.aio import Tasks
from mesh.dns import sockets
from mesh.dns.counters import Counters
from mesh.dns.forward import Forwarder
from mesh.dns.message import HEADER, QR, RD
from mesh.dns.tcp import Outcome, TcpConnection, TcpConnections
from mesh.dns.udp import UdpListener
from mesh.dns.wire import Forward, Reply, Transport, refuse, respond
from mesh.dns.zone import REFUSED, SERVFAIL, Zone
from mesh.metrics import Family, Sample
from mesh.table import Table, TableDelta

log = logging.getLogger(__name__)

DEFAULT_ALLOW = ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16",
                 "100.64.0.0/10", "::1/128", "fc00::/7", "fe80::/10")  # fmt: skip
"""Who may have names of others looked up: private networks and this host."""


class DnsServer:
    """A `DataPlane` (see `mesh/plane.py`).

    listen: `ADDR:PORT`s, each for UDP and TCP; port 0 takes a free one (see `addresses`).
    upstreams: servers for all other names; none: those of /etc/resolv.conf.
    forward: whether other names are forwarded at all. allow: networks of the clients that may have them.
    node: the node that this server runs on, whose address the NS record's name has.
    """

    def __init__(
        self,
        listen: Sequence[str],
        *,
        upstreams: Sequence[str] = (),
        forward: bool = True,
        allow: Sequence[str] = DEFAULT_ALLOW,
        node: str | None = None,
    ) -> None:
        self._listen = [sockets.parse_address(address) for address in listen]
        self._node = node
        self._zone: Zone | None = None
        self._updated = time.monotonic()
        self._problem = ""
        self._counters = Counters()
        self._forwarder = Forwarder(upstreams, allow, self._counters, lambda: self.addresses) if forward else None
        self._connections = TcpConnections(self._handle_tcp)
        self._udp: list[UdpListener] = []
        self._tcp: list[asyncio.Server] = []
        self._tasks = Tasks()
        self.addresses: list[tuple[str, int]] = []
        """Where the server listens, once started."""

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            for host, port in self._listen:
                udp, tcp = sockets.open_pair(host, port)
                self._udp.append(UdpListener(udp, self._handle_udp, self._counters))
                self._tcp.append(await loop.create_server(lambda: TcpConnection(self._connections), sock=tcp))
                self.addresses.append(udp.getsockname()[:2])
        except OSError:
            await self.close()
            raise
        self._tasks.spawn(self._close_idle_connections(), "dns idle connections")

    async def update(self, table: Table, delta: TableDelta | None) -> None:
        try:
            if self._zone is None:
                self._zone = Zone(table, self._node)
            else:
                self._zone.update(table, delta)
        except ValueError as error:  # a Table that cannot be: the last good one stays
            self._problem = f"dns: table {table.index} is not in use: {error}"
            return
        self._problem = ""
        self._updated = time.monotonic()

    def problems(self) -> list[str]:
        return [self._problem] if self._problem else []

    def metrics(self) -> list[Family]:
        worker = {"worker": str(os.getpid())}
        index = self._zone.table.index if self._zone else 0
        self._counters.connections = len(self._connections)
        return [
            *self._counters.families(),
            Family("mesh_dns_table_index", "Index of the Table in use.", "gauge", [Sample(index, worker)]),
            Family("mesh_dns_table_age_seconds", "Time since the Table last changed.", "gauge",
                   [Sample(time.monotonic() - self._updated, worker)]),
        ]  # fmt: skip

    async def close(self) -> None:
        for listener in self._udp:
            listener.close()
        for server in self._tcp:
            server.close()
        self._connections.close()
        await self._tasks.close()
        if self._forwarder:
            await self._forwarder.close()

    def _handle_udp(self, data: bytes, client: str) -> Outcome:
        return self._handle(data, Transport.UDP, client)

    def _handle_tcp(self, data: bytes, client: str) -> Outcome:
        return self._handle(data, Transport.TCP, client)

    def _handle(self, data: bytes, transport: Transport, client: str) -> Outcome:
        started = time.perf_counter()
        try:
            reply = respond(data, transport, self._zone, recursion=self._forwarder is not None)
        except Exception:  # whatever came, the next client is served
            log.exception("cannot answer a query of %s: %s", client, data[:300].hex())
            reply = _failure(data)
        if reply is None:
            self._counters.drops["not-a-query"] += 1
            return None
        if isinstance(reply, Forward):
            if self._forwarder is None:
                return self._finish(refuse(reply.query, REFUSED), transport, started)
            resolved = self._forwarder.resolve(reply.query, transport, client)
            if not isinstance(resolved, Reply):
                return self._tasks.spawn(self._finish_later(resolved, transport, started), "dns forward")
            reply = resolved
        return self._finish(reply, transport, started)

    async def _finish_later(self, resolved: Coroutine[Any, Any, Reply], transport: Transport, started: float) -> bytes:
        return self._finish(await resolved, transport, started)

    def _finish(self, reply: Reply, transport: Transport, started: float) -> bytes:
        packet = reply.packet
        self._counters.truncated += packet[2] >> 1 & 1
        self._counters.answered(transport.value, reply.qtype, reply.rcode, time.perf_counter() - started)
        return packet

    async def _close_idle_connections(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._connections.close_idle(asyncio.get_running_loop().time())


def _failure(data: bytes) -> Reply:
    query_id, flags, *_ = HEADER.unpack_from(data)
    return Reply(HEADER.pack(query_id, QR | flags & RD | SERVFAIL, 0, 0, 0, 0), SERVFAIL)
