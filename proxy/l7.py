"""The client's side of HTTP/1.1: reads heads and bodies off one connection, serves them one after another."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from typing import Protocol, cast

from mesh.proxy import headers
from mesh.proxy.body import Malformed
from mesh.proxy.context import Context
from mesh.proxy.exchange import Exchange
from mesh.proxy.headers import Origin
from mesh.proxy.http1 import HEAD_END, MAX_HEAD, NO_REQUEST, Refused, Request, parse_request
from mesh.proxy.listener import unmapped
from mesh.proxy.site import Answer, Destination
from mesh.proxy.stats import Stats
from mesh.proxy.timers import Timed
from mesh.proxy.upstream import write_at_once

HEAD_TIMEOUT = 10.0
"""Seconds from the first byte of a request's head to its last."""
LINGER = 1.0
"""Seconds without a byte after which a client that was answered before it had sent all is cut off. Until then it may
send, so that it reads our answer and not a reset."""
MAX_LINGER = 30.0
"""Seconds after which it is cut off even if it goes on sending (nginx's)."""
FLUSH = 10.0
"""Seconds for the last bytes to go out to a client that reads slowly."""
MAX_WAITING = 64 * 1024
"""Bytes read ahead of what can be used; then the client is not read."""

_EMPTY_LINES = re.compile(rb"\A(?:\r\n)+")
_RESET = struct.pack("ii", 1, 0)


class Site(Protocol):
    """What a listener serves: the backend for each request."""

    stats: Stats  # counts the client connections

    @property
    def idle_timeout(self) -> float:
        """Seconds that a connection may wait for its next request."""

    @property
    def full(self) -> bool:
        """Its clients hold more connections than they may."""

    def destination(self, request: Request, origin: Origin) -> Destination:
        """Where it goes and how it is treated. Raises Answer where it goes nowhere."""


class ClientConnection(Timed):
    """A client's connection. At most one exchange at a time; what is pipelined behind it waits.

    An asyncio.Protocol in all but name: a compiled class may have no base that is not compiled.
    """

    __slots__ = (
        "_address", "_advancing", "_buffer", "_eof", "_exchange", "_linger_until", "_reading", "_site", "_write_paused",
        "context", "origin", "transport", "upstream_full",
    )  # fmt: skip

    transport: asyncio.Transport
    origin: Origin

    def __init__(self, site: Site, context: Context, address: str | None = None) -> None:
        """`address`: the client's, where it is not the peer's own."""
        Timed.__init__(self)
        self._site = site
        self._address = address
        self.context = context
        self._exchange: Exchange | None = None
        self._buffer = b""
        self._advancing = False
        self._eof = False
        self._linger_until = 0.0  # not 0: what the client sends goes nowhere
        self._reading = True
        self.upstream_full = False
        self._write_paused = False

    # ── events of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        host = unmapped(self._address or (peer[0] if peer else ""))
        scheme = b"http" if transport.get_extra_info("sslcontext") is None else b"https"
        self.origin = Origin(host.encode(), scheme, trusted=self.context.trusts(host))
        self.context.clients.add(self)
        self._site.stats.connections += 1
        self._site.stats.opened += 1
        if scheme == b"https":
            self._site.stats.shook_hands("ok")
        else:
            write_at_once(self.transport)
        if self.context.full or self._site.full:
            self._site.stats.failed("too-many-connections")
            self.transport.abort()
        self._wait_for_next()

    def data_received(self, data: bytes) -> None:
        if self._linger_until:
            self._keep_lingering()
            return
        self._buffer = self._buffer + data if self._buffer else data
        self.advance()

    def eof_received(self) -> bool:
        self._eof = True
        if self._exchange is not None and self._exchange.tunnel is not None:
            return self._exchange.tunnel.client_ended() and self.transport.can_write_eof()
        self.advance()
        return not self._linger_until and self.transport.can_write_eof()  # it may still wait for responses

    def connection_lost(self, error: Exception | None) -> None:
        self.context.wheel.forget(self)
        self.context.client_left(self)
        self._site.stats.connections -= 1
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_lost()

    def pause_writing(self) -> None:
        self._write_paused = True
        if self._exchange is not None:
            self._exchange.pause_upstream(True)

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._exchange is not None:
            self._exchange.pause_upstream(False)
        else:
            self.advance()

    # ── reading requests

    def advance(self) -> None:
        """Uses what has been read until more is needed, or an exchange must come first."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._buffer and not self._linger_until and self._step():
                pass
        except Refused as refused:
            self._refuse(refused.status, str(refused))
        except Malformed as error:
            self._refuse(400, str(error))
        finally:
            self._advancing = False
        if self._eof and self._is_cut_off():
            self._close()
        else:
            self._steer_reading()

    def _is_cut_off(self) -> bool:
        """After the client's end: nothing that it sent can still become a whole request, or get a response."""
        if self._exchange is None:
            return not self._linger_until and not self._write_paused
        return self._exchange.wants_body

    def _step(self) -> bool:
        exchange = self._exchange
        if exchange is None:
            return not self._write_paused and self._read_head()
        if exchange.tunnel is not None:
            data, self._buffer = self._buffer, b""
            exchange.tunnel.to_endpoint(data)
            return False
        if not exchange.wants_body:
            return False
        data, self._buffer = self._buffer, b""
        self._buffer = exchange.feed(data)
        return True

    def _read_head(self) -> bool:
        data = self._buffer
        if data[0] == 0x0D:  # RFC 9112, 2.2: empty lines before a request are ignored
            self._buffer = data = _EMPTY_LINES.sub(b"", data)
        end = data.find(HEAD_END, 0, MAX_HEAD)
        if end < 0:
            self._wait_for_head(data)
            return False
        end += len(HEAD_END)
        self._buffer = data[end:]
        request = parse_request(data[:end])
        try:
            backend, policy, route = self._site.destination(request, self.origin)
        except Answer as answer:
            self._answer(request, answer)
        else:
            self._exchange = exchange = Exchange(self, request, backend, policy, route)
            exchange.start()
        return True

    def _wait_for_head(self, data: bytes) -> None:
        if len(data) >= MAX_HEAD:
            raise Refused(431, f"a request head longer than {MAX_HEAD} bytes")
        if data.count(b"\n") != data.count(b"\r\n"):
            raise Refused(400, "a bare line feed")
        if data and not data[:1].isupper() and data != b"\r":  # TLS, most likely: more of it will not mend it
            raise Refused(400, NO_REQUEST)
        if data:
            now = self.context.wheel.now
            self.context.wheel.watch(self, min(self.deadline, now + HEAD_TIMEOUT))

    def _steer_reading(self) -> None:
        """Reads from the client only while there is room for what it sends."""
        reading = len(self._buffer) < MAX_WAITING and not (self.upstream_full and not self._linger_until)
        if reading != self._reading and not self.transport.is_closing():
            self._reading = reading
            if reading:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    # ── what an exchange asks for

    @property
    def buffered(self) -> bool:
        """Something was read that nobody has used."""
        return bool(self._buffer)

    @property
    def read_ahead(self) -> int:
        """Bytes of it."""
        return len(self._buffer)

    def hung_up(self, gone: bool) -> None:
        """It ended while it was not read, for its request waits. Who waits for an answer does not hang up."""
        self.transport.abort()

    def write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)

    def pause(self, full: bool) -> None:
        """The endpoint takes no more of the request for now, or again."""
        self.upstream_full = full
        self._steer_reading()

    def half_close(self) -> bool:
        """Sends no more; True if the client may still send."""
        if self._eof or self.transport.is_closing() or not self.transport.can_write_eof():
            return False
        self.transport.write_eof()
        return True

    def exchange_done(self, *, keep_alive: bool) -> None:
        """The response is written: on to the next request, or the end."""
        exchange, self._exchange = self._exchange, None
        self.upstream_full = False
        if keep_alive:
            self._wait_for_next()
            self.advance()
        elif (exchange is not None and exchange.request_open) or self._buffer:
            self._linger()
        else:
            self._close()

    def break_off(self, *, framed: bool) -> None:
        """Ends so that the client cannot take what it got for a whole response."""
        self._exchange = None
        if framed:
            self._close()
            return
        connection: socket.socket | None = self.transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    # ── ending

    def _answer(self, request: Request, answer: Answer) -> None:
        """Answers in place of a service; the next request may follow, if nothing of this one does."""
        self._log_answer(answer.status, request)
        keep_alive = request.keep_alive and not request.fields.has_body and not self.context.closing
        self.write(headers.error_response(
            answer.status, str(answer), fields=answer.fields, head_only=request.method == b"HEAD",
            keep_alive=keep_alive and request.version == 1,
        ))  # fmt: skip
        if not keep_alive or request.version == 0:
            self._linger()
        else:
            self._wait_for_next()

    def _log_answer(self, status: int, request: Request | None = None) -> None:
        if self.context.access_log is not None:
            self.context.access_log.answered(self.origin, status, request)

    def _refuse(self, status: int, reason: str) -> None:
        """Answers what cannot be served, and closes: what follows it cannot be told from a request."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_lost("bad-request", status)
        else:
            self._site.stats.refused(status)
            self._log_answer(status)
        self.write(headers.error_response(status, reason, head_only=False, keep_alive=False))
        self._linger()

    def _linger(self) -> None:
        self._linger_until = self.context.wheel.now + MAX_LINGER
        self._buffer = b""
        self._steer_reading()
        if not self.transport.is_closing() and self.transport.can_write_eof():  # TLS has no half-close
            self.transport.write_eof()
        self._keep_lingering()

    def _keep_lingering(self) -> None:
        self.context.wheel.watch(self, min(self.context.wheel.now + LINGER, self._linger_until))

    def expire(self) -> None:
        if self._exchange is not None:
            self._exchange.expired()
        elif self._linger_until or self.transport.is_closing():
            self.transport.abort()
        elif self._buffer:
            self._refuse(408, f"no whole request within {HEAD_TIMEOUT:.0f} s")
        else:
            self._close()

    def _close(self) -> None:
        """Closes once what was written has gone out, or after a while."""
        self.transport.close()
        self.context.wheel.watch(self, self.context.wheel.now + FLUSH)

    def _wait_for_next(self) -> None:
        context = self.context
        context.wheel.watch(self, context.wheel.now + context.patience(self._site.idle_timeout))

    def close_when_idle(self) -> None:
        """Closes soon if no exchange is under way; else its response says that it is the last."""
        if self._exchange is None and not self._buffer:
            self._wait_for_next()
