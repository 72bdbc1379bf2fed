"""Which failure may be tried again, and how often: pure."""

from __future__ import annotations

from mesh.proxy.policy import Policy

IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"})
"""RFC 9110, 9.2.2: done twice is done once."""

WINDOW = 10
"""Seconds over which the budget counts."""
FLOOR = 10
"""Retries per second that any service may make, however few its requests."""


class RetryBudget:
    """Retries stay below a share of the requests of the last ten seconds, so that they never become the storm.

    Source: Finagle's and Linkerd's retry budgets (ratio 0.2, 10 s, at least 10/s).
    """

    __slots__ = ("_requests", "_retries", "_second", "ratio")

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self._second = 0
        self._requests = [0] * WINDOW
        self._retries = [0] * WINDOW

    def request(self, now: float) -> None:
        """Counts a request (first tries only)."""
        second = int(now)
        if second != self._second:
            self._roll(second)
        self._requests[second % WINDOW] += 1

    def spend(self, now: float) -> bool:
        """Takes one retry from the budget; False if there is none left."""
        second = int(now)
        if second != self._second:
            self._roll(second)
        if sum(self._retries) >= FLOOR * WINDOW + self.ratio * sum(self._requests):
            return False
        self._retries[second % WINDOW] += 1
        return True

    def _roll(self, second: int) -> None:
        for passed in range(max(self._second + 1, second - WINDOW + 1), second + 1):
            self._requests[passed % WINDOW] = self._retries[passed % WINDOW] = 0
        self._second = second


def may_retry(policy: Policy, failure: str | int, method: bytes, tries: int, *, replayable: bool, sent: bool) -> bool:
    """Whether a request that failed with `failure` after `tries` tries may be tried once more.

    Args:
        failure: `connect-failure`, `reset`, `timeout`, or the status of a response.
        replayable: everything that was taken from the client can be sent again.
        sent: any byte of it may have reached the failed endpoint.
    """
    if tries > policy.retries or not replayable or failure not in policy.retry_on:
        return False
    return not sent or method in IDEMPOTENT
