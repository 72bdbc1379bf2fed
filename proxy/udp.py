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
BURST = 64
"""Datagrams read before others get their turn."""
LARGEST = 65535
DRAIN_IDLE = 2.0
"""As `IDLE`, once the listener takes no more: for the replies that are still to come."""


class UdpListener:
    """A service port's datagrams."""

    def __init__(self, bound: socket.socket, backend: Backend, context: Context) -> None:
        self.backend = backend
        self.context = context
        self.sessions: dict[Any, UdpSession] = {}
        self.idle = IDLE
        self._socket = bound
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(bound, self._read)

    def _read(self) -> None:
        for _ in range(BURST):
            try:
                data, address = self._socket.recvfrom(LARGEST)
            except BlockingIOError:
                return
            except OSError:  # of an earlier reply: its client is gone
                continue
            self._received(data, address)

    def reply(self, data: bytes, address: Any) -> None:
        """To a client. Lost where the kernel has no room: that is what datagrams are."""
        try:
            self._socket.sendto(data, address)
        except OSError:
            self.backend.stats.failed("reply-lost")

    def _received(self, data: bytes, address: Any) -> None:
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
        self.context.datagrams.add(session)
        return session

    def ended(self, session: UdpSession, address: Any) -> None:
        if self.sessions.get(address) is session:
            del self.sessions[address]
        if not self.sessions and self.idle == DRAIN_IDLE:
            self._socket.close()
        self.context.datagrams_ended(session)

    def close(self, *, shared: bool) -> None:
        if not shared:
            self._read()
        self._loop.remove_reader(self._socket)
        self.idle = DRAIN_IDLE
        for session in self.sessions.values():
            session.hurry()
        if not self.sessions:
            self._socket.close()


def serve_datagrams(backend: Backend, context: Context) -> Open:
    """Opens a listener for datagrams."""

    async def opened(bound: socket.socket) -> Opened:
        return UdpListener(bound, backend, context)

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
        self._listener.reply(data, self._address)

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
        self._listener.ended(self, self._address)
        if self._transport is not None:
            self._transport.close()

    def hurry(self) -> None:
        """Nothing more comes from the client."""
        wheel = self._listener.context.wheel
        wheel.watch(self, min(self.deadline, wheel.now + self._listener.idle))

    def _touch(self) -> None:
        self.deadline = self._listener.context.wheel.now + self._listener.idle
