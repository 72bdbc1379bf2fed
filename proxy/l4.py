"""TCP: bytes as they are, both ways, with backpressure, half-close and an idle time-out.

`Relay` is the seam for a kernel path (splice, sockmap): it is entered once both sides are connected.
"""

from __future__ import annotations

import asyncio
import time
from typing import cast

from mesh.proxy.backend import AVOID_SECONDS, Backend, Upstream
from mesh.proxy.context import Context
from mesh.proxy.retry import may_retry
from mesh.proxy.timers import NEVER, Timed

FLUSH = 10.0
"""Seconds for the last bytes of a session to go out."""


class TcpSession(asyncio.Protocol, Timed):
    """A client's connection and the one to its endpoint; this protocol is the client's side."""

    __slots__ = (
        "_backend", "_context", "_early", "_early_eof", "_ended", "_open_sides", "_upstream", "relay", "transport",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, backend: Backend, context: Context) -> None:
        Timed.__init__(self)
        self._backend = backend
        self._context = context
        self._upstream: Upstream | None = None
        self._open_sides = 2  # that may still send
        self._ended = False
        self._early: list[bytes] = []  # came before the endpoint's side was connected: at most one read
        self._early_eof = False
        self.relay: Relay | None = None  # the endpoint's side

    # ── events of the client's transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._context.sessions.add(self)
        self._backend.stats.connections += 1
        self._backend.stats.opened += 1
        if self._context.full:
            self._backend.stats.failed("too-many-connections")
            self.end(reset=True)
        else:
            self._context.tasks.spawn(self._connect(), f"connect {self._backend.name}")

    def data_received(self, data: bytes) -> None:
        self._backend.stats.bytes_in += len(data)
        if self.relay is None:
            self._early.append(data)
            self.transport.pause_reading()
        elif not self.relay.transport.is_closing():
            self.relay.transport.write(data)
            self._touch()

    def eof_received(self) -> bool:
        if self.relay is None:
            self._early_eof = True
            return True
        return self.side_ended(self.relay.transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.end(reset=error is not None)

    def pause_writing(self) -> None:
        if self.relay is not None and not self.relay.transport.is_closing():
            self.relay.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.relay is not None and not self.relay.transport.is_closing():
            self.relay.transport.resume_reading()

    # ── the endpoint

    async def _connect(self) -> None:
        """Connects to the first endpoint that lets us; nothing was sent to any, so every try is safe."""
        backend, policy = self._backend, self._backend.policy
        tried: list[Upstream] = []
        tries = 0
        while not self._ended and (upstream := backend.pick(tried, time.monotonic())) is not None:
            self._upstream = upstream
            upstream.in_flight += 1
            tries += 1
            try:
                async with asyncio.timeout(policy.connect_timeout):
                    _, relay = await asyncio.get_running_loop().create_connection(
                        lambda: Relay(self), upstream.address, upstream.port
                    )
            except OSError:  # TimeoutError is one
                upstream.avoid_until = time.monotonic() + AVOID_SECONDS
                backend.stats.failed("connect-failure")
                tried.append(upstream)
                self._leave_upstream()
                if not may_retry(policy, "connect-failure", b"", tries, replayable=True, sent=False):
                    break
                backend.stats.retries += 1
            else:
                if self._ended or not upstream.gone:
                    self._join(relay)
                    return
                relay.transport.abort()  # left the Table meanwhile
                self._leave_upstream()
                tries -= 1
        self.end(reset=True)

    def _join(self, relay: Relay) -> None:
        if self._ended or relay.transport.is_closing():
            relay.transport.abort()
            self.end(reset=True)
            return
        self.relay = relay
        if not self._early_eof:
            self.transport.resume_reading()  # before the write, which may pause it again
        for data in self._early:
            relay.transport.write(data)
        self._early.clear()
        if self._early_eof:
            self.side_ended(relay.transport)
        self._context.wheel.watch(self, self._context.wheel.now + self._backend.policy.idle_timeout)

    def from_endpoint(self, data: bytes) -> None:
        self._backend.stats.bytes_out += len(data)
        if not self.transport.is_closing():
            self.transport.write(data)
            self._touch()

    # ── ending

    def side_ended(self, other: asyncio.Transport) -> bool:
        """One side sends no more: says so to the other. False when both have ended."""
        self._open_sides -= 1
        if self._open_sides == 0:
            return False
        if not other.is_closing():
            other.write_eof()
        self._touch()
        return True

    def end(self, *, reset: bool) -> None:
        """Ends both sides: after what was written has gone out, or at once with a reset."""
        if self._ended:
            return
        self._ended = True
        self._context.session_ended(self)
        self._backend.stats.connections -= 1
        self._leave_upstream()
        if reset:
            self._abort()
            return
        self.deadline = NEVER
        for transport in (self.transport, self.relay.transport if self.relay else self.transport):
            if not transport.is_closing() and transport.get_write_buffer_size():
                self._context.wheel.watch(self, self._context.wheel.now + FLUSH)
            transport.close()

    def expire(self) -> None:
        """Nothing moved for the idle time-out, or the last bytes do not go out."""
        self.end(reset=True)
        self._abort()

    def _abort(self) -> None:
        self.transport.abort()
        if self.relay is not None:
            self.relay.transport.abort()

    def _touch(self) -> None:
        self.deadline = self._context.wheel.now + self._backend.policy.idle_timeout

    def _leave_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.in_flight -= 1


class Relay(asyncio.Protocol):
    """The endpoint's side of a session."""

    __slots__ = ("_session", "transport")

    transport: asyncio.Transport

    def __init__(self, session: TcpSession) -> None:
        self._session = session

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._session.from_endpoint(data)

    def eof_received(self) -> bool:
        return self._session.side_ended(self._session.transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._session.relay is self:
            self._session.end(reset=error is not None)

    def pause_writing(self) -> None:
        if not self._session.transport.is_closing():
            self._session.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self._session.transport.is_closing():
            self._session.transport.resume_reading()
