"""Endpoints that fail are left alone, come back by one probe, and never are too many."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mesh.proxy.backend import Backend, Upstream
from mesh.proxy.breaker import MIN_RESULTS, Breaker, BreakerPolicy, State, may_eject
from mesh.proxy.window import BUCKETS, Window
from mesh.table import Endpoint, TablePort, TableService
from tests.patience import until
from tests.proxy_server.wire import GET, OK, Mesh, Peer, answering

POLICY = BreakerPolicy()


def _tripped(breaker: Breaker, failures: int, now: float) -> bool:
    return True in [breaker.failure(now, now) for _ in range(failures)]


def test_failures_in_a_row() -> None:
    breaker = Breaker(BreakerPolicy(success_ratio=0))
    for _ in range(10):
        assert not _tripped(breaker, 4, 1.0)
        breaker.success(1.0, 1.0)
    assert _tripped(breaker, 5, 1.0)


def test_the_ratio_in_the_window() -> None:
    breaker = Breaker(BreakerPolicy(consecutive=100))
    assert not _tripped(breaker, MIN_RESULTS - 1, 1.0), "too few results to tell"  # 4 failures
    for _ in range(16):
        breaker.success(1.0, 1.0)
    assert breaker.failure(1.0, 1.0), "16 of 21"
    assert not breaker.failure(12.0, 12.0), "the window has passed"


def _ejected(now: float = 0.0) -> Breaker:
    breaker = Breaker(POLICY)
    breaker.eject(now)
    return breaker


def test_one_probe_decides() -> None:
    breaker = _ejected()
    assert breaker.until == 1.0
    breaker.success(-1.0, 0.5)
    assert breaker.state is State.OPEN, "what was under way before tells nothing"
    breaker.probe(1.0)
    breaker.failure(0.5, 1.1)
    assert breaker.state.value == "probing"
    breaker.success(1.0, 1.2)
    assert breaker.state.value == "closed"
    assert not _tripped(breaker, 4, 1.3), "its record is clean"


def test_a_failed_probe_doubles_the_wait_up_to_a_minute() -> None:
    breaker, now, waits = _ejected(), 0.0, []
    for _ in range(9):
        waits.append(breaker.until - now)
        now = breaker.until
        breaker.probe(now)
        breaker.failure(now, now)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert breaker.ejections == 10


def test_the_wait_is_forgotten_after_a_window_in_use() -> None:
    breaker = _ejected()
    breaker.probe(1.0)
    breaker.success(1.0, 1.0)
    breaker.eject(5.0)
    assert breaker.until == 7.0, "soon again: twice as long"
    breaker.probe(7.0)
    breaker.success(7.0, 7.0)
    breaker.eject(18.0)
    assert breaker.until == 19.0


def test_a_probe_without_result_is_made_again() -> None:
    breaker = _ejected()
    breaker.probe(1.0)
    breaker.no_result(1.0, 1.5)
    assert (breaker.state, breaker.until) == (State.OPEN, 1.5)


@given(st.integers(0, 20), st.integers(0, 20), st.floats(0, 1))
def test_never_more_than_the_share_and_always_one_of_two(ejected: int, endpoints: int, share: float) -> None:
    if may_eject(ejected, endpoints, share):
        assert endpoints > ejected + 1 or (share == 1 and ejected + 1 <= endpoints)
        assert ejected + 1 <= endpoints * share or ejected == 0
    else:
        assert endpoints < 2 or share == 0 or ejected >= 1


@given(st.lists(st.tuples(st.floats(0, 25), st.booleans()), max_size=40))
def test_a_window_counts_the_last_seconds(events: list[tuple[float, bool]]) -> None:
    window, width, seen = Window(10.0), 10.0 / BUCKETS, list[tuple[int, bool]]()
    for now, good in sorted(events):
        window.roll(now)
        if good:
            window.first += 1
        else:
            window.second += 1
        bucket = int(now / width)
        seen.append((bucket, good))
        recent = [good for at, good in seen if at > bucket - BUCKETS]
        assert window.totals() == (sum(recent), len(recent) - sum(recent))


# ── a service


def _service(states: dict[str, str], **traffic: object) -> TableService:
    return TableService(desired=2, ports={"http": TablePort(port=80)}, traffic=traffic, endpoints=[
        Endpoint(id=name, slot=1, node="n1", address="127.0.0.1", ports={"http": 1}, state=state)
        for name, state in states.items()
    ])  # fmt: skip


class Ejection(RuleBasedStateMachine):
    """A service whose endpoints fail, recover, come and go at random."""

    @initialize()
    def begin(self) -> None:
        self.now = 1000.0
        self.states = {"a": "ready", "b": "ready", "c": "ready"}
        self.backend = Backend("web", "http")
        self.backend.update(_service(self.states))

    @rule(name=st.sampled_from("abcdefg"), state=st.sampled_from(["ready", "running", "suspect", "gone"]))
    def table(self, name: str, state: str) -> None:
        if state == "gone":
            self.states.pop(name, None)
        else:
            self.states[name] = state
        self.backend.update(_service(self.states))

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.states)
    @rule(outcomes=st.lists(st.sampled_from(["ok", "failed", "refused", "nothing"]), max_size=12))
    def requests(self, outcomes: list[str]) -> None:
        for outcome in outcomes:
            upstream = self.backend.pick((), self.now)
            assert upstream is not None, "while one is there, it can be tried"
            if outcome == "ok":
                self.backend.succeeded(upstream, self.now, self.now)
                assert upstream.avoid_until == 0.0
            elif outcome == "nothing":
                self.backend.no_result(upstream, self.now, self.now)
            else:
                self.backend.failed(upstream, self.now, self.now, refused=outcome == "refused")

    @invariant()
    def at_most_half(self) -> None:
        upstreams = self.backend.upstreams
        candidates = [each for each in upstreams if each.state == "ready"] or upstreams
        ejected = sum(each.breaker.state is not State.CLOSED for each in candidates)
        assert ejected <= max(len(candidates) // 2, 1 if len(candidates) > 1 else 0)

    @invariant()
    def nobody_is_avoided_for_ever(self) -> None:
        assert all(
            each.breaker.state is State.OPEN or each.avoid_until <= self.now + 1 for each in self.backend.upstreams
        )


TestEjection = Ejection.TestCase


def _upstreams(backend: Backend) -> dict[str, Upstream]:
    return {each.id: each for each in backend.upstreams}


def _eject(backend: Backend, upstream: Upstream, now: float) -> None:
    for _ in range(5):
        backend.failed(upstream, now, now)
    assert upstream.breaker.state is State.OPEN


def test_a_record_survives_changes_of_the_table_and_of_the_policy() -> None:
    backend = Backend("web", "http")
    backend.update(_service({"a": "ready", "b": "ready"}))
    sick = _upstreams(backend)["a"]
    _eject(backend, sick, 10.0)
    backend.update(_service({"a": "ready", "b": "ready", "c": "ready"}, timeout="3s", breaker={"open": "5s"}))
    assert _upstreams(backend)["a"] is sick
    assert sick.breaker.state is State.OPEN
    assert {backend.pick((), 10.5) for _ in range(10)} == set(backend.upstreams) - {sick}
    assert sick in {backend.pick((), 11.0) for _ in range(3)}


def test_health_checks_have_the_last_word() -> None:
    backend = Backend("web", "http")
    backend.update(_service({"a": "ready", "b": "ready"}))
    sick = _upstreams(backend)["a"]
    _eject(backend, sick, 10.0)
    backend.update(_service({"a": "running", "b": "ready"}))
    backend.update(_service({"a": "ready", "b": "ready"}))
    assert sick.breaker.state is State.CLOSED
    assert sick in {backend.pick((), 10.0) for _ in range(2)}


def test_too_many_ejected_after_others_left_come_back() -> None:
    backend = Backend("web", "http")
    backend.update(_service(dict.fromkeys("abcd", "ready")))
    known = _upstreams(backend)
    _eject(backend, known["a"], 10.0)
    _eject(backend, known["b"], 11.0)
    backend.update(_service(dict.fromkeys("abc", "ready")))
    assert [known[name].breaker.state for name in "ab"] == [State.CLOSED, State.OPEN]


def test_a_tag_shares_the_records_of_its_service() -> None:
    whole = Backend("web", "http")
    service = TableService(desired=2, ports={"http": TablePort(port=80)}, endpoints=[
        Endpoint(id=name, slot=1, node="n1", address="127.0.0.1", ports={"http": 1}, tags=[tag])
        for name, tag in (("a", "v1"), ("b", "v2"))
    ])  # fmt: skip
    whole.update(service)
    tagged = Backend("web", "http", "v2", whole)
    tagged.update(service)
    (upstream,) = tagged.upstreams
    assert upstream is _upstreams(whole)["b"]
    _eject(tagged, upstream, 10.0)
    assert {whole.pick((), 10.5) for _ in range(4)} == {_upstreams(whole)["a"]}
    assert tagged.pick((), 10.5) is upstream, "the last one is tried"


# ── on the wire


def failing(status: int) -> Callable[[Peer], Awaitable[None]]:
    async def serve(peer: Peer) -> None:
        while await peer.reader.readuntil(b"\r\n\r\n"):
            await peer.send(b"HTTP/1.1 %d Bad\r\nContent-Length: 3\r\n\r\nbad" % status)

    return serve


async def test_an_endpoint_that_answers_errors_is_ejected_and_comes_back(mesh: Mesh) -> None:
    sick = True

    async def serve(peer: Peer) -> None:
        while await peer.reader.readuntil(b"\r\n\r\n"):
            await peer.send(b"HTTP/1.1 500 Bad\r\nContent-Length: 3\r\n\r\nbad" if sick else OK)

    mesh.traffic = {"breaker": {"open": "300ms"}}
    await mesh.add("web-1", serve)
    await mesh.add("web-2", answering(b"ok"))
    (upstream,) = [each for each in mesh.proxy._backends["web", "http"].upstreams if each.id == "web-1"]
    answers = [(await mesh.ask())[1] for _ in range(10)]
    assert answers.count(b"bad") == 5
    assert {(await mesh.ask())[1] for _ in range(5)} == {b"ok"}
    while upstream.breaker.ejections < 3:  # each probe is a request that fails
        await mesh.ask()
    assert mesh.count("upstream_failures") == 0, "it did answer"
    sick = False
    while upstream.breaker.state is not State.CLOSED:
        assert (await mesh.ask())[1] == b"ok"


async def test_only_one_request_probes(mesh: Mesh) -> None:
    mesh.traffic = {"breaker": {"open": "100ms"}, "retries": {"attempts": 0}}
    first = await mesh.add("web-1")
    await mesh.add("web-2", answering(b"2"))
    ejected, _ = mesh.proxy._backends["web", "http"].upstreams
    loop = asyncio.get_running_loop()
    for _ in range(5):
        mesh.proxy._backends["web", "http"].failed(ejected, loop.time(), loop.time())
    await until(lambda: loop.time() > ejected.breaker.until, "the end of the ejection")
    clients = [await mesh.dial() for _ in range(8)]
    for client in clients:
        await client.send(GET)
    server = await first.accept()
    await server.head()
    assert first.accepted == 1
    assert ejected.breaker.state is State.PROBING
    server.reset()
    answers = [(await client.answer())[0].start for client in clients]
    assert sorted(answers) == ["HTTP/1.1 200 OK"] * 7 + ["HTTP/1.1 502 Bad Gateway"]
    assert ejected.breaker.state.value == "open"


async def test_a_probe_whose_client_leaves_does_not_block_the_endpoint(mesh: Mesh) -> None:
    mesh.traffic = {"breaker": {"open": "50ms"}}
    first = await mesh.add("web-1")
    await mesh.add("web-2", answering(b"2"))
    backend = mesh.proxy._backends["web", "http"]
    ejected, _ = backend.upstreams
    loop = asyncio.get_running_loop()
    for _ in range(5):
        backend.failed(ejected, loop.time(), loop.time())
    await until(lambda: loop.time() > ejected.breaker.until, "the end of the ejection")
    clients = [await mesh.dial() for _ in range(2)]
    for client in clients:
        await client.send(GET)
    server = await first.accept()
    await server.head()
    for client in clients:
        client.reset()
    await until(lambda: ejected.breaker.state is State.OPEN, "the probe's end")
    assert ejected in {backend.pick((), loop.time()) for _ in range(3)}


@pytest.mark.parametrize("status", [500, 503])
async def test_all_sick_means_all_are_tried(mesh: Mesh, status: int) -> None:
    for name in ("web-1", "web-2", "web-3"):
        await mesh.add(name, failing(status))
    for _ in range(30):
        assert (await mesh.ask())[0].start == f"HTTP/1.1 {status} Bad"
    states = [each.breaker.state for each in mesh.proxy._backends["web", "http"].upstreams]
    assert states.count(State.CLOSED) >= 2


async def test_nothing_is_ejected_where_that_is_off(mesh: Mesh) -> None:
    mesh.traffic = {"breaker": {"max_ejected": "0%"}}
    await mesh.add("web-1", failing(500))
    await mesh.add("web-2", answering(b"ok"))
    answers = [(await mesh.ask())[1] for _ in range(40)]
    assert answers.count(b"bad") == 20
