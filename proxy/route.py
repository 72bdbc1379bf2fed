"""Which rule a request meets, and what the rule makes of it: pure.

The order of rules is total; the first that matches wins:

1. an exact host before a wildcard, a longer wildcard before a shorter one, a wildcard before any host;
2. a longer path prefix before a shorter one;
3. with methods before without;
4. more header conditions before fewer;
5. by the name of the route, then as written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from mesh.proxy.headers import Origin
from mesh.proxy.http1 import Request
from mesh.proxy.limit import TokenBucket, TokenBuckets
from mesh.table import Redirect, Rewrite, Rule, Target

MAX_HOST = 255
"""Bytes; no longer host is looked for among wildcards."""


class Weighted(Protocol):
    """What a `Split` chooses among."""

    @property
    def weight(self) -> int: ...

    @property
    def present(self) -> bool:
        """Whether it could serve a request at all."""


W = TypeVar("W", bound=Weighted)


class Split(Generic[W]):
    """Chooses by weight, evenly spread: exact over any run of as many requests as the weights sum to.

    What is not present hands its share to the others, in proportion, as long as there are any.
    Source: nginx's smooth weighted round-robin.
    """

    __slots__ = ("_current", "_members", "_open", "_total")

    def __init__(self, members: Sequence[W]) -> None:
        self._members = [member for member in members if member.weight > 0]
        self._current = dict.fromkeys(self._members, 0)
        self.follow()

    def follow(self) -> None:
        """Other members may be present than before."""
        self._open = [member for member in self._members if member.present] or self._members
        self._total = sum(member.weight for member in self._open)

    def next(self) -> W:
        """The one for the next request."""
        if len(self._open) == 1:
            return self._open[0]
        current = self._current
        for member in self._open:
            current[member] += member.weight
        chosen = max(self._open, key=current.__getitem__)
        current[chosen] -= self._total
        return chosen


class Meeting(Generic[W]):
    """One rule of a route, ready to be met by requests."""

    __slots__ = ("_headers", "_limit", "_limit_by", "_methods", "path", "route", "rule", "split", "ways")

    def __init__(self, route: str, rule: Rule, ways: Sequence[W]) -> None:
        """`ways`: one for each of the rule's targets."""
        self.route = route
        self.rule = rule
        self.ways = ways
        self.split = Split(ways)
        path = rule.path.encode()
        self.path = (compared_path(path) or path).rstrip(b"/")  # a prefix of those that it matches, as compared
        self._methods = frozenset(method.encode() for method in rule.methods)
        self._headers = [(name.lower().encode(), value.encode()) for name, value in rule.headers.items()]
        self._limit: TokenBuckets | TokenBucket | None = None
        self._limit_by = b""
        if rule.limits is not None:
            kind = TokenBucket if rule.limits.per == "rule" else TokenBuckets
            self._limit = kind(rule.limits.rate, rule.limits.burst)
            self._limit_by = rule.limits.per.partition(":")[2].lower().encode()

    def matches(self, request: Request) -> bool:
        """Whether a request whose host and path match meets the rest of its conditions."""
        if self._methods and request.method not in self._methods:
            return False
        return all(value in request.fields.values(name) for name, value in self._headers)

    def wait(self, request: Request, origin: Origin, now: float) -> float:
        """Seconds until a request like this one is within the rule's limits; 0: it is."""
        limit = self._limit
        if limit is None:
            return 0.0
        if isinstance(limit, TokenBucket):
            return limit.take(now)
        fields = request.fields
        key = next(iter(fields.values(self._limit_by)), b"") if self._limit_by else origin.client(fields)
        return limit.take(key, now)

    def moved(self, change: Redirect | Rewrite, path: bytes, target: bytes) -> bytes:
        """The target that a redirect or rewrite makes of `target`, whose path as compared is `path`."""
        if target == b"*":  # of OPTIONS: no path, but the server as a whole
            return target
        _, question, query = target.partition(b"?")
        if change.path is not None:
            path = change.path.encode()
        elif change.prefix is not None:
            path = change.prefix.rstrip("/").encode() + path[len(self.path) :]
        else:
            return target
        return (path or b"/") + question + query

    def location(self, redirect: Redirect, path: bytes, request: Request, scheme: bytes) -> bytes:
        """Where a redirect sends the client: a path alone, as long as scheme and host stay."""
        whole = path == b"*"  # the server, whose root is asked for then
        target = self.moved(redirect, b"/", b"/") if whole else self.moved(redirect, path, request.target)
        if target.startswith((b"//", b"/\\")):  # a browser would take it for another host
            target = b"/" + target.lstrip(b"/\\")
        if redirect.scheme is None and redirect.host is None:
            return target
        to_scheme = redirect.scheme.encode() if redirect.scheme else scheme
        host = redirect.host.encode() if redirect.host else request.asked_host
        if redirect.host is None and to_scheme != scheme:
            host = without_port(host)
        return b"%b://%b%b" % (to_scheme, host, target)


class _Paths(Generic[W]):
    """The rules for one host, by path."""

    __slots__ = ("_by_path", "_longest")

    def __init__(self) -> None:
        self._by_path: dict[bytes, list[Meeting[W]]] = {}
        self._longest = 0

    def add(self, meeting: Meeting[W]) -> None:
        self._by_path.setdefault(meeting.path, []).append(meeting)
        self._longest = max(self._longest, len(meeting.path))

    def find(self, path: bytes, request: Request) -> Meeting[W] | None:
        """`/api` is a prefix of `/api` and `/api/x`, not of `/apis`."""
        prefix = path[: self._longest + 1]  # one more shows the border
        while True:
            for meeting in self._by_path.get(prefix, ()):
                if meeting.matches(request):
                    return meeting
            if not prefix:
                return None
            prefix = prefix[: max(prefix.rfind(b"/"), 0)]


class Router(Generic[W]):
    """The rules of all routes that share a listener."""

    __slots__ = ("_any", "_exact", "_wild", "meetings")

    def __init__(self, meetings: Iterable[Meeting[W]]) -> None:
        """`meetings` by the name of their route, then as written."""
        self.meetings = sorted(meetings, key=_specificity)
        self._exact: dict[bytes, _Paths[W]] = {}
        self._wild: dict[bytes, _Paths[W]] = {}
        self._any: _Paths[W] = _Paths()
        for meeting in self.meetings:
            host = meeting.rule.host.lower().encode()
            if host in (b"", b"*"):
                self._any.add(meeting)
            elif host.startswith(b"*."):
                self._wild.setdefault(host[1:], _Paths()).add(meeting)
            else:
                self._exact.setdefault(host, _Paths()).add(meeting)

    def find(self, host: bytes, path: bytes, request: Request) -> Meeting[W] | None:
        """The rule for a request; `host` and `path` as they are compared."""
        if (paths := self._exact.get(host)) and (found := paths.find(path, request)):
            return found
        if self._wild and len(host) <= MAX_HOST:
            dot = host.find(b".", 1)
            while dot > 0:
                if (paths := self._wild.get(host[dot:])) and (found := paths.find(path, request)):
                    return found
                dot = host.find(b".", dot + 1)
        return self._any.find(path, request)


def _specificity(meeting: Meeting[W]) -> tuple[bool, int]:
    """Within one host and path, which `Router` and `_Paths` tell apart."""
    return not meeting.rule.methods, -len(meeting.rule.headers)


# ── what is compared


def compared_host(host: bytes) -> bytes:
    return without_port(host).removesuffix(b".").lower()


def without_port(host: bytes) -> bytes:
    name, colon, port = host.rpartition(b":")
    return name if colon and (not port or port.isdigit()) else host


_ESCAPED = re.compile(rb"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_RAW = re.compile(rb"[\x80-\xff]")
_SLASHES = re.compile(rb"//+")
_DOTS = re.compile(rb"/\.\.?(?:/|$)")


def compared_path(target: bytes) -> bytes | None:
    """The path of a target as rules see it; None if it has `.` or `..` segments, which servers resolve differently.

    So that no other spelling of a path meets another rule: unreserved characters are unescaped, those beyond ASCII
    escaped, escapes in upper case (RFC 3986, 6.2.2), slashes in a row are one.
    """
    path = target.partition(b"?")[0]
    if not path.isascii():  # curl sends them as they were typed
        path = _RAW.sub(lambda match: b"%%%02X" % match[0][0], path)
    if b"%" in path:
        path = _ESCAPED.sub(_unescape, path)
    if b"//" in path:
        path = _SLASHES.sub(b"/", path)
    if b"/." in path and _DOTS.search(path):
        return None
    return path


def _unescape(match: re.Match[bytes]) -> bytes:
    code = int(match[1], 16)
    return bytes((code,)) if code in _UNRESERVED else match[0].upper()


# ── targets


def others_tags(targets: Sequence[Target]) -> Mapping[int, frozenset[str]]:
    """For the targets (by index) without a tag: the tags of their service and port that go elsewhere."""
    return {
        index: frozenset(other.tag for other in targets
                         if other.tag is not None and (other.service, other.port) == (target.service, target.port))
        for index, target in enumerate(targets) if target.tag is None
    }  # fmt: skip
