"""What a service port's traffic can go to: its endpoints as the Table has them, their idle connections, its policy.

A Backend outlives changes of the Table: `update` replaces its endpoints in place, so whoever holds one always
chooses among the present ones, and what is known of an endpoint that stays is kept.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from mesh.proxy.balance import FIRST_GUESS, Balancer, Tier, observe, tiers_of
from mesh.proxy.breaker import Breaker, BreakerPolicy, State, may_eject
from mesh.proxy.limit import Gate, TokenBucket
from mesh.proxy.opening import Opening
from mesh.proxy.policy import Policy, parse_policy
from mesh.proxy.retry import RetryBudget
from mesh.proxy.stats import EndpointStats, Stats
from mesh.table import Endpoint, TableService

if TYPE_CHECKING:
    from mesh.proxy.upstream import UpstreamConnection

AVOID_SECONDS = 1.0
"""An endpoint that refused a connection is the last choice for this long."""
MAX_IDLE = 512
"""Idle connections kept per endpoint."""
FRESH = 0.5
"""Seconds that a kept connection may have been idle for a request that must not run twice."""
DISTRUST = 60.0
"""Seconds without such requests on kept connections after the endpoint has closed one."""
NEVER = float("inf")


class Upstream:
    """One endpoint of one service port: what it has in flight, how it did, its idle connections."""

    __slots__ = (
        "_distrusted_until", "_keeps", "address", "avoid_until", "breaker", "ewma", "ewma_at", "gone", "id", "idle",
        "in_flight", "joined", "port", "state", "stats", "weight",
    )  # fmt: skip

    def __init__(self, endpoint: Endpoint, port: int, breaker: BreakerPolicy, stats: EndpointStats, now: float) -> None:
        self.id = endpoint.id
        self.address = endpoint.address
        self.port = port
        self.weight = endpoint.weight
        self.state = endpoint.state
        self.stats = stats
        self.breaker = Breaker(breaker)
        self.in_flight = 0
        self.avoid_until = 0.0  # 0: not to be avoided
        self.joined = now
        self.ewma = FIRST_GUESS
        self.ewma_at = 0.0
        self.gone = False  # left the Table: no new request or connection
        self.idle: list[UpstreamConnection] = []
        self._keeps = False  # has been seen to keep an idle connection for as long as we do
        self._distrusted_until = 0.0

    def take(self) -> UpstreamConnection | None:
        """The idle connection that was used last."""
        return self.idle.pop() if self.idle else None

    def take_fresh(self, now: float) -> UpstreamConnection | None:
        """One for a request that cannot be sent again, should the endpoint close the connection just then.

        Nothing but a new connection excludes that for sure, and one per POST costs several times what the request
        does. So a kept one serves where the endpoint has shown that it keeps idle connections for longer than we do
        (`POOL_IDLE`), none was closed early of late, and this one was idle for a third of that at most.
        """
        if not self._keeps or not self.idle or now - self.idle[-1].idle_since > FRESH:
            return None
        connection = self.idle.pop()
        if connection.is_open():
            return connection
        connection.close()
        self.closed_idle(now)
        return None

    def put(self, connection: UpstreamConnection) -> bool:
        """Keeps a connection for the next request; False if it should be closed."""
        if self.gone or len(self.idle) >= MAX_IDLE:
            return False
        self.idle.append(connection)
        return True

    def kept_idle(self, now: float) -> None:
        """It left an idle connection open until we closed it."""
        self._keeps = now >= self._distrusted_until

    def closed_idle(self, now: float) -> None:
        """It closed a connection before we did, while it was idle or just as it was used again."""
        self._keeps = False
        self._distrusted_until = now + DISTRUST

    def close(self) -> None:
        """Lets go of all idle connections."""
        idle, self.idle = self.idle, []
        for connection in idle:
            connection.close()

    def retire(self) -> None:
        """It left the Table: what it has in flight finishes, nothing new comes."""
        self.gone = True
        self.close()

    def follow_breaker(self) -> None:
        """Is avoided for as long as its breaker says."""
        state = self.breaker.state
        if state is State.CLOSED:
            self.avoid_until = 0.0
        else:
            self.avoid_until = NEVER if state is State.PROBING else self.breaker.until
        self.stats.eject(state is not State.CLOSED)


class Backend:
    """A service port, or a subset of its endpoints: they share all but the choice."""

    def __init__(
        self,
        service: str,
        port: str,
        tag: str | None = None,
        whole: Backend | None = None,
        without: frozenset[str] = frozenset(),
    ) -> None:
        """A subset of `whole` has the `tag`, if one is named, and none of the tags in `without`."""
        self.service = service
        self.port = port
        self.tag = tag
        self._without = without
        self.name = f"{service}.{port}"
        self.host = service.encode()  # stands in for a Host that a client did not send
        self.whole = whole or self  # of which this is a part
        self.policy: Policy = whole.policy if whole else Policy()
        self.problems: list[str] = []
        self.stats: Stats = whole.stats if whole else Stats()
        self.budget: RetryBudget = whole.budget if whole else RetryBudget(self.policy.retry_budget)
        self.gate: Gate = whole.gate if whole else Gate(self.policy.limits.in_flight, self.policy.limits.queue)
        self.bucket: TokenBucket | None = None
        self.balancer = Balancer(self.policy.balance)
        self.gone = False  # the service left the Table
        self.asleep = False  # at zero until somebody asks for it, or about to start: requests wait for an endpoint
        self.desired = 0
        self.opening: Opening | None = None  # of the gate, for those who waited until now
        self._from_zero = False  # it was asleep, and had no endpoint since
        self._traffic: object = None
        self._upstreams: dict[tuple[str, str, int], Upstream] = {}
        self._tiers: list[Tier[Upstream]] = []

    def update(self, service: TableService | None, node: str | None = None) -> None:
        """Chooses among the endpoints of `service` from now on; those that left are retired. `node`: this one."""
        now = time.monotonic()
        if service is not None:
            self._read_policy(service)
        old, self._upstreams = self._upstreams, {}
        states: list[tuple[str, Upstream]] = []
        near: set[Upstream] = set()
        for endpoint in service.endpoints if service else ():
            port = endpoint.ports.get(self.port)
            if port is None or not self._includes(endpoint):
                continue
            key = (endpoint.id, endpoint.address, port)
            upstream = self._upstreams[key] = self._known(key, old, endpoint, now)
            states.append((endpoint.state, upstream))
            if endpoint.node == node and self.policy.prefer == "node":
                near.add(upstream)
        self.gone = service is None
        self.desired = service.desired if service else 0
        if self.whole is self:
            self._from_zero = service is not None and (service.asleep or (self._from_zero and self._starts(states)))
        from_zero = self.whole._from_zero
        desired = 0 if from_zero else self.desired  # what has never been ready is no better than waiting
        self._tiers = []
        if self.desired > 0 or from_zero:
            self._tiers = tiers_of(states, desired, near=near, slow_start=self.policy.slow_start)
        self.asleep = from_zero and not self.whole._tiers
        if self.whole is self:
            for upstream in old.values():
                upstream.retire()
            self.stats.keep({upstream.id for upstream in self._upstreams.values()}, now)
            self._spare(now)

    def settle(self) -> None:
        """Opens the gate, or shuts it: once all that share the endpoints have them, for whoever waits comes in now."""
        limits = self.policy.limits
        if self.asleep:
            was_shut = self.gate.shut
            self.opening = None
            self.gate.resize(0, limits.held)
            if not was_shut:
                self.gate.open()  # who stands in line waits longer now, as those that come
            return
        if self.gate.shut and self.gate.waiting:
            self.opening = Opening(self.gate, len(self._upstreams))
        self._open_gate()
        if not self._tiers:
            self.gate.open()  # nobody waits for what is not there

    def open_further(self) -> None:
        """While `opening`, every `opening.STEP` seconds."""
        if self.opening is not None:
            self.opening.step()
            self._open_gate()

    def _open_gate(self) -> None:
        limits = self.policy.limits
        if self.opening is None:
            self.gate.resize(limits.in_flight, limits.queue)
            return
        self.gate.resize(min(limits.in_flight, self.opening.width), max(limits.queue, limits.held))
        if not self.gate.waiting:
            self.opening = None
            self._open_gate()

    def _starts(self, states: list[tuple[str, Upstream]]) -> bool:
        """It is wanted, and none has become ready yet."""
        return self.desired > 0 and not any(state != "running" and each.weight > 0 for state, each in states)

    def _includes(self, endpoint: Endpoint) -> bool:
        return (self.tag is None or self.tag in endpoint.tags) and self._without.isdisjoint(endpoint.tags)

    def _known(
        self, key: tuple[str, str, int], old: dict[tuple[str, str, int], Upstream], endpoint: Endpoint, now: float
    ) -> Upstream:
        upstream = old.pop(key, None)
        if self.whole is not self:
            return self.whole._upstreams[key]
        if upstream is None:
            stats = self.stats.endpoint(endpoint.id)
            return Upstream(endpoint, key[2], self.policy.breaker, stats, now)
        upstream.weight = endpoint.weight
        if endpoint.state == "ready" != upstream.state:  # its health was checked: that is the last word
            upstream.joined = now
            upstream.breaker.close(now)
            upstream.follow_breaker()
        upstream.state = endpoint.state
        return upstream

    def _read_policy(self, service: TableService) -> None:
        if service.traffic == self._traffic:
            return
        self._traffic = service.traffic
        if self.whole is not self:
            self.policy = self.whole.policy
            self.bucket = self.whole.bucket
        else:
            old = self.policy
            self.policy, self.problems = parse_policy(service.traffic)
            limits = self.policy.limits
            self.budget.ratio = self.policy.retry_budget
            if limits.rate != old.limits.rate:
                self.bucket = TokenBucket(limits.rate) if limits.rate else None
            for upstream in self._upstreams.values():
                upstream.breaker.follow(self.policy.breaker)
        self.balancer = Balancer(self.policy.balance)

    @property
    def upstreams(self) -> list[Upstream]:
        return list(self._upstreams.values())

    @property
    def present(self) -> bool:
        """There is an endpoint that could serve."""
        return bool(self._tiers)

    @property
    def full(self) -> bool:
        """Its clients hold more connections than they may."""
        most = self.policy.limits.connections
        return 0 < most < self.stats.connections

    # ── choosing, and learning from what came of it

    def pick(self, tried: Collection[Upstream], now: float, key: bytes | None = None) -> Upstream | None:
        """The endpoint for the next try; None if there is none that was not tried. `key`: what is hashed."""
        chosen = self.balancer.pick(self._tiers, tried, now, key)
        if chosen is not None and 0.0 < chosen.avoid_until <= now:
            if chosen.breaker.state is State.OPEN:
                chosen.breaker.probe(now)
            chosen.follow_breaker()
        return chosen

    def client_key(self, address: str) -> bytes | None:
        """What is hashed of a TCP connection or a datagram: the client's address, or nothing."""
        return address.encode() if self.policy.hash_of == "client" else None

    def succeeded(self, upstream: Upstream, began: float, now: float) -> None:
        """A try that began at `began` showed that the endpoint is well."""
        upstream.breaker.success(began, now)
        if upstream.avoid_until:
            upstream.follow_breaker()

    def failed(self, upstream: Upstream, began: float, now: float, *, refused: bool = False) -> None:
        """A try failed for what the endpoint did; `refused`: it could not be reached at all."""
        breaker = upstream.breaker
        if breaker.failure(began, now) and self._can_spare_one():
            breaker.eject(now)
        if breaker.state is not State.CLOSED:
            upstream.follow_breaker()
        elif refused:
            upstream.avoid_until = now + AVOID_SECONDS

    def answered_after(self, upstream: Upstream, seconds: float, now: float) -> None:
        """How long the answer took (for TCP: the connection)."""
        if self.policy.balance == "ewma":
            observe(upstream, seconds, now)

    def connected(self, upstream: Upstream, began: float, now: float) -> None:
        """All that TCP tells of an endpoint: it took the connection."""
        self.succeeded(upstream, began, now)
        self.answered_after(upstream, now - began, now)

    def no_result(self, upstream: Upstream, began: float, now: float) -> None:
        """A try ended without telling anything of the endpoint."""
        if upstream.breaker.state is State.PROBING:
            upstream.breaker.no_result(began, now)
            upstream.follow_breaker()

    def _candidates(self) -> list[Upstream]:
        """Of whom a share may be ejected: the ready ones, or what there is instead."""
        everyone = [each for each in self.whole._upstreams.values() if each.weight > 0]
        return [each for each in everyone if each.state == "ready"] or everyone

    def _can_spare_one(self) -> bool:
        candidates = self._candidates()
        ejected = sum(each.breaker.state is not State.CLOSED for each in candidates)
        return may_eject(ejected, len(candidates), self.policy.breaker.max_ejected)

    def _spare(self, now: float) -> None:
        """Takes back who can no longer be spared, now that there are fewer; the first to be probed first."""
        candidates = self._candidates()
        ejected = [each for each in candidates if each.breaker.state is not State.CLOSED]
        ejected.sort(key=lambda each: -each.breaker.until)
        while ejected and not may_eject(len(ejected) - 1, len(candidates), self.policy.breaker.max_ejected):
            upstream = ejected.pop()
            upstream.breaker.close(now)
            upstream.follow_breaker()

    def why_unavailable(self) -> str:
        """The sentence for the client when there is nothing to try."""
        if self.gone:
            return f"{self.name}: the service is gone"
        if self.desired == 0:
            return f"{self.name}: the service is scaled to zero"
        with_tag = f" with tag {self.tag}" if self.tag else ""
        return f"{self.name}: no endpoint{with_tag} is up, {self.desired} wanted"

    def close(self) -> None:
        """Closes idle connections."""
        for upstream in self._upstreams.values():
            upstream.close()
