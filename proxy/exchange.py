"""One request and its response: the tries, the time-outs, the bytes between two connections.

The client's connection (`l7.py`) and the endpoint's (`upstream.py`) each speak HTTP with their own side and tell an
Exchange what happened; it alone decides what follows.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mesh.proxy import headers
from mesh.proxy.backend import AVOID_SECONDS, Backend, Upstream
from mesh.proxy.body import LAST_CHUNK, Body, chunk
from mesh.proxy.http1 import Request, Response
from mesh.proxy.policy import Policy
from mesh.proxy.retry import IDEMPOTENT, may_retry
from mesh.proxy.upstream import UpstreamConnection

if TYPE_CHECKING:
    from mesh.proxy.l7 import ClientConnection

MAX_REPLAY = 64 * 1024
"""Bytes of a request's body that are kept for another try."""


class Exchange:
    """Lives from a request's head to the end of its response (or of the tunnel it became)."""

    __slots__ = (
        "_body", "_chunk_response", "_connection", "_deadline", "_failure", "_framed", "_head", "_keep_alive",
        "_replay", "_replay_size", "_started", "_status", "_tried", "_tries", "_upstream", "_upstream_eof", "backend",
        "client", "done", "policy", "request", "tunnel",
    )  # fmt: skip

    def __init__(self, client: ClientConnection, request: Request, backend: Backend, policy: Policy) -> None:
        """`policy`: the backend's, or what a route's rule makes of it."""
        self.client = client
        self.request = request
        self.backend = backend
        self.policy = policy
        self.done = False
        self.tunnel = False
        self._started = time.monotonic()
        self._deadline = self._started + policy.timeout
        self._body: Body | None = request.body()
        self._head = headers.request_head(request, client.origin, backend.host)
        self._replay: list[bytes] | None = []  # of the body; None: too much to keep
        self._replay_size = 0
        self._tries = 0
        self._tried: list[Upstream] = []
        self._failure = ""  # of the last try, for the client
        self._upstream: Upstream | None = None
        self._connection: UpstreamConnection | None = None
        self._status = 0  # of the response under way; 0: none yet
        self._keep_alive = False
        self._chunk_response = False
        self._framed = True  # the client can tell where the response ends
        self._upstream_eof = False

    # ── trying

    def start(self) -> None:
        self.backend.stats.begin(self._started)
        self.backend.budget.request(self._started)
        self._try()

    def _try(self, again: Upstream | None = None) -> None:
        """Sends the request to the endpoint of choice; on a new connection if to the same one `again`."""
        upstream = again or self.backend.pick(self._tried, time.monotonic())
        if upstream is None:
            self._give_up(502 if self._failure else 503)
            return
        self._tries += 1
        self._upstream = upstream
        upstream.in_flight += 1
        connection = upstream.take() if again is None else None
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
            self._tries -= 1
            self._try()
        else:
            self._send(connection)

    def connect_failed(self, upstream: Upstream, why: str) -> None:
        upstream.avoid_until = time.monotonic() + AVOID_SECONDS
        if not self.done and self._connection is None and upstream is self._upstream:
            self._try_failed("connect-failure", f"{upstream.id} cannot be reached: {why}", sent=False)

    def _send(self, connection: UpstreamConnection) -> None:
        self._connection = connection
        connection.exchange = self
        connection.deadline = float("inf")
        connection.write(b"".join((self._head, *self._replay)) if self._replay else self._head)
        if self._body is not None and not self._body.done:
            self.client.advance()

    # ── the request's body

    @property
    def wants_body(self) -> bool:
        """The client's further bytes belong to this request and can go on."""
        return self._connection is not None and self.request_open

    @property
    def request_open(self) -> bool:
        """The request's body has not come whole yet."""
        return self._body is not None and not self._body.done

    def feed(self, data: bytes) -> bytes:
        """Takes bytes of the body from the client; returns those behind its end.

        Raises:
            Malformed: if the body is not well framed.
        """
        assert self._body is not None
        assert self._connection is not None
        payload, rest = self._body.feed(data)
        self.backend.stats.bytes_in += len(payload)
        if self.request.chunked:
            payload = chunk(payload) if payload else b""
            if self._body.done:
                payload += LAST_CHUNK
        if payload:
            self._keep_for_replay(payload)
            self._connection.write(payload)
        if self._body.done:
            self._deadline = time.monotonic() + self.policy.timeout
        self._set_deadline()
        return rest

    def _keep_for_replay(self, payload: bytes) -> None:
        if self._replay is None:
            return
        self._replay_size += len(payload)
        if self._replay_size > MAX_REPLAY:
            self._replay = None
        else:
            self._replay.append(payload)

    # ── the response

    def informational(self, response: Response) -> None:
        """1xx: `100 Continue` goes on to a client that waits for it, others stay here."""
        if response.status == 100 and self.request.expect:
            self.client.write(headers.CONTINUE)

    def response_started(self, response: Response, payload: bytes) -> bool:
        """The response's head, with what has come of its body. False: another endpoint is tried instead."""
        request = self.request
        status = response.status
        if status in self.policy.retry_on and self._try_again(status, f"{self._who} answered {status}", sent=True):
            return False
        self._status = response.status
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
        self._set_deadline()
        if payload:
            self.backend.stats.bytes_out += len(payload)
            head += chunk(payload) if self._chunk_response else payload
        self.client.write(head)
        return True

    def response_payload(self, payload: bytes) -> None:
        self.backend.stats.bytes_out += len(payload)
        self.client.write(chunk(payload) if self._chunk_response else payload)
        self._set_deadline()

    def response_finished(self, *, reusable: bool) -> None:
        """The response is whole."""
        if self._chunk_response:
            self.client.write(LAST_CHUNK)
        self._leave_upstream(reusable=reusable and self._sent_whole())
        self._end(self._status, keep_alive=self._keep_alive)

    def _sent_whole(self) -> bool:
        """The request has come and gone out to its last byte."""
        if self._body is None:
            return True
        return self._body.done and self._connection is not None and not self._connection.backlog

    @property
    def _who(self) -> str:
        return self._upstream.id if self._upstream else "the endpoint"

    # ── failing

    def upstream_failed(self, reason: str, why: str) -> None:
        """The endpoint's connection broke, or what came over it was no HTTP."""
        if self.tunnel:
            self._leave_upstream()
            self._end(101, keep_alive=False)
        elif self._status:
            self.backend.stats.failed(reason)
            self._break_off()
        else:
            connection = self._connection
            if reason == "reset" and connection is not None and connection.reused \
                    and self.request.method in IDEMPOTENT and self._replay is not None:  # fmt: skip
                self._lost_race()
            else:
                self._try_failed(reason, f"{self._who} {why}", sent=True)

    def _lost_race(self) -> None:
        """The endpoint closed an idle connection just as we used it: no failure of either, once more on a new one."""
        upstream = self._upstream
        self._leave_upstream()
        self._tries -= 1
        self._try(again=upstream if upstream is not None and not upstream.gone else None)

    def _try_failed(self, reason: str, text: str, *, sent: bool) -> None:
        self.backend.stats.failed(reason)
        if not self._try_again(reason, text, sent=sent):
            self._give_up(504 if reason == "timeout" else 502)

    def _try_again(self, failure: str | int, text: str, *, sent: bool) -> bool:
        """Starts the next try if the policy, the budget and the endpoints allow one."""
        self._failure = text
        now = time.monotonic()
        if self._upstream is not None:
            self._tried.append(self._upstream)
        again = (
            may_retry(self.policy, failure, self.request.method, self._tries,
                      replayable=self._replay is not None, sent=sent)
            and (now < self._deadline or self.request_open)
            and self.backend.pick(self._tried, now) is not None
            and self.backend.budget.spend(now)
        )  # fmt: skip
        if again:
            self._leave_upstream()
            self.backend.stats.retries += 1
            self._try()
        return again

    def _give_up(self, status: int) -> None:
        """Answers in the service's stead."""
        self._leave_upstream()
        text = f"{self.backend.name}: {self._failure}" if self._failure else self.backend.why_unavailable()
        keep_alive = (
            self.request.keep_alive and self.request.version == 1 and not self.request_open and not self.backend.gone
        )
        self.client.write(
            headers.error_response(status, text, head_only=self.request.method == b"HEAD", keep_alive=keep_alive)
        )
        self._end(status, keep_alive=keep_alive)

    def _break_off(self) -> None:
        """The response cannot be finished: the client must not take it for whole."""
        self._leave_upstream()
        self._end(502, keep_alive=False, tell_client=False)
        self.client.break_off(framed=self._framed)

    # ── tunnels

    def switch_protocols(self, response: Response, data: bytes) -> None:
        """101: from here on bytes go both ways as they are."""
        if not self.request.upgrade or not response.upgrade or self.request_open:
            self.upstream_failed("protocol", "switched protocols unasked")
            return
        self._status = 101
        self.tunnel = True
        self.client.write(headers.response_head(response, chunked=False, keep_alive=True, version=1) + data)
        self._set_deadline()
        self.client.advance()

    def tunnel_to_client(self, data: bytes) -> None:
        self.backend.stats.bytes_out += len(data)
        self.client.write(data)
        self._set_deadline()

    def tunnel_to_upstream(self, data: bytes) -> None:
        assert self._connection is not None
        self.backend.stats.bytes_in += len(data)
        self._connection.write(data)
        self._set_deadline()

    def tunnel_eof_to_client(self) -> bool:
        """The endpoint sends no more. True: the client may still send."""
        self._upstream_eof = True
        return self.client.half_close()

    def tunnel_eof_to_upstream(self) -> bool:
        """The client sends no more. True: the endpoint may still send."""
        if self._upstream_eof or self._connection is None or self._connection.transport.is_closing():
            return False
        self._connection.transport.write_eof()
        return True

    # ── time

    def _set_deadline(self) -> None:
        """Sets when the client's connection calls `expired`."""
        policy = self.policy
        now = self.client.context.wheel.now
        if self._status or self.request_open:
            deadline = now + policy.idle_timeout
        elif "timeout" in policy.retry_on and self._replay is not None and self.request.method in IDEMPOTENT:
            deadline = min(self._deadline, now + policy.per_try_timeout)
        else:
            deadline = self._deadline
        self.client.context.wheel.watch(self.client, deadline)

    def expired(self) -> None:
        """Nothing moved for as long as the policy allows."""
        if self.tunnel:
            self.upstream_failed("timeout", "was idle")
        elif self._status:
            self.backend.stats.failed("timeout")
            self._break_off()
        elif self.request_open and not self.client.upstream_full:
            self._failure = "the request's body stopped coming"
            self._give_up(408)
        else:
            text = f"no answer from {self._who} within {time.monotonic() - self._started:.1f} s"
            self._try_failed("timeout", text, sent=self._connection is not None)

    # ── flow

    def pause_upstream(self, paused: bool) -> None:
        """The client takes no more for now, or again."""
        connection = self._connection
        if connection is not None and not connection.transport.is_closing():
            if paused:
                connection.transport.pause_reading()
            else:
                connection.transport.resume_reading()

    # ── ending

    def client_lost(self) -> None:
        """The client is gone: nobody waits for the rest."""
        self._leave_upstream()
        self._end(self._status if self.tunnel else 0, keep_alive=False, tell_client=False)

    def _leave_upstream(self, *, reusable: bool = False) -> None:
        upstream, self._upstream = self._upstream, None
        connection, self._connection = self._connection, None
        if upstream is not None:
            upstream.in_flight -= 1
        if connection is None:
            return
        if self.tunnel:
            connection.finish()
            return
        connection.release(reusable=reusable)
        if not reusable:
            self.client.pause(False)

    def _end(self, status: int, *, keep_alive: bool, tell_client: bool = True) -> None:
        if self.done:
            return
        self.done = True
        self.backend.stats.end(self._started, time.monotonic(), status)
        if tell_client:
            self.client.exchange_done(keep_alive=keep_alive)
