"""What all connections of one proxy share: the clock, the way to endpoints, who may be believed."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from mesh.aio import Tasks
from mesh.proxy.access_log import AccessLog
from mesh.proxy.backend import Upstream
from mesh.proxy.hangup import Hangups
from mesh.proxy.splice import Pipes
from mesh.proxy.timers import Wheel
from mesh.proxy.upstream import UpstreamConnection
from mesh.proxy.waiting import WaitingRoom

if TYPE_CHECKING:
    from mesh.proxy.arrival import Arrival
    from mesh.proxy.exchange import Exchange
    from mesh.proxy.l4 import TcpSession
    from mesh.proxy.l7 import ClientConnection
    from mesh.proxy.udp import UdpSession


log = logging.getLogger(__name__)

MAX_CONNECTIONS = 50_000
"""Of clients, per worker; one more is reset."""

REST = 5.0
"""Seconds without a request after which a client's connection may be closed while its worker is replaced. Closed just
as its client sends, it would fail that request; busy clients do not pause for that long. HAProxy waits alike."""


class Context:
    """One per proxy."""

    def __init__(self, trust: Sequence[str] = (), access_log: AccessLog | None = None) -> None:
        self.wheel = Wheel()
        self.tasks = Tasks()
        self.pipes = Pipes()
        self.clients: set[ClientConnection] = set()
        self.sessions: set[TcpSession] = set()
        self.datagrams: set[UdpSession] = set()
        self.arrivals: set[Arrival[Any]] = set()  # may become either
        self.waiting = WaitingRoom()
        self.hangups = Hangups()
        self._emptied = asyncio.Event()
        self.closing = False
        self._rest = 0.0
        self.access_log = access_log
        self._trust = [ipaddress.ip_network(each) for each in trust]

    def trusts(self, peer: str) -> bool:
        """Whether the forwarding fields of this peer are believed."""
        if not self._trust:
            return False
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._trust)

    @property
    def full(self) -> bool:
        """No further client can be served."""
        return len(self.clients) + len(self.sessions) + len(self.arrivals) > MAX_CONNECTIONS

    def close_soon(self, *, gently: bool) -> None:
        """No response lets its client go on from now on. `gently`: who might just be sending is waited for."""
        self.closing = True
        self._rest = REST if gently else 0.0

    def patience(self, idle_timeout: float) -> float:
        """Seconds that a client may take until its next request."""
        return min(idle_timeout, self._rest) if self.closing else idle_timeout

    def client_left(self, client: ClientConnection) -> None:
        self.clients.discard(client)
        self._note_empty()

    def session_ended(self, session: TcpSession) -> None:
        self.sessions.discard(session)
        if self.access_log is not None:
            self.access_log.session(session)
        self._note_empty()

    def arrival_left(self, arrival: Arrival[Any]) -> None:
        self.arrivals.discard(arrival)
        self._note_empty()

    def datagrams_ended(self, session: UdpSession) -> None:
        self.datagrams.discard(session)
        self._note_empty()

    def _note_empty(self) -> None:
        if self.closing and not (self.clients or self.sessions or self.arrivals or self.datagrams):
            self._emptied.set()

    async def emptied(self, seconds: float) -> None:
        """While closing: waits until no client is left, at most for `seconds`."""
        self._note_empty()
        try:
            async with asyncio.timeout(seconds):
                await self._emptied.wait()
        except TimeoutError:
            log.warning("closing with clients=%d sessions=%d still open", len(self.clients), len(self.sessions))

    def connect(self, exchange: Exchange, upstream: Upstream) -> None:
        """Opens a connection for `exchange`, which hears of it by `connected` or `connect_failed`."""
        self.tasks.spawn(self._connect(exchange, upstream), f"connect {upstream.id}")

    async def _connect(self, exchange: Exchange, upstream: Upstream) -> None:
        limit = exchange.policy.connect_timeout
        connection = UpstreamConnection(upstream, self.wheel)
        protocol = cast(asyncio.Protocol, connection)
        try:
            async with asyncio.timeout(limit):
                await asyncio.get_running_loop().create_connection(lambda: protocol, upstream.address, upstream.port)
        except TimeoutError:
            exchange.connect_failed(upstream, f"no connection within {limit:g} s" if limit else "no connection")
        except OSError as error:
            exchange.connect_failed(upstream, error.strerror or str(error))
        else:
            exchange.connected(connection)
