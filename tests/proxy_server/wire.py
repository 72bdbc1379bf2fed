"""Tests as scripts: a proxy between a scripted client and scripted upstreams, every byte in the test's hand.

client, upstream = await mesh.dial(), mesh.upstream
await client.send(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
server = await upstream.accept()
request = await server.head()
await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
assert await client.head() …
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from mesh.proxy.server import ProxyServer
from mesh.table import Endpoint, ProxyProtocol, Table, TablePort, TableRoute, TableService
from tests.parts.ports import free_port
from tests.patience import soon

GET = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass(frozen=True)
class Head:
    """A message's head as it was on the wire."""

    start: str
    fields: list[tuple[str, str]]

    def all(self, name: str) -> list[str]:
        return [value for found, value in self.fields if found.lower() == name.lower()]

    def __getitem__(self, name: str) -> str:
        (value,) = self.all(name)
        return value

    def __contains__(self, name: str) -> bool:
        return bool(self.all(name))


class Peer:
    """One end of a connection, played by the test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @property
    def port(self) -> int:
        port: int = self.writer.get_extra_info("sockname")[1]
        return port

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await soon(self.writer.drain())
            await asyncio.sleep(0)

    async def head(self) -> Head:
        raw = await soon(self.reader.readuntil(b"\r\n\r\n"))
        start, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        return Head(start, [(name, value) for name, _, value in (line.partition(": ") for line in lines)])

    async def exactly(self, data: bytes) -> None:
        """Reads just these bytes."""
        got = b""
        while len(got) < len(data) and (piece := await soon(self.reader.read(len(data) - len(got)))):
            got += piece
        assert got == data

    async def body(self, head: Head) -> bytes:
        """A whole body, by its framing."""
        if "Content-Length" in head:
            return await soon(self.reader.readexactly(int(head["Content-Length"])))
        if "Transfer-Encoding" in head:
            return await self.chunked()
        return await self.rest()

    async def chunked(self) -> bytes:
        data = b""
        while size := int(await soon(self.reader.readuntil(b"\r\n")), 16):
            data += await soon(self.reader.readexactly(size))
            await self.exactly(b"\r\n")
        await self.exactly(b"\r\n")
        return data

    async def rest(self) -> bytes:
        """All until the other side ends, or resets."""
        data = b""
        try:
            while piece := await soon(self.reader.read(65536)):
                data += piece
        except ConnectionError:
            pass
        return data

    async def answer(self) -> tuple[Head, bytes]:
        head = await self.head()
        return head, await self.body(head)

    async def closed(self) -> None:
        """The other side ended, and had sent nothing more."""
        assert await self.rest() == b""

    async def was_reset(self) -> bool:
        try:
            await soon(self.reader.read(-1))
        except ConnectionError:
            return True
        return False

    def finish(self) -> None:
        """Sends no more, still reads."""
        self.writer.write_eof()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Upstream:
    """An endpoint that the test plays: `accept` gives its connections one by one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self.accepted = 0
        self._waiting: asyncio.Queue[Peer] = asyncio.Queue()
        self._peers: list[Peer] = []
        self._server: asyncio.Server | None = None

    async def start(self, serve: Callable[[Peer], Awaitable[None]] | None = None) -> Upstream:
        """Listens. With `serve` each connection is handed to it instead of to `accept`."""

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.accepted += 1
            peer = Peer(reader, writer)
            self._peers.append(peer)
            if serve is None:
                self._waiting.put_nowait(peer)
                return
            try:
                await serve(peer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                peer.close()

        self._server = await asyncio.start_server(connected, "127.0.0.1", self.port, limit=2**20)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def accept(self) -> Peer:
        return await soon(self._waiting.get())

    def stop_listening(self) -> None:
        assert self._server is not None
        self._server.close()

    async def stop(self) -> None:
        self.stop_listening()
        for peer in self._peers:
            peer.close()


@dataclass
class Mesh:
    """A proxy with one service, `web`, whose endpoints are played upstreams."""

    proxy: ProxyServer
    port: int = field(default_factory=free_port)
    protocol: str = "http"
    proxy_protocol: ProxyProtocol = field(default_factory=ProxyProtocol)
    traffic: dict[str, Any] = field(default_factory=dict)
    upstreams: list[Upstream] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)
    desired: int = 1
    asleep: bool = False
    routes: dict[str, TableRoute] = field(default_factory=dict)
    _peers: list[Peer] = field(default_factory=list)

    @property
    def upstream(self) -> Upstream:
        return self.upstreams[0]

    async def add(self, name: str, serve: Callable[[Peer], Awaitable[None]] | None = None) -> Upstream:
        upstream = await Upstream(name).start(serve)
        self.upstreams.append(upstream)
        await self.update()
        return upstream

    def table(self) -> Table:
        port = TablePort(
            port=80, protocol=self.protocol, listen=f"127.0.0.1:{self.port}", proxy_protocol=self.proxy_protocol
        )
        service = TableService(
            desired=self.desired,
            asleep=self.asleep,
            ports={"http": port},
            traffic=self.traffic,
            endpoints=[endpoint(each, self.states.get(each.name, "ready")) for each in self.upstreams],
        )
        return Table(services={"web": service}, routes=self.routes)

    async def update(self, table: Table | None = None) -> None:
        await self.proxy.update(table or self.table(), None)

    async def dial(self, port: int | None = None) -> Peer:
        peer = Peer(*await asyncio.open_connection("127.0.0.1", port or self.port, limit=2**20))
        self._peers.append(peer)
        return peer

    async def ask(self, request: bytes = GET) -> tuple[Head, bytes]:
        """One request on a connection of its own."""
        client = await self.dial()
        await client.send(request)
        answer = await client.answer()
        client.close()
        return answer

    async def pair(self, request: bytes = GET) -> tuple[Peer, Peer, Head]:
        """A client that has sent `request`, and the first upstream that has its head."""
        client = await self.dial()
        await client.send(request)
        server = await self.upstream.accept()
        return client, server, await server.head()

    def count(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        return sum(
            sample.value
            for family in self.proxy.metrics()
            if family.name == f"mesh_proxy_{name}"
            for sample in family.samples
            if labels.items() <= sample.labels.items()
        )

    async def close(self) -> None:
        for peer in self._peers:
            peer.close()
        for upstream in self.upstreams:
            await upstream.stop()
        await self.proxy.close()


def endpoint(upstream: Upstream, state: str = "ready", **more: Any) -> Endpoint:
    return Endpoint(
        id=upstream.name, slot=1, node="n1", state=state, address="127.0.0.1", ports={"http": upstream.port}, **more
    )


def answering(text: bytes, *, delay: float = 0) -> Callable[[Peer], Awaitable[None]]:
    """An upstream that answers every request without a body with `text`, keep-alive."""

    async def serve(peer: Peer) -> None:
        while await peer.reader.readuntil(b"\r\n\r\n"):
            if delay:
                await asyncio.sleep(delay)
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))

    return serve
