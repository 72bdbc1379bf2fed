"""Listening sockets that the Table asks for, opened and closed as it changes."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable

BACKLOG = 1024


class Listeners:
    """One listener per name; what cannot be opened is a problem to report and is tried again by `retry`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._open: dict[str, tuple[str, asyncio.Server]] = {}
        self._failed: dict[str, tuple[str, Callable[[], asyncio.Protocol], str]] = {}

    def problems(self) -> list[str]:
        return [problem for _, _, problem in self._failed.values()]

    def addresses(self) -> dict[str, str]:
        """Name → `host:port` of what is open."""
        return {name: address for name, (address, _) in self._open.items()}

    async def update(self, wanted: dict[str, tuple[str, Callable[[], asyncio.Protocol]]]) -> None:
        """Opens and closes so that exactly `wanted` (name → address, protocol factory) is listened on.

        A listener whose address stays is not touched.
        """
        self._failed = {}
        for name, (address, _) in list(self._open.items()):
            if name not in wanted or wanted[name][0] != address:
                self._open.pop(name)[1].close()
        for name, (address, factory) in wanted.items():
            if name not in self._open:
                await self._try(name, address, factory)

    async def retry(self) -> None:
        """Tries again what could not be opened."""
        failed, self._failed = self._failed, {}
        for name, (address, factory, _) in failed.items():
            await self._try(name, address, factory)

    async def _try(self, name: str, address: str, factory: Callable[[], asyncio.Protocol]) -> None:
        try:
            opened = listening_socket(address)
        except (OSError, ValueError) as error:
            self._failed[name] = (address, factory, f"{name}: cannot listen on {address}: {explain(error)}")
            return
        self._open[name] = (address, await self._loop.create_server(factory, sock=opened, backlog=BACKLOG))

    async def close(self) -> None:
        for _, server in self._open.values():
            server.close()
        self._open = {}
        self._failed = {}


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `10.96.0.7:80` or `[::1]:80`.

    Raises:
        ValueError: if it is neither.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError("must be ADDRESS:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def listening_socket(address: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A bound socket on `address` that other workers may share.

    Raises:
        OSError: if it cannot be bound.
        ValueError: if the address is none.
    """
    host, port = parse_address(address)
    opened = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        opened.bind((host, port))
    except OSError:
        opened.close()
        raise
    return opened


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
