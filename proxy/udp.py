"""UDP: one session per client address, its replies matched by a socket of its own towards the endpoint.

The kernel's hash over an SO_REUSEPORT group keeps a client with one worker; a successor takes over the very socket,
so that clients stay where they were, but begins with no sessions: what must find the same endpoint again (QUIC) wants
`balance: {hash: client}`.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import time
from typing import Any

from mesh.proxy.backend import Backend, Upstream
from mesh.proxy.context import Context
from mesh.proxy.l4 import is_ip
from mesh.proxy.listener import Address, Open, Opened
from mesh.proxy.timers import Timed

IDLE = 30.0
"""Seconds without a datagram either way that end a session."""
MAX_SESSIONS = 8192
"""Per listener and worker; one more ends the one whose client has been silent for longest."""
MAX_WAITING = 16
"""Datagrams that wait while an endpoint's name is looked up."""
BURST = 64
"""Datagrams read before others get their turn."""
LARGEST = 65535
DRAIN_IDLE = 2.0
"""As `IDLE`, once the listener takes no more: for the replies that are still to come."""

_IP_PKTINFO = 8  # linux/in.h; the socket module has it from Python 3.14 on
_Ancillary = list[tuple[int, int, bytes]]


class UdpListener:
    """A service port's datagrams."""

    def __init__(self, bound: socket.socket, backend: Backend, context: Context) -> None:
        self.backend = backend
        self.context = context
        self.sessions: dict[Address, UdpSession] = {}  # the one whose client has been silent for longest first
        self.idle = IDLE
        self._socket = bound
        self._any_address = bound.getsockname()[0] in ("0.0.0.0", "::")
        if self._any_address:
            _ask_for_own_address(bound)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(bound, self._read)

    def _read(self) -> None:
        for _ in range(BURST):
            asked: _Ancillary = []
            try:
                if self._any_address:
                    data, asked, _, client = self._socket.recvmsg(LARGEST, 64)
                else:
                    data, client = self._socket.recvfrom(LARGEST)
            except BlockingIOError:
                return
            except OSError:  # of an earlier reply: its client is gone
                continue
            self._received(data, client, asked)

    def _received(self, data: bytes, client: Address, asked: _Ancillary) -> None:
        session = self.sessions.pop(client, None)
        if session is not None and session.upstream.gone:
            session.end()
            session = None
        session = session or self._open(client, asked)
        if session is not None:
            self.sessions[client] = session
            if not session.send(data) and (session := self._open(client, asked)) is not None:
                self.sessions[client] = session
                session.send(data)

    def _open(self, client: Address, asked: _Ancillary) -> UdpSession | None:
        backend = self.backend
        upstream = backend.pick((), time.monotonic(), backend.client_key(client[0]))
        if upstream is None:
            backend.stats.failed("no-endpoint")
            return None
        if len(self.sessions) >= MAX_SESSIONS:
            backend.stats.failed("too-many-sessions")
            next(iter(self.sessions.values())).end()
        session = UdpSession(self, client, _from_own_address(asked), upstream)
        session.start()
        return session

    def reply(self, data: bytes, session: UdpSession) -> None:
        """To a client. Lost where the kernel has no room: that is what datagrams are."""
        try:
            if session.own_address:
                self._socket.sendmsg([data], session.own_address, 0, session.client)
            else:
                self._socket.sendto(data, session.client)
        except OSError:
            self.backend.stats.failed("reply-lost")

    def ended(self, session: UdpSession) -> None:
        if self.sessions.get(session.client) is session:
            del self.sessions[session.client]
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


class UdpSession(Timed):
    """A client's datagrams to one endpoint, and back."""

    __slots__ = (
        "_answered", "_began", "_ended", "_listener", "_loop", "_socket", "_waiting", "client", "own_address",
        "upstream",
    )  # fmt: skip

    def __init__(self, listener: UdpListener, client: Address, own_address: _Ancillary, upstream: Upstream) -> None:
        Timed.__init__(self)
        self._listener = listener
        self.client = client
        self.own_address = own_address  # by which the client reached us, where we have several
        self.upstream = upstream
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._waiting: list[bytes] = []
        self._ended = False
        self._answered = False
        self._began = time.monotonic()

    def start(self) -> None:
        listener, upstream = self._listener, self.upstream
        context, stats = listener.context, listener.backend.stats
        context.datagrams.add(self)
        context.wheel.watch(self, context.wheel.now + listener.idle)
        upstream.in_flight += 1
        stats.connections += 1
        stats.opened += 1
        if is_ip(upstream.address):
            self._connect((upstream.address, upstream.port))
        else:
            context.tasks.spawn(self._resolve(), f"resolve {upstream.address}")

    async def _resolve(self) -> None:
        try:
            found = await self._loop.getaddrinfo(self.upstream.address, self.upstream.port, type=socket.SOCK_DGRAM)
        except OSError:
            self._failed()
            return
        if not self._ended:
            self._connect(found[0][4])
            waiting, self._waiting = self._waiting, []
            for data in waiting:
                self.send(data)

    def _connect(self, address: Any) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._socket.connect(address)
        except OSError:  # no way there, or no descriptor left
            self._failed()
        else:
            self._loop.add_reader(self._socket, self._read)

    def send(self, data: bytes) -> bool:
        """To the endpoint; False if nobody listens there: the datagram should go to another."""
        if self._ended:
            return False
        self._listener.backend.stats.bytes_in += len(data)
        self._touch()
        if self._socket is None:
            if len(self._waiting) < MAX_WAITING:
                self._waiting.append(data)
            return True
        try:
            self._socket.send(data)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EMSGSIZE, errno.ENOBUFS):
                self._listener.backend.stats.failed("datagram-lost")
                return True
            self._failed()  # an ICMP error in answer to an earlier one
            return False
        return True

    def _read(self) -> None:
        assert self._socket is not None
        for _ in range(BURST):
            try:
                data = self._socket.recv(LARGEST)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error: nobody listens there (any more)
                self._failed()
                return
            self._replied(data)

    def _replied(self, data: bytes) -> None:
        backend = self._listener.backend
        backend.stats.bytes_out += len(data)
        if not self._answered:
            self._answered = True
            backend.connected(self.upstream, self._began, time.monotonic())
        self._touch()
        self._listener.reply(data, self)

    def _failed(self) -> None:
        """The client's next datagram goes elsewhere."""
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
        self._listener.context.wheel.forget(self)
        self.upstream.in_flight -= 1
        self._listener.backend.no_result(self.upstream, self._began, time.monotonic())
        self._listener.backend.stats.connections -= 1
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
        self._listener.ended(self)

    def hurry(self) -> None:
        """Nothing more comes from the client."""
        wheel = self._listener.context.wheel
        wheel.watch(self, min(self.deadline, wheel.now + self._listener.idle))

    def _touch(self) -> None:
        self.deadline = self._listener.context.wheel.now + self._listener.idle


# ── replies leave by the address that was asked, where the socket is bound to all of them


def _ask_for_own_address(bound: socket.socket) -> None:
    if bound.family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        bound.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)


def _from_own_address(asked: _Ancillary) -> _Ancillary:
    """For a reply to what came with `asked`; by any interface, but for link-local addresses."""
    for level, kind, data in asked:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            _, own, _ = struct.unpack("@I4s4s", data)
            return [(level, kind, struct.pack("@I4s4s", 0, own, bytes(4)))]
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            own, interface = struct.unpack("@16sI", data)
            return [(level, kind, struct.pack("@16sI", own, interface if own[:2] == b"\xfe\x80" else 0))]
    return []
