"""The proxy's HTTP without sockets: transports that only remember, an endpoint that is connected at once."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import httptools

from mesh.proxy.backend import Backend, Upstream
from mesh.proxy.context import Context
from mesh.proxy.exchange import Exchange
from mesh.proxy.l7 import ClientConnection
from mesh.proxy.site import ServiceSite
from mesh.proxy.upstream import UpstreamConnection
from mesh.table import Endpoint, TablePort, TableService

OPEN, _OTHER_END = socket.socketpair()
"""What a connection looks like to the kernel on which nothing has come, nor its end."""


class MemoryTransport(asyncio.Transport):
    """Remembers what was written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 4711), "socket": OPEN})
        self.written = b""
        self.closed = False
        self.ended = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: Any) -> None:
        self.written += data

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class MemoryContext(Context):
    """Connects at once, in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.connections: list[UpstreamConnection] = []

    def connect(self, exchange: Exchange, upstream: Upstream) -> None:
        connection = UpstreamConnection(upstream, self.wheel)
        connection.connection_made(MemoryTransport())
        self.connections.append(connection)
        exchange.connected(connection)


class MemoryProxy:
    """A client's connection to a service with one endpoint."""

    def __init__(self) -> None:
        backend = Backend("web", "http")
        endpoint = Endpoint(id="web-1", slot=1, node="n1", address="127.0.0.1", ports={"http": 1})
        backend.update(TableService(desired=1, ports={"http": TablePort(port=80)}, endpoints=[endpoint]))
        self.context = MemoryContext()
        for upstream in backend.upstreams:
            upstream.kept_idle(self.context.wheel.now)
        self.client = ClientConnection(ServiceSite(backend), self.context)
        self.client.connection_made(MemoryTransport())

    @property
    def answer(self) -> bytes:
        """What the client got."""
        return cast(MemoryTransport, self.client.transport).written

    @property
    def forwarded(self) -> bytes:
        """What the endpoint got, over all connections."""
        return b"".join(cast(MemoryTransport, each.transport).written for each in self.context.connections)


class Reader:
    """A message as llhttp reads it, apart from our own code."""

    def __init__(self, kind: type[httptools.HttpRequestParser] | type[httptools.HttpResponseParser]) -> None:
        self.start = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.complete = 0
        self._parser = kind(self)

    def on_url(self, url: bytes) -> None:
        self.start += url

    def on_status(self, reason: bytes) -> None:
        self.start += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete += 1

    def feed(self, data: bytes) -> Reader:
        self._parser.feed_data(data)
        return self

    def essence(self) -> tuple[bytes, list[tuple[bytes, bytes]], bytes, int]:
        return self.start, self.fields, self.body, self.complete
