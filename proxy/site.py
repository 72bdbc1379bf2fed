"""What a listener serves: one service port, or the rules of routes. Says for each request where it goes, and how."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec

from mesh.proxy.backend import Backend
from mesh.proxy.headers import Origin
from mesh.proxy.http1 import Refused, Request, parse_request
from mesh.proxy.policy import Policy, parse_policy
from mesh.proxy.route import Meeting, Router, compared_host, compared_path, others_tags
from mesh.proxy.stats import RouteStats, Stats
from mesh.table import Rule, TableRoute, Target

NAMED = parse_request(b"GET / HTTP/1.1\r\nHost: name\r\n\r\n")
"""Stands for what of a request nobody sees who only knows the host's name."""

Destination = tuple[Backend, Policy, RouteStats | None]
"""Where a request goes, how it is treated there, and the route that sent it."""


class Answer(Exception):
    """A request that is answered here: by a redirect, or by why it goes nowhere. Its connection lives on."""

    def __init__(self, status: int, text: str, fields: bytes = b"") -> None:
        """`fields`: further lines of the head."""
        super().__init__(text)
        self.status = status
        self.fields = fields


class Subset(NamedTuple):
    """The endpoints of a service port that have `tag`, and none of the tags in `without`."""

    service: str
    port: str
    tag: str | None = None
    without: frozenset[str] = frozenset()


Backends = Callable[[Subset], Backend | None]


class ServiceSite:
    """A service port's own listener: every request goes to that service."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.stats = backend.stats

    @property
    def idle_timeout(self) -> float:
        return self._backend.policy.idle_timeout

    @property
    def full(self) -> bool:
        return self._backend.full

    def destination(self, request: Request, origin: Origin) -> Destination:
        return self._backend, self._backend.policy, None


class Way:
    """One target of a rule: its backend as the Table has it now, and how its requests are treated."""

    __slots__ = ("_of", "_own", "_shares", "backend", "policy", "subset", "weight")

    def __init__(self, target: Target, without: frozenset[str], own: Mapping[str, Any], *, shares: bool) -> None:
        """`own`: the fields of the policy that the rule sets itself; `shares`: it splits one service by its tags."""
        self.subset = Subset(target.service, target.port, target.tag, without)
        self.weight = target.weight
        self.backend: Backend | None = None
        self.policy = self._of = Policy()
        self._own = own
        self._shares = shares

    @property
    def present(self) -> bool:
        return self.backend is not None and (self.backend.present or self.backend.asleep)

    def follow(self, backends: Backends) -> None:
        """The services of the Table have changed."""
        self.backend = backends(self.subset)
        if self.backend is not None and self.backend.asleep and self._shares:
            self.backend = self.backend.whole  # nobody knows yet which tag the first replica has: any will do
        if self.backend is not None and self.backend.policy is not self._of:
            self._of = self.backend.policy
            self.policy = replace(self._of, **self._own)


class RouteSite:
    """The listener of one or more routes; its rules may change while connections are open."""

    def __init__(self) -> None:
        self._router: Router[Way] = Router(())
        self._known: dict[bytes, tuple[Meeting[Way], list[str]]] = {}  # by route and rule
        self._unread: list[str] = []
        self.routes: dict[str, RouteStats] = {}
        self.stats = Stats()  # of the listener
        self.idle_timeout = Policy().idle_timeout
        self.full = False  # but for the worker's own limit

    def update(self, routes: Mapping[str, TableRoute]) -> None:
        """Serves these routes, by name. A rule that is as it was keeps its place in the split, and its buckets."""
        self.routes = {name: self.routes.get(name) or RouteStats(name) for name in sorted(routes)}
        old, self._known = self._known, {}
        for name in self.routes:
            for rule in routes[name].rules:
                key = msgspec.msgpack.encode((name, rule))
                self._known[key] = old.get(key) or _meeting(name, rule)
        self._router = Router(meeting for meeting, _ in self._known.values())
        self._unread = [problem for _, problems in self._known.values() for problem in problems]

    def follow(self, backends: Backends) -> None:
        """The services of the Table have changed."""
        for meeting in self._router.meetings:
            for way in meeting.ways:
                way.follow(backends)
            meeting.split.follow()

    @property
    def subsets(self) -> Iterator[Subset]:
        """All that the rules send requests to."""
        return (way.subset for meeting in self._router.meetings for way in meeting.ways)

    def problems(self) -> list[str]:
        """What of the rules cannot be read, or leads nowhere."""
        missing = {
            f"route {meeting.route}: there is no port {way.subset.service}.{way.subset.port}": None
            for meeting in self._router.meetings
            for way in meeting.ways
            if way.backend is None
        }
        return [*self._unread, *missing]

    def passage(self, name: str) -> tuple[Backend, str] | None:
        """Where a TLS connection to this name goes unopened, and the route that says so; None: nowhere."""
        meeting = self._router.find(name.encode(), b"/", NAMED)
        if meeting is None or (backend := meeting.split.next().backend) is None:
            return None
        return backend, meeting.route

    def destination(self, request: Request, origin: Origin) -> Destination:
        """Raises Answer: where it is redirected, or why it goes nowhere. Refused: the routes are no more."""
        if not self.routes:
            raise Refused(404, "the route is gone")
        path = compared_path(request.target)
        if path is None:
            self.stats.refused(400)
            raise Answer(400, "a path with . or .. segments")
        meeting = self._router.find(compared_host(request.asked_host), path, request)
        if meeting is None:
            self.stats.refused(404)
            raise Answer(404, "no route for this host and path")
        stats = self.routes[meeting.route]
        if wait := meeting.wait(request, origin, time.monotonic()):
            stats.refused(429)
            raise Answer(429, "too many requests", b"Retry-After: %d\r\n" % math.ceil(wait))
        rule = meeting.rule
        if rule.redirect is not None:
            location = meeting.location(rule.redirect, path, request, origin.asked_scheme(request.fields))
            stats.refused(rule.redirect.code)
            raise Answer(rule.redirect.code, f"see {location.decode('latin-1')}", b"Location: %b\r\n" % location)
        way = meeting.split.next()
        if way.backend is None:
            stats.refused(503)
            raise Answer(503, f"{way.subset.service}.{way.subset.port}: no such service and port")
        if rule.rewrite is not None:
            request.target = meeting.moved(rule.rewrite, path, request.target)
            request.host = rule.rewrite.host.encode() if rule.rewrite.host else request.host
        return way.backend, way.policy, stats


def _meeting(route: str, rule: Rule) -> tuple[Meeting[Way], list[str]]:
    """A rule made ready, and what of it cannot be read."""
    own, problems = _own_policy(rule)
    without = others_tags(rule.to)
    services = Counter((target.service, target.port) for target in rule.to)
    ways = [
        Way(target, without.get(index, frozenset()), own, shares=services[target.service, target.port] > 1)
        for index, target in enumerate(rule.to)
    ]
    return Meeting(route, rule, ways), [f"route {route}: {problem}" for problem in problems]


_RETRY_FIELDS = {"attempts": "retries", "on": "retry_on", "per_try_timeout": "per_try_timeout"}


def _own_policy(rule: Rule) -> tuple[dict[str, Any], list[str]]:
    """The fields of the policy that a rule sets itself, and what of them cannot be read."""
    given = {"retries": rule.retries} | ({} if rule.timeout is None else {"timeout": rule.timeout})
    policy, problems = parse_policy(given)
    names = [field for name, field in _RETRY_FIELDS.items() if name in rule.retries]
    names += ["timeout"] * (rule.timeout is not None)
    return {name: getattr(policy, name) for name in names}, problems
