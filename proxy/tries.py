"""The endpoints that one request is sent to, one after another: whom to ask next, and what came of it.

Knows neither sockets nor bytes: those are the exchange's, which is built on this.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mesh.proxy.backend import Backend, Upstream
from mesh.proxy.http1 import Request
from mesh.proxy.policy import Policy
from mesh.proxy.request_body import MAX_REPLAY, RequestBody
from mesh.proxy.retry import IDEMPOTENT, may_retry
from mesh.proxy.ring import hash_key

if TYPE_CHECKING:
    from mesh.proxy.headers import Origin

NOT_THE_ENDPOINT_S_FAULT = frozenset({501, 505})
"""Statuses from 500 on that tell of the request, not of who answered it."""


class Tries:
    """At most one try is under way; its endpoint has one more in flight, and learns once what came of it."""

    # Without __slots__: what most exchanges leave as it is costs nothing to make.
    tries = 0
    endpoint = ""  # of the last try
    sent = 0.0  # monotonic seconds: when the last try began
    reason = ""
    _tried: tuple[Upstream, ...] = ()
    _upstream: Upstream | None = None  # of the try under way
    _failure = ""  # of the last try, for the client

    def __init__(self, request: Request, origin: Origin, backend: Backend, policy: Policy) -> None:
        self.request = request
        self.backend = backend
        self.policy = policy
        self.started = now = time.monotonic()
        self._origin = origin
        self._deadline = now + policy.timeout
        body = request.body()
        self._body = RequestBody(body, chunked=request.chunked) if body is not None else None

    @property
    def request_open(self) -> bool:
        """The request's body has not come whole yet."""
        return self._body is not None and self._body.open

    @property
    def _repeatable(self) -> bool:
        """It may be sent again, and all of it will be there, should its connection turn out to have been closed."""
        request = self.request
        return request.method in IDEMPOTENT and request.length <= MAX_REPLAY and not request.chunked

    @property
    def _replayable(self) -> bool:
        """All that was taken from the client can be sent again."""
        return self._body is None or self._body.replayable

    def _pick(self, now: float) -> Upstream | None:
        """The endpoint for the next try, if there is one left."""
        hash_of = self.policy.hash_of
        key = hash_key(hash_of, self.request, self._origin) if hash_of else None
        return self.backend.pick(self._tried, now, key)

    def _begin_try(self, upstream: Upstream, now: float) -> None:
        self.tries += 1
        self.sent = now
        self.endpoint = upstream.id
        self._upstream = upstream
        upstream.in_flight += 1
        upstream.stats.in_flight += 1

    def _end_try(self) -> None:
        """Whatever came of it has been told."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.in_flight -= 1
            upstream.stats.in_flight -= 1
            if upstream.avoid_until:
                self.backend.no_result(upstream, self.sent, time.monotonic())

    def _count_failure(self, reason: str) -> None:
        """The try failed for what the endpoint did, or did not do."""
        self.backend.stats.failed(reason)
        if self._upstream is not None:
            self._upstream.stats.failed(reason)
            refused = reason == "connect-failure"
            self.backend.failed(self._upstream, self.sent, time.monotonic(), refused=refused)

    def _learn(self, upstream: Upstream, status: int, now: float) -> None:
        """What the status of a response tells of the endpoint before the response is whole."""
        if status >= 500 and status not in NOT_THE_ENDPOINT_S_FAULT:
            self.backend.failed(upstream, self.sent, now)
        elif upstream.avoid_until:  # it is the probe, or a last choice: others wait for its result
            self.backend.succeeded(upstream, self.sent, now)

    def _next(self, failure: str | int, text: str, now: float, *, sent: bool) -> tuple[bool, Upstream | None]:
        """Whether another try follows `failure` (which `text` tells the client), as policy, time, budget and endpoints
        allow, and where. None: at the first endpoint that the service has again."""
        self._failure = text
        if self._upstream is not None:
            self._tried = (*self._tried, self._upstream)
        if not may_retry(self.policy, failure, self.request.method, self.tries, replayable=self._replayable, sent=sent):
            return False, None
        if now >= self._deadline and not self.request_open:
            return False, None
        budget = self.backend.budget
        if not budget.left(now):
            if isinstance(failure, int):
                self.reason = "retry-budget"
            return False, None
        upstream = self._pick(now)
        if upstream is None and not self.backend.asleep:
            return False, None
        budget.spend(now)
        self.backend.stats.retries += 1
        return True, upstream
