"""Which service answers a request: pure. Most specific rule first, weights between its targets.

The order of rules is total: an exact host before a wildcard (a longer one first) before none; then the longer path
prefix; then more header conditions; then as written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mesh.proxy.http1 import Request
from mesh.table import Rule, Target


class Splitter:
    """Chooses among targets by weight, evenly spread: exact over any run of as many requests as the weights sum to.

    Source: nginx's smooth weighted round-robin.
    """

    __slots__ = ("_current", "_targets", "_total")

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = [target for target in targets if target.weight > 0]
        self._current = [0] * len(self._targets)
        self._total = sum(target.weight for target in self._targets)

    def next(self) -> Target | None:
        """The target of the next request; None if there is none."""
        if not self._targets:
            return None
        current = self._current
        for index, target in enumerate(self._targets):
            current[index] += target.weight
        chosen = max(range(len(current)), key=current.__getitem__)
        current[chosen] -= self._total
        return self._targets[chosen]


@dataclass(frozen=True, slots=True)
class _Rule:
    host: bytes  # lower case; empty: any; `*.` in front: any name below
    path: bytes
    headers: Mapping[bytes, bytes]
    targets: Splitter

    def matches(self, host: bytes, path: bytes, request: Request) -> bool:
        return _host_matches(self.host, host) and _path_matches(self.path, path) and _headers_match(self, request)


class Router:
    """The rules of one route, or of all routes that share a listener."""

    __slots__ = ("_rules",)

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = [
            _Rule(rule.host.lower().encode(), rule.path.encode(),
                  {name.lower().encode(): value.encode() for name, value in rule.headers.items()}, Splitter(rule.to))
            for rule in sorted(rules, key=_specificity)
        ]  # fmt: skip

    def target(self, request: Request) -> Target | None:
        """Where `request` goes; None if no rule matches."""
        host = _without_port(request.host).lower()
        path = request.target.partition(b"?")[0]
        for rule in self._rules:
            if rule.matches(host, path, request):
                return rule.targets.next()
        return None


def _specificity(rule: Rule) -> tuple[int, int, int, int]:
    kind = 2 if not rule.host else 1 if rule.host.startswith("*.") else 0
    return kind, -len(rule.host), -len(rule.path.rstrip("/")), -len(rule.headers)


def _without_port(host: bytes) -> bytes:
    name, colon, port = host.rpartition(b":")
    return name if colon and (not port or port.isdigit()) else host


def _host_matches(wanted: bytes, host: bytes) -> bool:
    if not wanted or wanted == host:
        return True
    return wanted.startswith(b"*.") and host.endswith(wanted[1:]) and len(host) > len(wanted) - 1


def _path_matches(prefix: bytes, path: bytes) -> bool:
    """`/api` is a prefix of `/api` and `/api/x`, not of `/apis`."""
    prefix = prefix.rstrip(b"/")
    return path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in (b"", b"/")


def _headers_match(rule: _Rule, request: Request) -> bool:
    return all(request.fields.has(name, value) for name, value in rule.headers.items())
