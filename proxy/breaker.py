"""When an endpoint that fails is left alone, and how it comes back: pure.

    closed ──too many failures──► open ──its time is over──► probing ──success──► closed
                                    ▲                           │
                                    └────────failure: longer────┘

It trips on failures in a row, or on too small a share of successes in the window: Linkerd's "unified" breaker, which
also works for endpoints that get little traffic, where Envoy's comparison with the other hosts needs hundreds of
requests. Who may be ejected at all is the backend's to say (never more than a share of a service).

A result counts only if its try began after the last change of state: what was under way before tells nothing new.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mesh.proxy.window import Window

MIN_RESULTS = 5
"""Results in the window below which their ratio says nothing (Linkerd's default)."""


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """`traffic.breaker`; seconds and shares."""

    consecutive: int = 5
    success_ratio: float = 0.8
    window: float = 10.0
    open: float = 1.0
    max_open: float = 60.0
    max_ejected: float = 0.5


class State(Enum):
    CLOSED = "closed"  # in use
    OPEN = "open"  # left alone
    PROBING = "probing"  # one request finds out whether it is well again


class Breaker:
    """The record of one endpoint."""

    __slots__ = ("_level", "_policy", "_results", "_row", "ejections", "since", "state", "until")

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._results = Window(policy.window)  # successes, failures
        self._row = 0  # failures since the last success
        self._level = 0  # ejections in a row
        self.state = State.CLOSED
        self.since = 0.0  # of the state
        self.until = 0.0  # while open: when it may be probed
        self.ejections = 0  # ever, for the metrics

    def success(self, began: float, now: float) -> None:
        """A try that began at `began` succeeded."""
        if self.state is State.CLOSED:
            self._row = 0
            results = self._results
            if now >= results.until:
                results.roll(now)
            results.first += 1
        elif began >= self.since:
            self.close(now)

    def failure(self, began: float, now: float) -> bool:
        """A try failed. True: the endpoint has failed too much, `eject` it if it can be spared."""
        if self.state is State.CLOSED:
            if began < self.since:
                return False
            self._row += 1
            self._results.roll(now)
            self._results.second += 1
            return self._row >= self._policy.consecutive or self._ratio_too_low()
        if self.state is State.PROBING and began >= self.since:
            self.eject(now)
        return False

    def _ratio_too_low(self) -> bool:
        good, bad = self._results.totals()
        return good + bad >= MIN_RESULTS and good < self._policy.success_ratio * (good + bad)

    def eject(self, now: float) -> None:
        """Leaves it alone: for `open` seconds, twice as long each time it was not well for a whole window since."""
        policy = self._policy
        if self.state is State.CLOSED and now - self.since > policy.window:
            self._level = 0
        self.until = now + min(policy.open * 2**self._level, policy.max_open)
        self._level = min(self._level + 1, 32)
        self.ejections += 1
        self._change(State.OPEN, now)

    def probe(self, now: float) -> None:
        """A request goes to it to find out: no other until its result is there."""
        self._change(State.PROBING, now)

    def no_result(self, began: float, now: float) -> None:
        """A try ended without telling anything of the endpoint; if it was the probe, the next request is one."""
        if self.state is State.PROBING and began >= self.since:
            self.until = now
            self._change(State.OPEN, now)

    def close(self, now: float) -> None:
        """In use again, with a clean record."""
        self._row = 0
        self._results.clear()
        self._change(State.CLOSED, now)

    def follow(self, policy: BreakerPolicy) -> None:
        """Other settings from now on; the state stays."""
        if policy.window != self._policy.window:
            self._results = Window(policy.window)
        self._policy = policy

    def _change(self, state: State, now: float) -> None:
        self.state = state
        self.since = now


def may_eject(ejected: int, endpoints: int, share: float) -> bool:
    """Whether one more of `endpoints` can be spared: at most `share` of them, though always one of two."""
    if endpoints < 2 or share <= 0:
        return False
    return ejected < max(int(endpoints * share), 1)
