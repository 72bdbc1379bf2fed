"""UDP: one session per client address, its replies matched by a socket of its own towards the endpoint."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any, cast

from mesh.proxy.backend import Backend
from mesh.proxy.context import Context
from mesh.proxy.listener import Open, Opened
from mesh.proxy.timers import NEVER, Timed

IDLE = 30.0
"""Seconds without a datagram either way that end a session."""
MAX_SESSIONS = 4096
"""Per listener; datagrams of further clients are dropped."""
MAX_WAITING = 16
"""Datagrams that wait while a session's socket is made."""


class UdpListener(asyncio.DatagramProtocol):
    """A service port's datagrams."""

    transport: asyncio.DatagramTransport

    def __init__(self, backend: Backend, context: Context) -> None:
        self.backend = backend
        self.context = context
        self.sessions: dict[Any, UdpSession] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: Any) -> None:
        session = self.sessions.get(address)
        if session is None or session.upstream.gone:
            session = self._open(address)
        if session is not None:
            session.send(data)

    def _open(self, address: Any) -> UdpSession | None:
        if old := self.sessions.pop(address, None):
            old.end()
        if len(self.sessions) >= MAX_SESSIONS:
            self.backend.stats.failed("too-many-sessions")
            return None
        upstream = self.backend.pick((), time.monotonic(), self.backend.client_key(address[0]))
        if upstream is None:
            self.backend.stats.failed("no-endpoint")
            return None
        session = self.sessions[address] = UdpSession(self, address, upstream)
        return session

    def connection_lost(self, error: Exception | None) -> None:
        for session in list(self.sessions.values()):
            session.end()

    def close(self, *, shared: bool) -> None:
        self.transport.close()


def serve_datagrams(backend: Backend, context: Context) -> Open:
    """Opens a listener for datagrams."""

    async def opened(bound: socket.socket) -> Opened:
        listener = UdpListener(backend, context)
        await asyncio.get_running_loop().create_datagram_endpoint(lambda: listener, sock=bound)
        return listener

    return opened


class UdpSession(asyncio.DatagramProtocol, Timed):
    """A client's datagrams to one endpoint, and back."""

    __slots__ = ("_address", "_answered", "_began", "_ended", "_listener", "_transport", "_waiting", "upstream")

    def __init__(self, listener: UdpListener, address: Any, upstream: Any) -> None:
        Timed.__init__(self)
        self._listener = listener
        self._address = address
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: list[bytes] = []
        self._ended = False
        self._answered = False
        self._began = time.monotonic()
        self.upstream = upstream
        upstream.in_flight += 1
        stats = listener.backend.stats
        stats.connections += 1
        stats.opened += 1
        context = listener.context
        context.tasks.spawn(self._open(), f"udp {listener.backend.name}")
        context.wheel.watch(self, context.wheel.now + IDLE)

    async def _open(self) -> None:
        try:
            await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: self, remote_addr=(self.upstream.address, self.upstream.port)
            )
        except OSError:
            self._listener.backend.stats.failed("connect-failure")
            self.end()

    def send(self, data: bytes) -> None:
        """To the endpoint."""
        self._listener.backend.stats.bytes_in += len(data)
        self._touch()
        if self._transport is not None:
            self._transport.sendto(data)
        elif len(self._waiting) < MAX_WAITING:
            self._waiting.append(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        if self._ended:
            self._transport.close()
            return
        waiting, self._waiting = self._waiting, []
        for data in waiting:
            self._transport.sendto(data)

    def datagram_received(self, data: bytes, address: Any) -> None:
        backend = self._listener.backend
        backend.stats.bytes_out += len(data)
        if not self._answered:
            self._answered = True
            backend.connected(self.upstream, self._began, time.monotonic())
        self._touch()
        self._listener.transport.sendto(data, self._address)

    def error_received(self, error: Exception) -> None:
        """Nobody listens there (any more): the client's next datagram goes elsewhere."""
        backend = self._listener.backend
        backend.stats.failed("connect-failure")
        backend.failed(self.upstream, self._began, time.monotonic(), refused=True)
        self.end()

    def expire(self) -> None:
        self.end()

    def end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self.deadline = NEVER
        self.upstream.in_flight -= 1
        self._listener.backend.no_result(self.upstream, self._began, time.monotonic())
        self._listener.backend.stats.connections -= 1
        if self._listener.sessions.get(self._address) is self:
            del self._listener.sessions[self._address]
        if self._transport is not None:
            self._transport.close()

    def _touch(self) -> None:
        self.deadline = self._listener.context.wheel.now + IDLE
