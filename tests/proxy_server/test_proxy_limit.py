"""How much is let through: the gate and its line, rates, connections; and what clients are told beyond."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mesh.proxy.access_log import AccessLog
from mesh.proxy.exchange import Exchange
from mesh.proxy.limit import MAX_KEYS, Gate, TokenBucket, TokenBuckets
from mesh.table import Table
from tests.patience import until
from tests.proxy_server.wire import GET, OK, Mesh, Peer, answering


class Guest:
    """Stays inside until told, or leaves in the moment in which it is let in."""

    def __init__(self, gate: Gate, inside: list[Guest], *, hasty: bool) -> None:
        self.gate = gate
        self.inside = inside
        self.hasty = hasty

    def enter(self) -> None:
        self.inside.append(self)

    def admit(self) -> None:
        self.enter()
        if self.hasty:
            self.leave()

    def leave(self) -> None:
        self.inside.remove(self)
        self.gate.leave()


class GateMachine(RuleBasedStateMachine):
    @initialize(most=st.integers(1, 3), queue=st.integers(0, 4))
    def begin(self, most: int, queue: int) -> None:
        self.gate = Gate(most, queue)
        self.most, self.queue = most, queue
        self.inside: list[Guest] = []
        self.line: list[Guest] = []

    def _waiting(self) -> None:
        self.line = [each for each in self.line if each in self.gate._line]

    @rule(hasty=st.booleans())
    def come(self, hasty: bool) -> None:
        guest = Guest(self.gate, self.inside, hasty=hasty)
        if self.gate.free > 0:
            self.gate.free -= 1
            guest.enter()
        elif self.gate.wait(guest):
            self.line.append(guest)
        else:
            assert len(self.line) >= self.queue

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.inside)).leave()
        self._waiting()

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        self.gate.give_up(data.draw(st.sampled_from(self.line)))
        self._waiting()

    @rule(most=st.integers(0, 3), queue=st.integers(0, 4))  # 0: it is shut
    def resize(self, most: int, queue: int) -> None:
        self.gate.resize(most, queue)
        self.most, self.queue = most, queue
        self._waiting()

    @invariant()
    def everyone_has_a_place(self) -> None:
        assert self.gate.free == self.most - len(self.inside)
        assert self.gate.waiting == len(self.line)
        assert not self.line or self.gate.free <= 0, "nobody waits before an open gate"


TestGate = GateMachine.TestCase


def test_a_long_line_of_hasty_guests() -> None:
    """Each is done as soon as it is in: no recursion."""
    gate, inside = Gate(1, 100_000), list[Guest]()
    first = Guest(gate, inside, hasty=False)
    gate.free -= 1
    first.enter()
    for _ in range(100_000):
        assert gate.wait(Guest(gate, inside, hasty=True))
    first.leave()
    assert (gate.waiting, gate.free) == (0, 1)


# ── rates


def test_a_bucket_lets_a_second_s_worth_through_at_once() -> None:
    bucket = TokenBucket(10)
    assert sum(bucket.take(5.0) == 0 for _ in range(100)) == 10
    assert 0.09 < bucket.take(5.0) < 0.11
    assert bucket.take(5.1) == 0
    slow = TokenBucket(0.5)
    assert sum(slow.take(now / 10) == 0 for now in range(100)) == 5


@pytest.mark.parametrize("rate", [5e-324, 1e-320, 1e-9, 1e12])
def test_the_strangest_rates_still_have_a_wait_that_can_be_told(rate: float) -> None:
    bucket, each = TokenBucket(rate), TokenBuckets(rate, 3)
    assert bucket.take(5.0) == 0.0
    assert 0 <= math.ceil(bucket.take(5.0)) <= 1e9
    assert [each.take(b"key", 5.0) > 0 for _ in range(4)] == [False, False, False, rate < 1]


@given(st.floats(0.1, 100), st.integers(1, 50), st.lists(st.floats(0, 60), max_size=200))
def test_never_more_than_burst_and_rate(rate: float, burst: int, times: list[float]) -> None:
    bucket = TokenBucket(rate, burst)
    passed = [now for now in sorted(times) if not bucket.take(now)]
    for first, start in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + rate * (passed[last] - start) + 0.01


@given(st.lists(st.tuples(st.floats(0, 5), st.sampled_from([b"a", b"b"])), max_size=60))
def test_each_key_has_a_bucket(events: list[tuple[float, bytes]]) -> None:
    buckets, own = TokenBuckets(3, 2), {b"a": TokenBucket(3, 2), b"b": TokenBucket(3, 2)}
    for now, key in sorted(events):
        assert buckets.take(key, now) == own[key].take(now)


def test_keys_are_forgotten_the_longest_unseen_first() -> None:
    buckets = TokenBuckets(1)
    assert not buckets.take(b"busy", 0.0)
    for number in range(3 * MAX_KEYS):
        buckets.take(b"%d" % number, 0.0)
        if number % 100 == 0:
            assert buckets.take(b"busy", 0.0), "whoever keeps asking is remembered"
    assert len(buckets) == MAX_KEYS


# ── on the wire


async def test_what_is_too_much_waits_its_turn(mesh: Mesh) -> None:
    mesh.traffic = {"limits": {"in_flight": 2, "queue": 2}}
    upstream = await mesh.add("web-1")
    clients = [await mesh.dial() for _ in range(5)]
    for number, client in enumerate(clients):
        await client.send(b"GET /%d HTTP/1.1\r\nHost: web\r\n\r\n" % number)
        await until(lambda number=number: mesh.count("in_flight") == min(number + 1, 4), "it came")  # type: ignore[misc]
    answer, body = await clients[4].answer()
    assert answer.start == "HTTP/1.1 503 Service Unavailable"
    assert answer["Retry-After"] == "1"
    assert body == b"web.http: too many requests are under way and waiting\n"
    servers = [await upstream.accept() for _ in range(2)]
    assert [(await server.head()).start.split()[1] for server in servers] == ["/0", "/1"]
    assert upstream.accepted == 2
    await servers[0].send(OK)
    assert (await clients[0].answer())[1] == b"ok"
    assert (await servers[0].head()).start.split()[1] == "/2", "first come, first served"
    clients[3].reset()
    await until(lambda: mesh.count("in_flight") == 2, "the one that left")
    await servers[1].send(OK)
    await servers[0].send(OK)
    assert (await clients[1].answer())[1] == (await clients[2].answer())[1] == b"ok"
    await clients[4].send(GET)
    await servers[0].head()


async def test_the_wait_has_an_end(mesh: Mesh) -> None:
    mesh.traffic = {"limits": {"in_flight": 1, "queue_timeout": "200ms"}}
    await mesh.add("web-1")
    first, server, _ = await mesh.pair()
    answer, body = await mesh.ask()
    assert answer.start == "HTTP/1.1 503 Service Unavailable"
    assert answer["Retry-After"] == "1"
    assert body.startswith(b"web.http: no turn within 0.")
    await server.send(OK)
    assert (await first.answer())[1] == b"ok"


async def test_nobody_waits_for_a_service_that_is_gone(mesh: Mesh) -> None:
    mesh.traffic = {"limits": {"in_flight": 1}}
    await mesh.add("web-1")
    first, server, _ = await mesh.pair()
    waiting = [await mesh.dial() for _ in range(3)]
    for client in waiting:
        await client.send(GET)
    await until(lambda: mesh.count("in_flight") == 4, "the line")
    await mesh.update(Table())
    for client in waiting:
        assert (await client.answer())[1] == b"web.http: the service is gone\n"
    await server.send(OK)
    assert (await first.answer())[1] == b"ok"


async def test_nobody_waits_for_a_service_at_zero_that_is_still_busy(mesh: Mesh) -> None:
    mesh.traffic = {"limits": {"in_flight": 1}}
    await mesh.add("web-1")
    first, server, _ = await mesh.pair()
    mesh.desired = 0
    await mesh.update()
    assert (await mesh.ask())[1] == b"web.http: the service is scaled to zero\n"
    await server.send(OK)
    assert (await first.answer())[1] == b"ok"


async def test_more_room_lets_those_in_who_wait(mesh: Mesh) -> None:
    mesh.traffic = {"limits": {"in_flight": 1}}
    upstream = await mesh.add("web-1")
    await mesh.pair()
    client = await mesh.dial()
    await client.send(GET)
    await until(lambda: mesh.count("in_flight") == 2, "the line")
    mesh.traffic = {"limits": {"in_flight": 2}}
    await mesh.update()
    server = await upstream.accept()
    await server.head()
    await server.send(OK)
    assert (await client.answer())[1] == b"ok"


async def test_a_body_waits_with_its_request(mesh: Mesh) -> None:
    mesh.traffic = {"limits": {"in_flight": 1}}
    upstream = await mesh.add("web-1")
    first, server, _ = await mesh.pair()
    client = await mesh.dial()
    body = bytes(range(256)) * 1000
    sending = asyncio.create_task(
        client.send(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    )
    await until(lambda: mesh.count("in_flight") == 2, "the line")
    await server.send(OK)
    await first.answer()
    server = await upstream.accept()
    await server.head()
    await server.exactly(body)
    await server.send(OK)
    assert (await client.answer())[1] == b"ok"
    await sending


async def test_a_websocket_is_a_connection_and_not_in_flight(mesh: Mesh) -> None:
    mesh.traffic = {"limits": {"in_flight": 1, "queue": 0}}
    upstream = await mesh.add("web-1")
    client, server, _ = await mesh.pair(
        b"GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    assert (await mesh.ask())[0].start == "HTTP/1.1 503 Service Unavailable"
    await server.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    await client.head()
    other = await mesh.dial()
    await other.send(GET)
    second = await upstream.accept()
    await second.head()
    await second.send(OK)
    assert (await other.answer())[1] == b"ok"
    client.close()


async def test_the_rate_of_a_service(mesh: Mesh) -> None:
    mesh.traffic = {"limits": {"rate": 5}}
    await mesh.add("web-1", answering(b"1"))
    client = await mesh.dial()
    answers = Counter[str]()
    for _ in range(12):
        await client.send(GET)
        head, _ = await client.answer()
        answers[head.start] += 1
    assert answers["HTTP/1.1 429 Too Many Requests"] >= 5
    assert head["Retry-After"] == "1"
    assert answers["HTTP/1.1 200 OK"] >= 5


async def test_the_connections_of_a_service(mesh: Mesh) -> None:
    mesh.traffic = {"limits": {"connections": 2}}
    await mesh.add("web-1", answering(b"1"))
    clients = [await mesh.dial() for _ in range(2)]
    await until(lambda: mesh.count("connections") == 2, "two clients")
    with contextlib.suppress(ConnectionResetError):
        await (await mesh.dial()).closed()
    clients[0].close()
    await until(lambda: mesh.count("connections") == 1, "one left")
    assert (await mesh.ask())[1] == b"1"


class Log(AccessLog):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.ended: list[Exchange] = []

    def request(self, exchange: Exchange) -> None:
        self.ended.append(exchange)

    async def close(self) -> None: ...


async def test_every_end_has_a_word(mesh: Mesh) -> None:
    """What the access log learns of an exchange."""
    log = mesh.proxy._context.access_log = Log()
    await mesh.update()
    mesh.traffic = {"limits": {"in_flight": 1, "queue": 0}, "timeout": "300ms", "retries": {"attempts": 1}}
    assert (await mesh.ask())[0].start.split()[1] == "503"
    upstream = await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    assert (await mesh.ask())[0].start.split()[1] == "503"
    await server.send(OK)
    await client.answer()
    await client.send(GET)
    await server.head()
    assert (await client.answer())[0].start.split()[1] == "504"
    await client.send(GET)
    server = await upstream.accept()
    await server.head()
    await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab")
    server.reset()
    await client.rest()

    async def broken(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"nonsense\r\n\r\n")

    await upstream.stop()
    mesh.upstreams.clear()
    nonsense = await mesh.add("web-2", broken)
    assert (await mesh.ask())[0].start.split()[1] == "502"
    nonsense.stop_listening()
    assert (await mesh.ask())[0].start.split()[1] == "502"
    assert [(each.reason, each.status, each.tries, each.endpoint, each.bytes_out) for each in log.ended] == [
        ("no-endpoint", 503, 0, "", 0),
        ("overflow", 503, 0, "", 0),
        ("", 200, 1, "web-1", 2),
        ("timeout", 504, 1, "web-1", 0),
        ("reset", 200, 1, "web-1", 2),
        ("protocol", 502, 1, "web-2", 0),
        ("connect-failure", 502, 1, "web-2", 0),
    ]
    for each in log.ended:
        assert each.done
        assert each.started <= each.sent <= each.answered or not each.answered
