"""Listening sockets that the Table asks for: opened, closed, and handed from a worker to its successor.

A listening socket that is closed resets the connections that wait in its queue. So one that is given up is emptied
first, and one whose worker is replaced is not closed at all: `export` names the sockets' descriptors, which go to the
next worker over a unix socket (SCM_RIGHTS), and its `adopt` takes them instead of opening its own. The kernel then
sees no change, and each client's datagrams stay with the same socket of an SO_REUSEPORT group.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

log = logging.getLogger(__name__)

BACKLOG = 1024
"""Connections that the kernel keeps waiting; as HAProxy and nginx (511) have it, up to net.core.somaxconn."""
ACCEPTS = 64
"""Connections accepted before others get their turn."""
HANDSHAKE_TIMEOUT = 10.0
"""Seconds until a TLS handshake must be done; the same as for a request's head."""
SHUTDOWN_TIMEOUT = 5.0
"""Seconds that a client has to answer the end of TLS."""
OUT_OF_FILES_SECONDS = 0.1
"""Without accepting, where the process or the host has no descriptor left: waiting connections stay in the queue."""


class Opened(Protocol):
    """A listener in use."""

    def close(self, *, shared: bool) -> None:
        """Takes no more. What waits in the socket's queue is still accepted, unless others have the socket as well."""


Open = Callable[[socket.socket], Awaitable[Opened]]
Address = tuple[Any, ...]
"""As the socket module has it: host, port, and more for IPv6."""
Serve = Callable[[socket.socket, Address], None]
"""Takes over a connection from this address."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to listen on, and what then speaks there."""

    address: str  # ip:port
    kind: str  # http | tcp | udp, or any other word; one that changes opens the listener anew
    open: Open

    @property
    def place(self) -> str:
        """Names a socket over all workers: `tcp 10.96.0.7:80`."""
        return f"{'udp' if self.kind == 'udp' else 'tcp'} {self.address}"


class Listeners:
    """One listener per name; what cannot be opened is a problem to report and is tried again by `retry`."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[Wanted, Opened]] = {}
        self._sockets: dict[str, socket.socket] = {}  # by place
        self._inherited: dict[str, socket.socket] = {}
        self._failed: dict[str, tuple[Wanted, str]] = {}

    def problems(self) -> list[str]:
        return [problem for _, problem in self._failed.values()]

    def export(self) -> dict[str, int]:
        """The descriptors of all sockets by place, to be sent to another worker while they are still open here."""
        return {place: bound.fileno() for place, bound in self._sockets.items()}

    def adopt(self, descriptors: Mapping[str, int]) -> None:
        """Takes sockets that another worker had: the next `update` uses those that it wants and closes the others."""
        for place, descriptor in descriptors.items():
            self._inherited[place] = inherited = socket.socket(fileno=descriptor)
            inherited.setblocking(False)

    async def update(self, wanted: Mapping[str, Wanted]) -> None:
        """Opens and closes so that exactly `wanted` is listened on; a listener that stays is not touched."""
        self._failed = {}
        kept = {each.place for each in wanted.values()}
        for name, (old, opened) in list(self._open.items()):
            new = wanted.get(name)
            if new is None or (new.address, new.kind) != (old.address, old.kind):
                del self._open[name]
                bound = self._sockets.pop(old.place)
                if old.place in kept:  # another name or kind has it next
                    self._inherited[old.place] = bound.dup()
                opened.close(shared=old.place in kept)
        for name, each in wanted.items():
            if name not in self._open:
                await self._try(name, each)
        self._close_inherited()

    async def retry(self) -> None:
        """Tries again what could not be opened."""
        failed, self._failed = self._failed, {}
        for name, (wanted, _) in failed.items():
            await self._try(name, wanted)

    async def _try(self, name: str, wanted: Wanted) -> None:
        try:
            self._check_taken(wanted)
            bound = self._inherited.pop(wanted.place, None) or bind(wanted.address, datagrams=wanted.kind == "udp")
            try:
                self._open[name] = (wanted, await wanted.open(bound))
            except OSError:
                bound.close()
                raise
            self._sockets[wanted.place] = bound
        except (OSError, ValueError) as error:
            self._failed[name] = (wanted, f"{name}: cannot listen on {wanted.address}: {explain(error)}")

    def _check_taken(self, wanted: Wanted) -> None:
        """Two names on one address would share its connections at random: SO_REUSEPORT lets them."""
        for other, (taken, _) in self._open.items():
            if taken.place == wanted.place:
                raise ValueError(f"{other} listens there; give one of them another `listen`")

    def close(self, *, shared: bool = False) -> None:
        """Takes no more. `shared`: another worker has the sockets, and accepts what waits in their queues."""
        for _, opened in self._open.values():
            opened.close(shared=shared)
        self._open, self._sockets, self._failed = {}, {}, {}
        self._close_inherited()

    def _close_inherited(self) -> None:
        for bound in self._inherited.values():
            bound.close()
        self._inherited = {}


class ProtocolServer:
    """Accepts for an asyncio protocol; the event loop does it, which is quickest."""

    def __init__(
        self, bound: socket.socket, protocol: Callable[[], asyncio.BaseProtocol], tls: ssl.SSLContext | None
    ) -> None:
        self._bound = bound
        self._protocol = protocol
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._late: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._protocol, sock=self._bound, backlog=BACKLOG, **_settings(self._tls)
        )

    def close(self, *, shared: bool) -> None:
        assert self._server is not None
        rest = self._bound.dup()  # outlives the server
        self._server.close()
        with rest:
            for connection, _ in [] if shared else waiting(rest):
                task = asyncio.ensure_future(take_over(connection, self._protocol, self._tls))
                self._late.add(task)
                task.add_done_callback(self._late.discard)


def _settings(tls: ssl.SSLContext | None) -> dict[str, Any]:
    """For the event loop."""
    if tls is None:
        return {}
    return {"ssl": tls, "ssl_handshake_timeout": HANDSHAKE_TIMEOUT, "ssl_shutdown_timeout": SHUTDOWN_TIMEOUT}


async def take_over(
    connection: socket.socket, protocol: Callable[[], asyncio.BaseProtocol], tls: ssl.SSLContext | None
) -> None:
    """Gives an accepted connection to a `protocol()`, behind TLS or not."""
    try:
        await asyncio.get_running_loop().connect_accepted_socket(protocol, connection, **_settings(tls))
    except OSError:  # it has left, or its handshake failed
        connection.close()


def serve_protocol(protocol: Callable[[], asyncio.BaseProtocol], tls: ssl.SSLContext | None = None) -> Open:
    """Opens a listener whose connections each get a `protocol()`, behind TLS or not."""

    async def opened(bound: socket.socket) -> Opened:
        server = ProtocolServer(bound, protocol, tls)
        await server.start()
        return server

    return opened


class AcceptLoop:
    """Accepts for what works on bare sockets."""

    def __init__(self, bound: socket.socket, serve: Serve) -> None:
        self._bound = bound
        self._serve = serve
        self._loop = asyncio.get_running_loop()
        self._closed = False
        bound.listen(BACKLOG)
        self._loop.add_reader(bound, self._accept)

    def _accept(self) -> None:
        try:
            for connection, address in waiting(self._bound, ACCEPTS):
                self._serve(connection, address)
        except OSError as error:  # EMFILE, ENFILE, ENOBUFS, ENOMEM
            log.warning("cannot accept connections for now: %s", error)
            self._loop.remove_reader(self._bound)
            self._loop.call_later(OUT_OF_FILES_SECONDS, self._resume)

    def _resume(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._bound, self._accept)

    def close(self, *, shared: bool) -> None:
        self._closed = True
        self._loop.remove_reader(self._bound)
        with self._bound:
            for connection, address in [] if shared else waiting(self._bound):
                self._serve(connection, address)


def serve_sockets(serve: Serve) -> Open:
    """Opens a listener whose connections are each given to `serve`."""

    async def opened(bound: socket.socket) -> Opened:
        return AcceptLoop(bound, serve)

    return opened


def waiting(listening: socket.socket, most: int = BACKLOG) -> Iterator[tuple[socket.socket, Address]]:
    """Accepts what waits in the queue, not blocking.

    Raises:
        OSError: where that is impossible for now, for want of descriptors or memory.
    """
    for _ in range(most):
        try:
            connection, address = listening.accept()
        except BlockingIOError:
            return
        except ConnectionAbortedError:  # it left while it waited
            continue
        connection.setblocking(False)
        yield connection, (unmapped(address[0]), *address[1:])


def unmapped(host: str) -> str:
    """The client's own address: those of IPv4 come to a listener of both families (`[::]`) as `::ffff:10.0.0.1`."""
    return host.removeprefix("::ffff:") if "." in host else host


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `10.96.0.7:80` or `[::1]:80`.

    Raises:
        ValueError: if it is neither.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError("it must be ADDRESS:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def bind(address: str, *, datagrams: bool) -> socket.socket:
    """A socket bound to `address` that other workers may share.

    Raises:
        OSError: if it cannot be bound.
        ValueError: if the address is none.
    """
    host, port = parse_address(address)
    kind = socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
    try:
        bound.setblocking(False)
        if not datagrams:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def explain(error: Exception) -> str:
    """What happened and what to do about it."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    what = os.strerror(error.errno).lower()
    advice = _ADVICE.get(error.errno)
    return f"{what}; {advice}" if advice else what


_ADVICE = {
    errno.EADDRINUSE: "stop the program that holds it (see `ss -ltnp`) or set another `listen`; it is tried again",
    errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE; run as root or use `vips: loopback`",
    errno.EADDRNOTAVAIL: "the host does not own this address; as root: `ip route add local <vip range> dev lo`,"
    " or use `vips: loopback`",
}
