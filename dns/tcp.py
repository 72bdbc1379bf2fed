"""DNS over TCP: two-byte frames split any way, many queries in flight, answers in the order they are ready.

Source: RFC 7766.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

Outcome = bytes | asyncio.Task[bytes] | None
"""The packet to send, a task that will have it, or silence."""
Handler = Callable[[bytes, str], Outcome]
"""From a message and its sender's address to what to do."""

IDLE = 10.0
"""Seconds without a whole query, or without the client reading its answers, until a connection is closed."""
_MOST_WAITING = 64
"""Queries of one connection that wait for other servers; beyond it we stop reading."""
_WRITE_BUFFER = 128 * 1024


class TcpConnections:
    """The open connections of a server: at most `limit`; a newcomer takes the place of the longest idle."""

    def __init__(self, handler: Handler, limit: int = 1000) -> None:
        self.handler = handler
        self._limit = limit
        self._open: dict[TcpConnection, None] = {}  # the longest idle first

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, connection: TcpConnection) -> None:
        if len(self._open) >= self._limit:
            next(iter(self._open)).abort()
        self._open[connection] = None

    def active(self, connection: TcpConnection) -> None:
        self._open.pop(connection, None)
        self._open[connection] = None

    def closed(self, connection: TcpConnection) -> None:
        self._open.pop(connection, None)

    def close_idle(self, now: float, idle: float | None = None) -> None:
        """Ends connections without a query for `idle` seconds (`IDLE`)."""
        idle = IDLE if idle is None else idle
        for connection in list(self._open):
            if now - connection.last_active < idle:
                break
            connection.abort()

    def close(self) -> None:
        for connection in list(self._open):
            connection.close()


class TcpConnection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, connections: TcpConnections) -> None:
        self._connections = connections
        self._buffer = bytearray()
        self._waiting = 0
        self._full = False  # the client does not read
        self._ended = False  # the client will send no more
        self.last_active = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(_WRITE_BUFFER)
        peer = transport.get_extra_info("peername")
        self._client = peer[0] if peer else ""
        self.last_active = asyncio.get_running_loop().time()
        self._connections.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.closed(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._answer_what_came()

    def eof_received(self) -> bool:
        self._ended = True
        return self._waiting > 0  # answers are still owed

    def pause_writing(self) -> None:
        self._full = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._full = False
        self._mark_active()
        self._answer_what_came()

    def close(self) -> None:
        """What was answered is still sent."""
        self._transport.close()

    def abort(self) -> None:
        self._connections.closed(self)
        self._transport.abort()

    def _mark_active(self) -> None:
        self.last_active = asyncio.get_running_loop().time()
        self._connections.active(self)

    def _answer_what_came(self) -> None:
        start, buffer = 0, self._buffer
        while self._ready_for_more() and len(buffer) - start >= 2:
            end = start + 2 + int.from_bytes(buffer[start : start + 2], "big")
            if len(buffer) < end:
                break
            self._answer(bytes(buffer[start + 2 : end]))
            start = end
        if self._transport.is_closing():
            return
        if start:
            del buffer[:start]
            self._mark_active()
        if self._ready_for_more():
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _ready_for_more(self) -> bool:
        return not self._full and self._waiting < _MOST_WAITING and not self._transport.is_closing()

    def _answer(self, message: bytes) -> None:
        outcome = self._connections.handler(message, self._client)
        if isinstance(outcome, asyncio.Task):
            self._waiting += 1
            outcome.add_done_callback(self._answered)
        elif outcome is not None:
            self._send(outcome)
        else:  # no query, and so no client of ours
            self._transport.close()

    def _answered(self, task: asyncio.Task[bytes]) -> None:
        self._waiting -= 1
        if self._transport.is_closing() or task.cancelled() or task.exception():
            return
        self._send(task.result())
        self._answer_what_came()
        if self._ended and not self._waiting:
            self._transport.close()

    def _send(self, packet: bytes) -> None:
        self._transport.write(len(packet).to_bytes(2, "big") + packet)
