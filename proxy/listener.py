"""Listening sockets that the Table asks for, opened and closed as it changes."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

BACKLOG = 1024


class Opened(Protocol):
    """A listener in use: a server or a datagram transport."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to listen on, and what then speaks there."""

    address: str  # ip:port
    kind: str  # http | tcp | udp; one that changes closes the old listener
    protocol: Callable[[], asyncio.BaseProtocol]


class Listeners:
    """One listener per name; what cannot be opened is a problem to report and is tried again by `retry`."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[Wanted, Opened]] = {}
        self._failed: dict[str, tuple[Wanted, str]] = {}

    def problems(self) -> list[str]:
        return [problem for _, problem in self._failed.values()]

    async def update(self, wanted: Mapping[str, Wanted]) -> None:
        """Opens and closes so that exactly `wanted` is listened on; a listener that stays is not touched."""
        self._failed = {}
        for name, (old, opened) in list(self._open.items()):
            new = wanted.get(name)
            if new is None or (new.address, new.kind) != (old.address, old.kind):
                del self._open[name]
                opened.close()
        for name, each in wanted.items():
            if name not in self._open:
                await self._try(name, each)

    async def retry(self) -> None:
        """Tries again what could not be opened."""
        failed, self._failed = self._failed, {}
        for name, (wanted, _) in failed.items():
            await self._try(name, wanted)

    async def _try(self, name: str, wanted: Wanted) -> None:
        try:
            self._check_taken(wanted)
            self._open[name] = (wanted, await self._listen(wanted))
        except (OSError, ValueError) as error:
            self._failed[name] = (wanted, f"{name}: cannot listen on {wanted.address}: {explain(error)}")

    def _check_taken(self, wanted: Wanted) -> None:
        """Two names on one address would share its connections at random: SO_REUSEPORT lets them."""
        for other, (taken, _) in self._open.items():
            if taken.address == wanted.address and (taken.kind == "udp") == (wanted.kind == "udp"):
                raise ValueError(f"{other} listens there; give one of them another `listen`")

    async def _listen(self, wanted: Wanted) -> Opened:
        loop = asyncio.get_running_loop()
        if wanted.kind == "udp":
            bound = bind(wanted.address, socket.SOCK_DGRAM)
            transport, _ = await loop.create_datagram_endpoint(_datagram(wanted), sock=bound)
            return transport
        bound = bind(wanted.address, socket.SOCK_STREAM)
        return await loop.create_server(wanted.protocol, sock=bound, backlog=BACKLOG)

    def close(self) -> None:
        for _, opened in self._open.values():
            opened.close()
        self._open = {}
        self._failed = {}


def _datagram(wanted: Wanted) -> Callable[[], asyncio.DatagramProtocol]:
    return wanted.protocol  # type: ignore[return-value]  # by its kind


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `10.96.0.7:80` or `[::1]:80`.

    Raises:
        ValueError: if it is neither.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError("it must be ADDRESS:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def bind(address: str, kind: socket.SocketKind) -> socket.socket:
    """A socket bound to `address` that other workers may share.

    Raises:
        OSError: if it cannot be bound.
        ValueError: if the address is none.
    """
    host, port = parse_address(address)
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
    try:
        bound.setblocking(False)
        if kind == socket.SOCK_STREAM:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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
