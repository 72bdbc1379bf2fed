"""Which failure may be tried again, and how often: pure."""

from __future__ import annotations

from mesh.proxy.policy import Policy
from mesh.proxy.window import Window

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

    __slots__ = ("_window", "ratio")

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self._window = Window(WINDOW)  # requests, retries

    def request(self, now: float) -> None:
        """Counts a request (first tries only)."""
        window = self._window
        if now >= window.until:
            window.roll(now)
        window.first += 1

    def left(self, now: float) -> bool:
        """Whether there is a retry left."""
        self._window.roll(now)
        requests, retries = self._window.totals()
        return retries < FLOOR * WINDOW + self.ratio * requests

    def spend(self, now: float) -> bool:
        """Takes one retry from the budget; False if there is none left."""
        if not self.left(now):
            return False
        self._window.second += 1
        return True


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
