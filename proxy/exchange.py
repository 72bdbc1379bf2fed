"""One request and its response: the line it waits in, the tries, the time-outs, the bytes between two connections.

The client's connection (`l7.py`) and the endpoint's (`upstream.py`) each speak HTTP with their own side and tell an
Exchange what happened; it alone decides what follows.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from mesh.proxy import headers
from mesh.proxy.backend import Backend, Upstream
from mesh.proxy.body import LAST_CHUNK, chunk
from mesh.proxy.http1 import Request, Response
from mesh.proxy.policy import Policy, just_started
from mesh.proxy.retry import IDEMPOTENT
from mesh.proxy.stats import RouteStats
from mesh.proxy.timers import NEVER
from mesh.proxy.tries import Tries
from mesh.proxy.tunnel import Tunnel
from mesh.proxy.upstream import UpstreamConnection
from mesh.proxy.waiting import Hold

if TYPE_CHECKING:
    from mesh.proxy.l7 import ClientConnection

RETRY_AFTER = b"Retry-After: 1\r\n"
"""For whoever met a full line: it moves within a second, or is long enough."""
START_RETRY_AFTER = b"Retry-After: 5\r\n"
"""For whom a service did not start in time, or who was too many to wait for that."""


class Exchange(Tries):
    """Lives from a request's head to the end of its response (or of the tunnel it became).

    What the access log shows of it: `request`, `status` (0: the client left before an answer), `tries`, `endpoint`
    (of the last try), `reason`, `bytes_in`, `bytes_out`, and the monotonic times `started`, `sent` (of the last try)
    and `answered` (its response's head; 0: none).

    `reason` is one word where something failed, else empty: no-endpoint, connect-failure, reset, timeout, protocol,
    retry-budget (a status worth a retry was passed on), overflow, queue-timeout, held-overflow, start-timeout,
    rate-limited, idle-timeout, client-timeout, client-left, bad-request.
    """

    status = 0
    bytes_in = 0
    bytes_out = 0
    answered = 0.0
    done = False
    tunnel: Tunnel | None = None
    _queued = False
    _hold: Hold | None = None  # it is queued, or about to be, because the service is at zero
    _inside = False  # the backend's gate
    _connection: UpstreamConnection | None = None
    _held_back = b""  # the head, until the body's first bytes go with it
    _streaming = False  # the head of the response went to the client
    _keep_alive = False
    _chunk_response = False
    _framed = True  # the client can tell where the response ends
    _hoping = False  # the client sends its body once the endpoint says 100 Continue

    def __init__(
        self,
        client: ClientConnection,
        request: Request,
        backend: Backend,
        policy: Policy,
        route: RouteStats | None = None,
    ) -> None:
        """`policy`: the backend's, or what the rule of `route` makes of it."""
        super().__init__(request, client.origin, backend, policy)
        self.client = client
        self.route = route
        self._head = headers.request_head(request, client.origin, backend.host)
        if request.expect:
            self._hoping = self.request_open

    @property
    def head(self) -> bytes:
        """As it is sent to endpoints."""
        return self._head

    # ── coming in

    def start(self) -> None:
        backend = self.backend
        now = self.started
        backend.stats.begin(now)
        if self.route is not None:
            self.route.in_flight += 1
        if backend.bucket is not None and (wait := backend.bucket.take(now)):
            backend.stats.rate_limited += 1
            self._failure = "more requests than its rate limit allows"
            self._give_up(429, "rate-limited", b"Retry-After: %d\r\n" % math.ceil(wait))
        elif backend.gate.free > 0:
            backend.gate.free -= 1
            self._inside = True
            backend.budget.request(now)
            self._try(self._pick(now), now)
        elif backend.asleep:
            self._wait_for_start(now)
        elif not backend.present:  # what is still under way keeps the gate full: nobody waits for what is not there
            self._try(None, now)
        elif backend.gate.wait(self):
            self._queued = True
            backend.stats.queued += 1
            self.client.context.wheel.watch(self.client, min(now + self.policy.limits.queue_timeout, self._deadline))
        else:
            backend.stats.failed("overflow")
            self._failure = "too many requests are under way and waiting"
            self._give_up(503, "overflow", RETRY_AFTER)

    def admit(self) -> None:
        """It waited long enough: the gate let it in."""
        now = time.monotonic()
        self._end_wait(now)
        self._inside = True
        self.backend.budget.request(now)
        self._try(self._pick(now), now)

    def _wait_for_start(self, now: float) -> None:
        """The service is at zero. Nothing more is read from the client until there is an endpoint, but its end."""
        client = self.client
        context = client.context
        hold = self._hold = context.waiting.enter(self, self.backend, client.read_ahead + len(self._head), now)
        if hold is None:
            self.backend.stats.failed("held-overflow")
            self._failure = "the service is starting, and too many wait for it"
            self._give_up(503, "held-overflow", START_RETRY_AFTER)
            return
        self._queued = True
        client.pause(True)
        hold.watch(context.hangups, client.transport.get_extra_info("socket").fileno(), client.hung_up)
        context.wheel.watch(client, now + self.policy.limits.held_timeout)

    def _end_wait(self, now: float) -> None:
        """It leaves the line, or was let in."""
        self._queued = False
        if self._hold is None:
            self.backend.stats.queued -= 1
            return
        self._hold.end(now)
        self._hold = None
        self.policy = just_started(self.policy)
        self._deadline = now + self.policy.timeout
        self.client.pause(False)

    # ── trying

    def _try(self, upstream: Upstream | None, now: float, *, again: bool = False) -> None:
        """Sends the request to `upstream`; on a new connection if to the same one `again`."""
        if upstream is None and self.backend.asleep:  # since just now
            self._leave_gate()
            self._wait_for_start(now)
            return
        if upstream is None:
            if not self._failure:
                self.backend.stats.failed("no-endpoint")
                self.reason = "no-endpoint"
            self._give_up(502 if self._failure else 503, self.reason)
            return
        self._begin_try(upstream, now)
        connection = None
        if not again:
            connection = upstream.take() if self._repeatable else upstream.take_fresh(now)
        self._set_deadline()
        if connection is None:
            self.client.context.connect(self, upstream)
        else:
            self._send(connection)

    def connected(self, connection: UpstreamConnection) -> None:
        """The connection asked for is open."""
        if self.done or self._connection is not None or connection.upstream is not self._upstream:
            connection.release(reusable=True)  # too late: the next request may have it
        elif connection.upstream.gone:  # left the Table meanwhile: nothing was sent, nothing is lost
            connection.close()
            self._leave_upstream()
            self.tries -= 1
            now = time.monotonic()
            self._try(self._pick(now), now)
        else:
            self._send(connection)

    def connect_failed(self, upstream: Upstream, why: str) -> None:
        if not self.done and self._connection is None and upstream is self._upstream:
            self._try_failed("connect-failure", f"{upstream.id} cannot be reached: {why}", sent=False)
        else:  # too late for this request, but others should know
            self.backend.failed(upstream, self.started, time.monotonic(), refused=True)

    def _send(self, connection: UpstreamConnection) -> None:
        self._connection = connection
        connection.exchange = self
        connection.deadline = NEVER
        body = self._body
        if body is None:
            connection.write(self._head)
        elif body.open and self.client.buffered:  # they go out together: one system call, one packet
            self._held_back = self._head + body.so_far
            self.client.advance()
        else:
            connection.write(self._head + body.so_far)

    # ── the request's body

    @property
    def wants_body(self) -> bool:
        """The client's further bytes belong to this request and can go on."""
        return self._connection is not None and self.request_open

    @property
    def _body_is_due(self) -> bool:
        """It is the client's turn."""
        return self.request_open and not self._hoping

    def feed(self, data: bytes) -> bytes:
        """Takes bytes of the body from the client; returns those behind its end.

        Raises:
            Malformed: if the body is not well framed.
        """
        assert self._body is not None
        assert self._connection is not None
        self._hoping = False
        payload, rest, size = self._body.feed(data)
        self.bytes_in += size
        self.backend.stats.bytes_in += size
        if self._held_back:
            payload, self._held_back = self._held_back + payload, b""
        if payload:
            self._connection.write(payload)
        if not self._body.open:
            self._deadline = time.monotonic() + self.policy.timeout
        self._set_deadline()
        return rest

    # ── the response

    def informational(self, response: Response) -> None:
        """1xx: `100 Continue` goes on to a client that waits for it, others stay here."""
        if response.status == 100 and self.request.expect:
            self._hoping = False
            self.client.write(headers.CONTINUE)
            self._set_deadline()

    def response_started(self, response: Response, payload: bytes) -> bool:
        """The response's head, with what has come of its body. False: another endpoint is tried instead."""
        request = self.request
        status = response.status
        upstream = self._upstream
        assert upstream is not None
        self.answered = now = time.monotonic()
        began = self.sent
        if status >= 400 or upstream.avoid_until:
            self._learn(upstream, status, now)
            if status in self.policy.retry_on and self._try_again(
                status, f"{upstream.id} answered {status}", sent=True
            ):
                upstream.stats.answered(status, now - began)
                return False
        self.backend.answered_after(upstream, now - began, now)
        self.status = status
        self._streaming = True
        self._chunk_response = not response.no_body and response.length is None and request.version == 1
        self._framed = response.no_body or response.length is not None or self._chunk_response
        self._keep_alive = (
            request.keep_alive
            and self._framed
            and not self.request_open  # the rest of its body would be taken for the next request
            and not self.client.context.closing
            and not self.backend.gone
        )
        head = headers.response_head(
            response, chunked=self._chunk_response, keep_alive=self._keep_alive, version=request.version
        )
        if payload:
            self.count_out(payload)
            head += chunk(payload) if self._chunk_response else payload
        self.client.write(head)
        return True

    def response_pending(self) -> None:
        """More of the body is to come."""
        self._set_deadline()

    def response_payload(self, payload: bytes) -> None:
        self.count_out(payload)
        self.client.write(chunk(payload) if self._chunk_response else payload)
        self._set_deadline()

    def count_in(self, data: bytes) -> None:
        self.bytes_in += len(data)
        self.backend.stats.bytes_in += len(data)

    def count_out(self, data: bytes) -> None:
        self.bytes_out += len(data)
        self.backend.stats.bytes_out += len(data)

    def response_finished(self, *, reusable: bool) -> None:
        """The response is whole."""
        if self._chunk_response:
            self.client.write(LAST_CHUNK)
        upstream = self._upstream
        assert upstream is not None
        now = time.monotonic()
        upstream.stats.answered(self.status, now - self.sent)
        if self.status < 500:
            self.backend.succeeded(upstream, self.sent, now)
        self._leave_upstream(reusable=reusable and (self._body is None or self._sent_whole()))
        self._end(self.status, keep_alive=self._keep_alive, now=now)

    def _sent_whole(self) -> bool:
        """The request has come and gone out to its last byte."""
        assert self._body is not None
        return not self._body.open and self._connection is not None and not self._connection.backlog

    # ── failing

    def upstream_failed(self, reason: str, why: str) -> None:
        """The endpoint's connection broke, or what came over it was no HTTP."""
        if self.tunnel:
            self._leave_upstream()
            self._end(101, keep_alive=False)
        elif self._streaming:
            self._count_failure(reason)
            self._break_off(reason)
        elif reason in ("reset", "protocol") and self._connection is not None and self._connection.reused:
            self._lost_race(reason, "closed a kept connection as it was used" if reason == "reset" else why)
        else:
            self._try_failed(reason, f"{self.endpoint} {why}", sent=True)

    def _lost_race(self, reason: str, why: str) -> None:
        """The endpoint closed a kept connection just as we used it, or what came there is left from before: no failure
        of either, once more on a new one."""
        upstream = self._upstream
        assert upstream is not None
        now = time.monotonic()
        upstream.closed_idle(now)
        if self.request.method not in IDEMPOTENT or not self._replayable:
            self._try_failed(reason, f"{upstream.id} {why}", sent=True)
            return
        self._leave_upstream()
        self.tries -= 1
        self._try(self._pick(now) if upstream.gone else upstream, now, again=True)

    def _try_failed(self, reason: str, text: str, *, sent: bool) -> None:
        self._count_failure(reason)
        if not self._try_again(reason, text, sent=sent):
            self._give_up(504 if reason == "timeout" else 502, reason)

    def _try_again(self, failure: str | int, text: str, *, sent: bool) -> bool:
        """Starts the next try if the policy, the budget and the endpoints allow one."""
        now = time.monotonic()
        again, upstream = self._next(failure, text, now, sent=sent)
        if not again:
            return False
        self._leave_upstream()
        self._try(upstream, now)
        return True

    def _give_up(self, status: int, reason: str, fields: bytes = b"") -> None:
        """Answers in the service's stead; `fields`: further lines of the head."""
        self._leave_upstream()
        self.reason = reason
        self.status = status
        text = f"{self.backend.name}: {self._failure}" if self._failure else self.backend.why_unavailable()
        keep_alive = (
            self.request.keep_alive and self.request.version == 1 and not self.request_open and not self.backend.gone
        )
        head_only = self.request.method == b"HEAD"
        self.client.write(
            headers.error_response(status, text, fields=fields, head_only=head_only, keep_alive=keep_alive)
        )
        self._end(status, keep_alive=keep_alive)

    def _break_off(self, reason: str) -> None:
        """The response cannot be finished: the client must not take it for whole."""
        self._leave_upstream()
        self.reason = reason
        self._end(502, keep_alive=False, tell_client=False)
        self.client.break_off(framed=self._framed)

    def switch_protocols(self, response: Response, data: bytes) -> None:
        """101: from here on it is a tunnel, a connection rather than a request, and leaves the gate."""
        upstream, connection = self._upstream, self._connection
        asked_for = [protocol.strip() for protocol in self.request.upgrade.lower().split(b",")]
        if (
            not response.upgrade
            or response.upgrade.lower() not in asked_for
            or self.request_open
            or not upstream
            or not connection
        ):
            self.upstream_failed("protocol", "switched protocols unasked")
            return
        self.status = 101
        self.answered = time.monotonic()
        self.backend.succeeded(upstream, self.sent, self.answered)
        upstream.stats.answered(101, self.answered - self.sent)
        self._leave_gate()
        self.tunnel = Tunnel(self, connection)
        self.client.write(headers.response_head(response, chunked=False, keep_alive=True, version=1) + data)
        self.tunnel.touch()
        self.client.advance()

    # ── time

    def _set_deadline(self) -> None:
        """Sets when the client's connection calls `expired`."""
        policy = self.policy
        wheel = self.client.context.wheel
        if self._streaming or self._body_is_due:
            deadline = wheel.now + policy.idle_timeout
        elif "timeout" in policy.retry_on and self._replayable and self.request.method in IDEMPOTENT:
            deadline = min(self._deadline, wheel.now + policy.per_try_timeout)
        else:
            deadline = self._deadline
        wheel.watch(self.client, deadline)

    def expired(self) -> None:
        """Nothing moved for as long as the policy allows."""
        if self._queued and self.backend.asleep:
            self._leave_line()
            self.backend.stats.failed("start-timeout")
            self._failure = f"the service did not start within {time.monotonic() - self.started:.1f} s"
            self._give_up(503, "start-timeout", START_RETRY_AFTER)
        elif self._queued:
            self._leave_line()
            self.backend.stats.failed("queue-timeout")
            self._failure = f"no turn within {time.monotonic() - self.started:.1f} s: too many requests are under way"
            self._give_up(503, "queue-timeout", RETRY_AFTER)
        elif self.tunnel:
            self.upstream_failed("timeout", "was idle")
        elif self._streaming:
            self.backend.stats.failed("idle-timeout")
            self._break_off("idle-timeout")
        elif self._body_is_due and not self.client.upstream_full:
            self._failure = "the request's body stopped coming"
            self._give_up(408, "client-timeout")
        else:
            text = f"no answer from {self.endpoint} within {time.monotonic() - self.started:.1f} s"
            self._try_failed("timeout", text, sent=self._connection is not None)

    # ── flow

    def pause_upstream(self, paused: bool) -> None:
        """The client takes no more for now, or again."""
        if self._connection is not None:
            self._connection.pause(paused)

    # ── ending

    def client_lost(self, reason: str = "client-left", status: int = 0) -> None:
        """The client is gone, or was refused with `status`: nobody waits for the rest."""
        if self._queued:
            self._leave_line()
        self._leave_upstream()
        if not self.tunnel:
            self.reason = reason
        self._end(self.status if self.tunnel else status, keep_alive=False, tell_client=False)

    def _leave_line(self) -> None:
        self.backend.gate.give_up(self)
        self._end_wait(time.monotonic())

    def _leave_upstream(self, *, reusable: bool = False) -> None:
        self._end_try()
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self.tunnel:
            connection.finish()
            return
        connection.release(reusable=reusable)
        if not reusable:
            self.client.pause(False)

    def _leave_gate(self) -> None:
        if self._inside:
            self._inside = False
            self.backend.gate.leave()

    def _end(self, status: int, *, keep_alive: bool, tell_client: bool = True, now: float = 0.0) -> None:
        if self.done:
            return
        self.done = True
        now = now or time.monotonic()
        self.backend.stats.end(self.started, now, status)
        if self.route is not None:
            self.route.in_flight -= 1
            self.route.answered(status, now - self.started)
        self._leave_gate()
        log = self.client.context.access_log
        if log is not None:
            log.request(self)
        if tell_client:
            self.client.exchange_done(keep_alive=keep_alive)
