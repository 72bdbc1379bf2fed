"""Names of others: from the cache, else from the upstream servers, the next one where the first does not answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from mesh.aio import Tasks
from mesh.dns import sockets
from mesh.dns.cache import Answer, Cache, Key
from mesh.dns.clients import Networks
from mesh.dns.counters import Counters
from mesh.dns.message import CD, DNSSEC_OK, Query
from mesh.dns.upstream import ResolvConf, Upstream, UpstreamError, is_this_host
from mesh.dns.wire import Reply, Transport, adapt, refuse
from mesh.dns.zone import REFUSED, SERVFAIL

log = logging.getLogger(__name__)

_PATIENCE = 0.7  # seconds until the next upstream is asked too
_LONGEST = 4.0  # seconds for a question in all: stub resolvers give up after five
_TRIES = 3
_MOST_WAITING = 1000


class Forwarder:
    """Answers what is not the mesh's, for the clients of the allowed networks.

    upstreams: `ADDR[:PORT]`s; none: those of `resolv_conf`. own: where this server listens, never an upstream.

    Raises:
        ValueError: for an address that is none.
    """

    def __init__(
        self,
        upstreams: Sequence[str],
        allow: Networks,
        counters: Counters,
        own: Callable[[], Sequence[tuple[str, int]]],
        resolv_conf: ResolvConf | None = None,
    ) -> None:
        self._configured = [Upstream(*sockets.parse_address(address)) for address in upstreams]
        self._resolv_conf = resolv_conf or ResolvConf()
        self._allow = allow
        self._counters = counters
        self._own = own
        self._cache = Cache()
        self._in_flight: dict[Key, asyncio.Task[Answer | None]] = {}
        self._waiting = 0
        self._tasks = Tasks()

    def resolve(self, query: Query, transport: Transport, client: str) -> Reply | Coroutine[Any, Any, Reply]:
        """The answer, at once where it is known or refused, else a coroutine that gets it."""
        if not self._allow.include(client):
            self._counters.forwarded["refused"] += 1
            return refuse(query, REFUSED, recursion=True)
        key = _key(query)
        if answer := self._cache.get(key, _now()):
            self._counters.forwarded["hit"] += 1
            return _adapted(query, transport, answer)
        upstreams = self._upstreams()
        if not upstreams or not query.recursion_desired:
            self._counters.forwarded["refused"] += 1
            return refuse(query, REFUSED, recursion=True)
        if self._waiting >= _MOST_WAITING:
            self._counters.drops["in-flight"] += 1
            return refuse(query, SERVFAIL, recursion=True)
        return self._resolve(query, transport, key, upstreams)

    async def close(self) -> None:
        await self._tasks.close()

    async def _resolve(self, query: Query, transport: Transport, key: Key, upstreams: list[Upstream]) -> Reply:
        self._waiting += 1
        asking = self._in_flight.get(key)  # one question is asked once, however many wait for it
        if asking is None:
            asking = self._tasks.spawn(self._ask_all(key, query.question.raw, upstreams), "dns upstreams")
            self._in_flight[key] = asking
            asking.add_done_callback(lambda _: self._in_flight.pop(key, None))
        try:
            answer = await asyncio.shield(asking)
        finally:
            self._waiting -= 1
        if answer:
            self._counters.forwarded["miss"] += 1
            self._cache.put(key, answer, _now())
            return _adapted(query, transport, answer)
        if answer := self._cache.get(key, _now(), stale=True):
            self._counters.forwarded["stale"] += 1
            return _adapted(query, transport, answer)
        self._counters.forwarded["failed"] += 1
        return refuse(query, SERVFAIL, recursion=True)

    async def _ask_all(self, key: Key, question: bytes, upstreams: list[Upstream]) -> Answer | None:
        """The first good answer; each next upstream is asked when the one before fails, or is slow."""
        now = _now()
        order = sorted(upstreams, key=lambda upstream: upstream.is_down(now))
        queue = (order * _TRIES)[: max(_TRIES, len(order))]
        tries: dict[asyncio.Task[Answer], Upstream] = {}
        deadline = now + _LONGEST
        try:
            while queue or tries:
                left = deadline - _now()
                if left <= 0:
                    break
                if queue:
                    upstream = queue.pop(0)
                    tries[asyncio.ensure_future(upstream.ask(key, question, left))] = upstream
                patience = min(_PATIENCE, left) if queue else left
                done, slow = await asyncio.wait(tries, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    upstream = tries.pop(task)
                    try:
                        answer = task.result()
                    except UpstreamError as error:  # it answers, but not this
                        log.debug("no answer to %s: %s", key, error)
                        self._counters.upstream_failures[str(upstream)] += 1
                    except OSError as error:
                        self._failed(upstream, error)
                    else:
                        upstream.answered()
                        return answer
                if not done:
                    for task in slow:
                        tries[task].failed(_now())
            return None
        finally:
            for task in tries:
                task.cancel()
            await asyncio.gather(*tries, return_exceptions=True)

    def _failed(self, upstream: Upstream, error: Exception) -> None:
        now = _now()
        if not upstream.is_down(now):
            log.warning("upstream=%s does not answer: %s", upstream, str(error) or "time-out")
        upstream.failed(now)
        self._counters.upstream_failures[str(upstream)] += 1

    def _upstreams(self) -> list[Upstream]:
        candidates = self._configured or self._resolv_conf.upstreams()
        return [upstream for upstream in candidates if not self._is_ourselves(upstream)]

    def _is_ourselves(self, upstream: Upstream) -> bool:
        for host, port in self._own():
            if port == upstream.port and (
                host == upstream.host or (sockets.is_wildcard(host) and is_this_host(upstream.host))
            ):
                return True
        return False


def _key(query: Query) -> Key:
    dnssec = query.edns.flags & DNSSEC_OK if query.edns else 0
    return Key(query.question.labels, query.question.type, (dnssec, query.flags & CD))


def _adapted(query: Query, transport: Transport, answer: Answer) -> Reply:
    return adapt(query, transport, answer.body, answer.counts, answer.rcode)


def _now() -> float:
    return asyncio.get_running_loop().time()
