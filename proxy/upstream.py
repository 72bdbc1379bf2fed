"""One HTTP connection to an endpoint: writes what an exchange gives it, reads one response at a time."""

from __future__ import annotations

import asyncio
import os
import select
from typing import TYPE_CHECKING, cast

from mesh.proxy.backend import Upstream
from mesh.proxy.body import Body, Malformed
from mesh.proxy.http1 import HEAD_END, MAX_HEAD, Response, parse_response
from mesh.proxy.timers import Timed, Wheel

if TYPE_CHECKING:
    from mesh.proxy.exchange import Exchange

POOL_IDLE = 1.5
"""Seconds that a connection may wait for its next request: below the shortest keep-alive of common servers
(gunicorn: 2 s), so that the server does not close it just as we use it."""
FLUSH = 10.0
"""Seconds for the last bytes of a tunnel to go out."""
LAST_WORDS = 256 * 1024
"""Bytes that are still read from a connection to which writing failed."""


def write_at_once(transport: asyncio.Transport) -> None:
    """What is written goes out now, not when the loop has read from all others; what does not go out pauses its source.

    uvloop writes at the end of its turn while less than the limit waits, so that several writes become one. We join
    what belongs together ourselves.
    """
    transport.set_write_buffer_limits(high=0)


class UpstreamConnection(Timed):
    """Belongs to one exchange at a time, or is idle in its endpoint's pool. An asyncio.Protocol in all but name."""

    __slots__ = (
        "_body", "_buffer", "_paused", "_response", "_wheel", "closed", "exchange", "reused", "transport", "upstream",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, upstream: Upstream, wheel: Wheel) -> None:
        Timed.__init__(self)
        self.upstream = upstream
        self.exchange: Exchange | None = None
        self._paused = False
        self.reused = False  # has carried a whole exchange already
        self.closed = False
        self._wheel = wheel
        self._buffer = b""
        self._response: Response | None = None
        self._body: Body | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        write_at_once(self.transport)

    @property
    def backlog(self) -> int:
        """Bytes written that have not gone out yet."""
        return self.transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)

    def pause(self, paused: bool) -> None:
        """The client takes no more for now, or again."""
        if paused != self._paused and not self.transport.is_closing():
            self._paused = paused
            if paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def close(self) -> None:
        """Closes; whoever has it as `exchange` is told no more."""
        self.exchange = None
        self.closed = True
        self._wheel.forget(self)
        self.transport.abort()

    def finish(self) -> None:
        """Closes once what was written has gone out, or after a while."""
        self.exchange = None
        self.transport.close()
        if not self.closed:
            self._wheel.watch_for(self, FLUSH)

    def expire(self) -> None:
        """It waited in the pool for too long, or its last bytes do not go out."""
        if self._leave_pool():
            self.upstream.kept_idle(self._wheel.now)
        self.close()

    # ── events of the transport

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:  # bytes that nobody asked for: nobody shall take them for an answer
            self._closed_early()
            self.close()
        elif exchange.tunnel is not None:
            exchange.tunnel.to_client(data)
        else:
            try:
                self._read(exchange, self._buffer + data if self._buffer else data)
            except Malformed as error:
                exchange.upstream_failed("protocol", f"answered what is not HTTP ({error})")

    def eof_received(self) -> bool:
        exchange = self.exchange
        if exchange is None:
            self._closed_early()
            return False
        if exchange.tunnel is not None:
            return exchange.tunnel.endpoint_ended()
        if self._response is not None and self._response.length is None \
                and self._body is not None and not self._response.chunked:  # fmt: skip
            exchange.response_finished(reusable=False)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None and self.exchange is not None:
            self._read_last_words()
        self.closed = True
        self._wheel.forget(self)
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            self._closed_early()
        else:
            exchange.upstream_failed("reset", "closed the connection before its response was whole")

    def _read_last_words(self) -> None:
        """An endpoint that has answered and closed before it took the whole request resets what is still sent to it:
        the loop tells of that, and leaves the answer unread."""
        try:
            data = os.read(self.transport.get_extra_info("socket").fileno(), LAST_WORDS)
        except OSError:
            return
        if data:
            self.data_received(data)

    def pause_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.client.pause(True)

    def resume_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.client.pause(False)

    # ── reading a response

    def _read(self, exchange: Exchange, data: bytes) -> None:
        self._buffer = b""
        while self._response is None:
            end = data.find(HEAD_END, 0, MAX_HEAD)
            if end < 0:
                self._wait_for_head(data)
                return
            response = parse_response(data[: end + 4], exchange.request.method)
            data = data[end + 4 :]
            if response.status == 101:
                exchange.switch_protocols(response, data)
                return
            if response.status < 200:
                exchange.informational(response)
                continue
            self._response = response
            self._body = response.body()
            payload = b""
            if self._body is not None and data:
                payload, data = self._body.feed(data)
            if not exchange.response_started(response, payload):
                return  # it goes to another endpoint
            if self._body is None or self._body.done:
                self._finish(exchange, response, data)
            else:
                exchange.response_pending()
            return
        assert self._body is not None
        payload, data = self._body.feed(data)
        if payload:
            exchange.response_payload(payload)
        if self._body.done:
            self._finish(exchange, self._response, data)

    def _wait_for_head(self, data: bytes) -> None:
        if len(data) >= MAX_HEAD:
            raise Malformed(f"a head longer than {MAX_HEAD} bytes")
        if not data.startswith(b"HTTP/1."[: len(data)]):
            raise Malformed("no status line")
        if data.count(b"\n") != data.count(b"\r\n"):
            raise Malformed("a bare line feed")
        self._buffer = data

    def _finish(self, exchange: Exchange, response: Response, surplus: bytes) -> None:
        """The response is whole; bytes beyond it make the connection unfit for another."""
        self._response = self._body = None
        exchange.response_finished(reusable=response.keep_alive and not surplus)

    # ── the pool

    def release(self, *, reusable: bool) -> None:
        """Back into the pool, or closed."""
        self.exchange = None
        if not reusable or self.transport.is_closing():
            self.close()
            return
        self.pause(False)
        self.reused = True
        if self.upstream.put(self):
            self._wheel.watch_for(self, POOL_IDLE)
        else:
            self.close()

    @property
    def idle_since(self) -> float:
        """Of one in the pool."""
        return self.deadline - POOL_IDLE

    def is_open(self) -> bool:
        """Asks the kernel: the other side has not closed, and sent nothing, up to now."""
        if self.transport.is_closing():
            return False
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN | select.POLLRDHUP)
        return not poll.poll(0)

    def _closed_early(self) -> None:
        if self._leave_pool():
            self.upstream.closed_idle(self._wheel.now)

    def _leave_pool(self) -> bool:
        """True if it was there."""
        if self not in self.upstream.idle:
            return False
        self.upstream.idle.remove(self)
        return True
