"""TCP: bytes as they are, both ways, with backpressure, half-close and an idle time-out.

On bare sockets, not transports: the bytes of a large transfer need not enter this process (`flow.py`).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import time

from mesh.proxy.backend import Backend, Upstream
from mesh.proxy.context import Context
from mesh.proxy.flow import Flow
from mesh.proxy.listener import Address, Serve
from mesh.proxy.policy import just_started
from mesh.proxy.proxy_protocol import write_header
from mesh.proxy.retry import may_retry
from mesh.proxy.timers import NEVER, Timed
from mesh.proxy.waiting import Hold

_RESET = struct.pack("ii", 1, 0)


def serve_tcp(backend: Backend, context: Context, announce: str | None = None) -> Serve:
    """What takes over the connections of a tcp port.

    Args:
        announce: v1 or v2: the endpoint is told whose connection it is by the PROXY protocol.
    """

    def serve(client: socket.socket, address: Address) -> None:
        TcpSession(client, address, backend, context, announce).start()

    return serve


class TcpSession(Timed):
    """A client's connection and the one to its endpoint: first connects, then relays.

    What the access log shows of it: `address` of the client, `backend`, `bytes_in`, `bytes_out`, `tries`, `endpoint`
    (of the last try), `started` (monotonic seconds), and `reason`: one word where it failed, else empty:
    too-many-connections, no-endpoint, connect-failure, reset, idle-timeout, drained, held-overflow, start-timeout,
    client-left.
    """

    __slots__ = (
        "_announce", "_began", "_client", "_context", "_ended", "_from_client", "_from_endpoint", "_hold", "_inside",
        "_loop", "_server", "_tried", "_upstream", "address", "backend", "bytes_in", "bytes_out", "endpoint", "reason",
        "started", "tries",
    )  # fmt: skip

    def __init__(
        self, client: socket.socket, address: Address, backend: Backend, context: Context, announce: str | None
    ) -> None:
        Timed.__init__(self)
        self._client = client
        self.address = address
        self.backend = backend
        self.started = time.monotonic()
        self.bytes_in = self.bytes_out = 0
        self.endpoint = ""
        self.reason = ""
        self._announce = announce
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._ended = False
        self._tried: list[Upstream] = []
        self.tries = 0
        self._began = 0.0  # the last try
        self._upstream: Upstream | None = None
        self._server: socket.socket | None = None
        self._hold: Hold | None = None  # the service is at zero
        self._inside = False  # the backend's gate: until there is a connection, if it waited for the start
        self._from_client: Flow | None = None
        self._from_endpoint: Flow | None = None

    def start(self) -> None:
        self._context.sessions.add(self)
        stats = self.backend.stats
        stats.connections += 1
        stats.opened += 1
        if self._context.full or self.backend.full:
            stats.failed("too-many-connections")
            self.end(reset=True, reason="too-many-connections")
        else:
            self._try()

    # ── connecting: nothing was sent to any endpoint, so every try is safe

    def _try(self) -> None:
        backend = self.backend
        self._began = time.monotonic()
        upstream = backend.pick(self._tried, self._began, backend.client_key(self.address[0]))
        if upstream is None:
            if backend.asleep:
                self._wait_for_start()
            else:
                self.end(reset=True, reason="connect-failure" if self._tried else "no-endpoint")
            return
        self._upstream = upstream
        self.endpoint = upstream.id
        self.tries += 1
        upstream.in_flight += 1
        policy = just_started(backend.policy) if self._inside else backend.policy
        limit = policy.connect_timeout
        self._context.wheel.watch(self, NEVER if limit is None else self._context.wheel.now + limit)
        if is_ip(upstream.address):
            self._connect((upstream.address, upstream.port))
        else:
            self._context.tasks.spawn(self._resolve(upstream), f"resolve {upstream.address}")

    def _wait_for_start(self) -> None:
        """What the client sends stays in the kernel until there is an endpoint."""
        context = self._context
        self._leave_gate()
        self._hold = context.waiting.enter(self, self.backend, 0, self._began)
        if self._hold is None:
            self.backend.stats.failed("held-overflow")
            self.end(reset=True, reason="held-overflow")
            return
        self._hold.watch(context.hangups, self._client.fileno(), self._hung_up)
        context.wheel.watch(self, context.wheel.now + self.backend.policy.limits.held_timeout)

    def admit(self) -> None:
        """There is an endpoint."""
        self._inside = True
        self._end_hold()
        self._try()

    def _end_hold(self) -> None:
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.end(time.monotonic())

    def _leave_gate(self) -> None:
        if self._inside:
            self._inside = False
            self.backend.gate.leave()

    def _hung_up(self, gone: bool) -> None:
        """One that has sent something and its end may wait for what comes back; one that has sent nothing is gone."""
        if not gone:
            try:
                gone = not self._client.recv(1, socket.MSG_PEEK)
            except OSError:
                gone = True
        if gone:
            self.end(reset=False, reason="client-left")

    async def _resolve(self, upstream: Upstream) -> None:
        try:
            found = await self._loop.getaddrinfo(upstream.address, upstream.port, type=socket.SOCK_STREAM)
        except OSError:
            found = []
        if self._upstream is upstream and not self._ended:
            if found:
                self._connect(found[0][4])
            else:
                self._try_failed()

    def _connect(self, address: Address) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            self._server = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            self._server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = self._server.connect_ex(address)
        except OSError as error:  # no descriptor is left
            code = error.errno or errno.EIO
        if code == errno.EINPROGRESS and self._server is not None:
            self._loop.add_writer(self._server, self._connected)
        else:
            self._loop.call_soon(self._connected, code)

    def _connected(self, code: int | None = None) -> None:
        """The attempt has ended, well or not."""
        endpoint, upstream = self._server, self._upstream
        if self._ended or upstream is None:
            return
        if code is None and endpoint is not None:
            self._loop.remove_writer(endpoint)
            code = endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code or endpoint is None:
            self._try_failed()
        elif upstream.gone:  # left the Table meanwhile
            self._leave_upstream()
            self.tries -= 1
            self._try()
        else:
            self.backend.connected(upstream, self._began, time.monotonic())
            self._relay(endpoint)

    def _try_failed(self) -> None:
        backend, upstream = self.backend, self._upstream
        assert upstream is not None
        backend.failed(upstream, self._began, time.monotonic(), refused=True)
        backend.stats.failed("connect-failure")
        self._tried.append(upstream)
        self._leave_upstream()
        if may_retry(backend.policy, "connect-failure", b"", self.tries, replayable=True, sent=False):
            backend.stats.retries += 1
            self._try()
        else:
            self.end(reset=True, reason="connect-failure")

    def _leave_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        endpoint, self._server = self._server, None
        if upstream is not None:
            upstream.in_flight -= 1
            self.backend.no_result(upstream, self._began, time.monotonic())
        if endpoint is not None:
            self._loop.remove_writer(endpoint)
            endpoint.close()

    # ── relaying

    def _relay(self, endpoint: socket.socket) -> None:
        self._leave_gate()
        pipes = self._context.pipes
        self._from_client = Flow(self, self._client, endpoint, pipes)
        self._from_endpoint = Flow(self, endpoint, self._client, pipes)
        self._context.wheel.watch(self, self._context.wheel.now + self.backend.policy.idle_timeout)
        self._from_endpoint.start()
        first = write_header(self._announce, self.address, self._client.getsockname()) if self._announce else b""
        self._from_client.start(first)

    def moved(self, flow: Flow, count: int) -> None:
        stats = self.backend.stats
        if flow is self._from_client:
            stats.bytes_in += count
            self.bytes_in += count
        else:
            stats.bytes_out += count
            self.bytes_out += count
        self.deadline = self._context.wheel.now + self.backend.policy.idle_timeout

    def ended(self, flow: Flow) -> None:
        if self._other(flow).done:
            self.end(reset=False)
            return
        try:
            flow.sink.shutdown(socket.SHUT_WR)
        except OSError:  # it was reset meanwhile: its own flow tells
            pass

    def broken(self, flow: Flow) -> None:
        self.end(reset=True, reason="reset")

    def unwanted(self, flow: Flow) -> None:
        """What was on its way back is still delivered; its end, or the reset behind it, ends both."""
        if self._other(flow).done:
            self.end(reset=True, reason="reset")

    def _other(self, flow: Flow) -> Flow:
        other = self._from_endpoint if flow is self._from_client else self._from_client
        assert other is not None
        return other

    # ── ending

    def expire(self) -> None:
        """No endpoint, or no connection, within its time-out, or nothing moved for the idle time-out."""
        if self._hold is not None:
            self.backend.stats.failed("start-timeout")
            self.end(reset=True, reason="start-timeout")
        elif self._from_client is None:
            self._try_failed()
        else:
            self.end(reset=True, reason="idle-timeout")

    def end(self, *, reset: bool, reason: str = "") -> None:
        """Ends both sides: the kernel still sends what it has, or says at once that nothing more comes."""
        if self._ended:
            return
        self._ended = True
        self.reason = reason
        self._context.wheel.forget(self)
        if self._hold is not None:
            self.backend.gate.give_up(self)
            self._end_hold()
        self._leave_gate()
        for flow in (self._from_client, self._from_endpoint):
            if flow is not None:
                flow.stop()
        if reset:
            for side in (self._client, self._server):
                if side is not None:
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._leave_upstream()
        self._client.close()
        self.backend.stats.connections -= 1
        self._context.session_ended(self)


def is_ip(host: str) -> bool:
    """Whether this is an address; else it is a name."""
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    except OSError:
        return False
    return True
