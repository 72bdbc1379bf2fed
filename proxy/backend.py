"""What a service port's traffic can go to: its endpoints as the Table has them, their idle connections, its policy.

A Backend outlives changes of the Table: `update` replaces its endpoints in place, so whoever holds one always
chooses among the present ones.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from mesh.proxy.balance import Balancer, tiers_of
from mesh.proxy.policy import Policy, parse_policy
from mesh.proxy.retry import RetryBudget
from mesh.proxy.stats import Stats
from mesh.table import Endpoint, TableService

if TYPE_CHECKING:
    from mesh.proxy.upstream import UpstreamConnection

AVOID_SECONDS = 1.0
"""An endpoint that refused a connection is the last choice for this long."""
MAX_IDLE = 512
"""Idle connections kept per endpoint."""


class Upstream:
    """One endpoint of one service port, with its idle connections (last in, first out)."""

    __slots__ = ("address", "avoid_until", "gone", "id", "idle", "in_flight", "port", "weight")

    def __init__(self, endpoint: Endpoint, port: int) -> None:
        self.id = endpoint.id
        self.address = endpoint.address
        self.port = port
        self.weight = endpoint.weight
        self.in_flight = 0
        self.avoid_until = 0.0
        self.gone = False  # left the Table: no new request or connection
        self.idle: list[UpstreamConnection] = []

    def take(self) -> UpstreamConnection | None:
        """The idle connection that was used last."""
        while self.idle:
            connection = self.idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    def put(self, connection: UpstreamConnection) -> bool:
        """Keeps a connection for the next request; False if it should be closed."""
        if self.gone or len(self.idle) >= MAX_IDLE:
            return False
        self.idle.append(connection)
        return True

    def close(self) -> None:
        """Lets go of all idle connections."""
        idle, self.idle = self.idle, []
        for connection in idle:
            connection.close()

    def retire(self) -> None:
        """It left the Table: what it has in flight finishes, nothing new comes."""
        self.gone = True
        self.close()


class Backend:
    """A service port, or those of its endpoints that have `tag`."""

    def __init__(self, service: str, port: str, tag: str | None = None, stats: Stats | None = None) -> None:
        self.service = service
        self.port = port
        self.tag = tag
        self.name = f"{service}.{port}"
        self.host = service.encode()  # stands in for a Host that a client did not send
        self.stats = stats or Stats()
        self.policy = Policy()
        self.problems: list[str] = []
        self.budget = RetryBudget(self.policy.retry_budget)
        self.balancer = Balancer(self.policy.balance)
        self.gone = False  # the service left the Table
        self.desired = 0
        self._traffic: object = None
        self._upstreams: dict[tuple[str, str, int], Upstream] = {}
        self._tiers: list[list[Upstream]] = []

    def update(self, service: TableService | None) -> None:
        """Chooses among the endpoints of `service` from now on; those that left are retired."""
        old, self._upstreams = self._upstreams, {}
        states: list[tuple[str, Upstream]] = []
        for endpoint in service.endpoints if service else ():
            port = endpoint.ports.get(self.port)
            if port is None or (self.tag is not None and self.tag not in endpoint.tags):
                continue
            key = (endpoint.id, endpoint.address, port)
            upstream = old.pop(key, None) or Upstream(endpoint, port)
            upstream.weight = endpoint.weight
            self._upstreams[key] = upstream
            states.append((endpoint.state, upstream))
        self.gone = service is None
        self.desired = service.desired if service else 0
        self._tiers = tiers_of(states, self.desired)
        if service is not None:
            self._read_policy(service)
        for upstream in old.values():
            upstream.retire()

    def _read_policy(self, service: TableService) -> None:
        if service.traffic == self._traffic:
            return
        self._traffic = service.traffic
        self.policy, self.problems = parse_policy(service.traffic)
        self.budget.ratio = self.policy.retry_budget
        self.balancer = Balancer(self.policy.balance)

    @property
    def upstreams(self) -> list[Upstream]:
        return list(self._upstreams.values())

    def pick(self, tried: Collection[Upstream], now: float) -> Upstream | None:
        """The endpoint for the next try; None if there is none that was not tried."""
        return self.balancer.pick(self._tiers, tried, now)

    def why_unavailable(self) -> str:
        """The sentence for the client when there is nothing to try."""
        if self.gone:
            return f"{self.name}: the service is gone"
        if not self._upstreams and self.desired == 0:
            return f"{self.name}: the service is scaled to zero"
        with_tag = f" with tag {self.tag}" if self.tag else ""
        return f"{self.name}: no endpoint{with_tag} is up, {self.desired} wanted"

    def close(self) -> None:
        """Closes idle connections."""
        for upstream in self._upstreams.values():
            upstream.close()
