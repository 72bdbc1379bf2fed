"""The DNS server of a mesh: UDP and TCP on several addresses, answers from the Table, the rest forwarded."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from mesh.aio import Tasks
from mesh.dataplane.load import PortLoad
from mesh.dns import sockets
from mesh.dns.clients import Networks, RateLimit
from mesh.dns.cookies import Cookies
from mesh.dns.counters import Cell, Counters
from mesh.dns.forward import Forwarder
from mesh.dns.message import Malformed, read_query
from mesh.dns.packets import Packets
from mesh.dns.tcp import Outcome, TcpConnection, TcpConnections
from mesh.dns.udp import UdpListener
from mesh.dns.wire import Forward, Reply, Transport, ask_by_tcp, bare_reply, refuse, respond
from mesh.dns.zone import REFUSED, SERVFAIL, Zone
from mesh.metrics import Family, Sample
from mesh.table import Table, TableDelta

log = logging.getLogger(__name__)

REST = 1.0
"""Seconds without a query after which a TCP connection may be closed while its worker is replaced."""

DEFAULT_ALLOW = ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16",
                 "100.64.0.0/10", "::1/128", "fc00::/7", "fe80::/10")  # fmt: skip
"""Who may have names of others looked up: private networks and this host."""


class DnsServer:
    """A `DataPlane` (see `mesh/dataplane/plane.py`).

    listen: `ADDR:PORT`s, each for UDP and TCP; port 0 takes a free one (see `addresses`).
    upstreams: servers for all other names; none: those of /etc/resolv.conf.
    forward: whether other names are forwarded at all. allow: networks of the clients that may have them.
    node: the node that this server runs on, whose address the NS record's name has.
    secret: what the cookies are made from, the same in all processes that share a port.
    """

    def __init__(
        self,
        listen: Sequence[str],
        *,
        upstreams: Sequence[str] = (),
        forward: bool = True,
        allow: Sequence[str] = DEFAULT_ALLOW,
        node: str | None = None,
        secret: bytes | None = None,
    ) -> None:
        self._listen = [sockets.parse_address(address) for address in listen]
        self._node = node
        self._zone: Zone | None = None
        self._updated = time.monotonic()
        self._problem = ""
        self._next_report = 0.0
        self._counters = Counters()
        served = Networks(allow)
        self._forwarder = Forwarder(upstreams, served, self._counters, lambda: self.addresses) if forward else None
        self._limit = RateLimit(served)
        self._cookies = Cookies(secret)
        self._connections = TcpConnections(self._answer_tcp)
        self._udp_packets, self._tcp_packets = Packets(), Packets(size=4 << 20)
        self._udp: list[UdpListener] = []
        self._tcp: list[asyncio.Server] = []
        self._sockets: dict[str, socket.socket] = {}  # by place
        self._inherited: dict[str, socket.socket] = {}
        self._tasks = Tasks()
        self._idle_watch: asyncio.Task[None] | None = None
        self.addresses: list[tuple[str, int]] = []
        """Where the server listens, once started."""

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            for host, port in self._listen:
                udp, tcp = self._open(host, port)
                self._udp.append(UdpListener(udp, self._answer_udp, self._counters))
                self._tcp.append(await loop.create_server(lambda: TcpConnection(self._connections), sock=tcp))
                self.addresses.append(udp.getsockname()[:2])
        except OSError:
            await self.close(0)
            raise
        finally:
            self._close_inherited()
        self._idle_watch = self._tasks.spawn(self._close_idle_connections(), "dns idle connections")

    def _open(self, host: str, port: int) -> tuple[socket.socket, socket.socket]:
        places = [f"{kind} {sockets.show_address(host, port)}" for kind in ("udp", "tcp")]
        pair = [each for place in places if (each := self._inherited.pop(place, None)) is not None]
        udp, tcp = pair if len(pair) == 2 else sockets.open_pair(host, port)
        self._sockets |= zip(places, (udp, tcp), strict=True)
        return udp, tcp

    def adopt(self, descriptors: Mapping[str, int]) -> None:
        """Sockets of a predecessor, by their places: `start` uses those it wants."""
        self._inherited = {place: socket.socket(fileno=descriptor) for place, descriptor in descriptors.items()}

    def export(self) -> dict[str, int]:
        """The descriptors of all sockets that it answers on, by their places."""
        return {place: each.fileno() for place, each in self._sockets.items()}

    def _close_inherited(self) -> None:
        for each in self._inherited.values():
            each.close()
        self._inherited = {}

    async def update(self, table: Table, delta: TableDelta | None) -> None:
        try:
            if self._zone is None:
                self._zone = Zone(table, self._node)
            else:
                changed = self._zone.update(table, None if self._problem else delta)
                self._udp_packets.drop(changed)
                self._tcp_packets.drop(changed)
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

    def give_secrets(self, secrets: Mapping[str, str]) -> None: ...

    def tell_waiting(self, tell: Callable[[Mapping[str, int]], None]) -> None: ...

    def loads(self) -> list[PortLoad]:
        return []

    async def close(self, seconds: float = 0.0, *, shared: bool = False) -> None:
        """Takes no more queries, and waits that long for the answers of other servers to what was forwarded."""
        for listener in self._udp:
            listener.stop(read_rest=not shared)
        for server in self._tcp:
            server.close()
        await self._drain(seconds if shared else 0.0)
        if self._idle_watch is not None:
            self._idle_watch.cancel()
        await self._tasks.finish(seconds)
        for listener in self._udp:
            listener.close()
        self._connections.close()
        self._sockets = {}
        if self._forwarder:
            await self._forwarder.close()

    async def _drain(self, seconds: float) -> None:
        """Waits until TCP clients rest: one whose connection ends just as it asks gets no answer."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while len(self._connections) and loop.time() < deadline:
            await asyncio.sleep(0.1)
            self._connections.close_idle(loop.time(), REST)

    def _answer_udp(self, data: bytes, client: str, now: float) -> Outcome:
        """`now`: when the datagram was found, by `perf_counter`; the listener times the kept answers."""
        if not self._limit.admits(client, now) and not self._has_good_cookie(data, client):
            self._counters.drops["rate-limit"] += 1
            return ask_by_tcp(data) if self._limit.slips(client) else None
        if kept := self._udp_packets.answer(data):
            packet, cell = kept
            cell[0] += 1
            self._counters.kept_answers += 1
            return packet
        return self._answer(data, Transport.UDP, self._udp_packets, client)

    def _answer_tcp(self, data: bytes, client: str) -> Outcome:
        started = time.perf_counter()
        if kept := self._tcp_packets.answer(data):
            packet, cell = kept
            cell[0] += 1
            self._counters.kept_answers += 1
            self._counters.time_kept(time.perf_counter() - started)
            return packet
        return self._answer(data, Transport.TCP, self._tcp_packets, client)

    def _answer(self, data: bytes, transport: Transport, packets: Packets, client: str) -> Outcome:
        """The first time that this is asked since the Table changed, or what is not kept."""
        started = time.perf_counter()
        try:
            reply = self._respond(data, transport, client)
        except Exception:  # whatever came, the next client is served
            self._report_failure(data, client, started)
            reply = bare_reply(data, SERVFAIL)
        if reply is None:
            self._counters.drops["not-a-query"] += 1
            return None
        if isinstance(reply, Reply):
            packets.keep(data, reply, self._cell(reply, transport))
            return self._finish(reply, transport, started)
        return self._tasks.spawn(self._finish_later(reply, transport, started), "dns forward")

    def _report_failure(self, data: bytes, client: str, now: float) -> None:
        """At most once a second, however often somebody asks."""
        if now >= self._next_report:
            self._next_report = now + 1
            log.exception("cannot answer a query of %s: %s", client, data[:300].hex())

    def _respond(self, data: bytes, transport: Transport, client: str) -> Reply | Coroutine[Any, Any, Reply] | None:
        recursion = self._forwarder is not None
        reply = respond(
            data,
            transport,
            self._zone,
            recursion=recursion,
            give_cookie=lambda cookie: self._cookies.give(cookie, client, time.time()),
        )
        if not isinstance(reply, Forward):
            return reply
        if self._forwarder is None:
            return refuse(reply.query, REFUSED)
        return self._forwarder.resolve(reply.query, transport, client)

    def _has_good_cookie(self, data: bytes, client: str) -> bool:
        try:
            edns = read_query(data).edns
        except Malformed:
            return False
        return bool(edns and edns.cookie and self._cookies.is_good(edns.cookie, client, time.time()))

    async def _finish_later(self, resolved: Coroutine[Any, Any, Reply], transport: Transport, started: float) -> bytes:
        return self._finish(await resolved, transport, started)

    def _finish(self, reply: Reply, transport: Transport, started: float) -> bytes:
        self._counters.answered(self._cell(reply, transport), time.perf_counter() - started)
        return reply.packet

    def _cell(self, reply: Reply, transport: Transport) -> Cell:
        return self._counters.cell(transport.value, reply.qtype, reply.rcode, cut=reply.cut)

    async def _close_idle_connections(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._connections.close_idle(asyncio.get_running_loop().time())
