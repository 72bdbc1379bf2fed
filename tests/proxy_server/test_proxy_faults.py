"""Endpoints that fail: what is tried again, what never is, and what the client is told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import pytest

from mesh.proxy import backend
from tests.parts.ports import free_port
from tests.patience import until
from tests.proxy_server.wire import GET, OK, Mesh, Peer, Upstream, answering

POST = b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nbody"


def dead() -> Upstream:
    """An endpoint where nobody listens."""
    upstream = Upstream("web-dead")
    upstream.port = free_port()
    return upstream


async def test_a_refused_connection_goes_to_another_endpoint(mesh: Mesh) -> None:
    """Also a POST: nothing was sent."""
    mesh.upstreams.append(dead())
    await mesh.add("web-1", answering(b"1"))
    for request in (GET, GET, b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n"):
        assert (await mesh.ask(request))[0].start == "HTTP/1.1 200 OK"
    assert mesh.count("upstream_failures", reason="connect-failure") == mesh.count("retries")
    mesh.upstreams.pop(0)


async def test_a_body_that_waits_for_a_connection_arrives_whole(mesh: Mesh) -> None:
    mesh.upstreams.append(dead())
    upstream = await mesh.add("web-1")
    client = await mesh.dial()
    body = bytes(range(256)) * 2000
    await client.send(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    server = await upstream.accept()
    await server.head()
    await server.exactly(body)
    mesh.upstreams.pop(0)


async def test_all_endpoints_refuse(mesh: Mesh) -> None:
    mesh.upstreams.append(dead())
    await mesh.update()
    answer, body = await mesh.ask()
    assert answer.start == "HTTP/1.1 502 Bad Gateway"
    assert body == b"web.http: web-dead cannot be reached: Connection refused\n"
    mesh.upstreams.clear()


@pytest.mark.parametrize(
    ("desired", "text"),
    [(0, b"web.http: the service is scaled to zero\n"), (3, b"web.http: no endpoint is up, 3 wanted\n")],
)
async def test_no_endpoint_at_all(mesh: Mesh, desired: int, text: bytes) -> None:
    mesh.desired = desired
    await mesh.update()
    answer, body = await mesh.ask()
    assert answer.start == "HTTP/1.1 503 Service Unavailable"
    assert body == text


async def test_unready_endpoints_are_tried_when_some_are_wanted(mesh: Mesh) -> None:
    mesh.states["web-1"] = "running"
    await mesh.add("web-1", answering(b"1"))
    assert (await mesh.ask())[1] == b"1"


@pytest.mark.parametrize("state", ["ready", "suspect", "running"])
async def test_nobody_is_asked_where_none_is_wanted(mesh: Mesh, state: str) -> None:
    mesh.states["web-1"], mesh.desired = state, 0
    await mesh.add("web-1", answering(b"1"))
    answer, body = await mesh.ask()
    assert answer.start == "HTTP/1.1 503 Service Unavailable"
    assert body == b"web.http: the service is scaled to zero\n"


async def test_suspect_endpoints_serve_only_where_no_ready_one_does(mesh: Mesh) -> None:
    mesh.states["web-1"] = "suspect"
    await mesh.add("web-1", answering(b"1"))
    ready = await mesh.add("web-2", answering(b"2"))
    assert {(await mesh.ask())[1] for _ in range(6)} == {b"2"}
    ready.stop_listening()
    assert (await mesh.ask(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n"))[0].start == "HTTP/1.1 200 OK"


async def test_an_idempotent_request_survives_a_reset(mesh: Mesh) -> None:
    first = await mesh.add("web-1")
    second = await mesh.add("web-2")
    client = await mesh.dial()
    await client.send(GET)
    await until(lambda: first.accepted + second.accepted == 1, "the first try")
    broken, other = (first, second) if first.accepted else (second, first)
    server = await broken.accept()
    await server.head()
    server.reset()
    server = await other.accept()
    await server.head()
    await server.send(OK)
    assert (await client.answer())[1] == b"ok"
    assert mesh.count("retries") == 1


async def test_a_post_is_never_run_twice(mesh: Mesh) -> None:
    await mesh.add("web-1")
    await mesh.add("web-2")
    client = await mesh.dial()
    await client.send(POST)
    await until(lambda: sum(each.accepted for each in mesh.upstreams) == 1, "the only try")
    (tried,) = [each for each in mesh.upstreams if each.accepted]
    server = await tried.accept()
    await server.head()
    server.reset()
    answer, body = await client.answer()
    assert answer.start == "HTTP/1.1 502 Bad Gateway"
    assert body == f"web.http: {tried.name} closed the connection before its response was whole\n".encode()
    assert sum(each.accepted for each in mesh.upstreams) == 1


async def test_a_put_s_body_is_sent_again(mesh: Mesh) -> None:
    upstreams = [await mesh.add("web-1"), await mesh.add("web-2")]
    client = await mesh.dial()
    await client.send(b"PUT / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
    await until(lambda: sum(each.accepted for each in upstreams) == 1, "the first try")
    upstreams.sort(key=lambda each: -each.accepted)
    server = await upstreams[0].accept()
    await server.head()
    await server.exactly(b"4\r\nhalf\r\n")
    server.reset()
    server = await upstreams[1].accept()
    await server.head()
    await client.send(b"4\r\nmore\r\n0\r\n\r\n")
    assert await server.chunked() == b"halfmore"
    await server.send(OK)
    assert (await client.answer())[1] == b"ok"


async def test_a_body_too_large_to_keep_is_not_sent_again(mesh: Mesh) -> None:
    await mesh.add("web-1")
    mesh.upstreams.append(await Upstream("web-2").start())
    client, server, _ = await mesh.pair(b"PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: 70001\r\n\r\n")
    await mesh.update()
    await client.send(b"x" * 70_000)
    await server.exactly(b"x" * 70_000)
    server.reset()
    assert (await client.answer())[0].start == "HTTP/1.1 502 Bad Gateway"
    assert mesh.upstreams[1].accepted == 0


async def _reused(mesh: Mesh, request: bytes) -> tuple[Peer, Upstream]:
    """A connection that has carried one exchange and now carries `request`, which it does not answer."""
    upstream = await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    await server.send(OK)
    await client.answer()
    await client.send(request)
    await server.head()
    server.close()
    return client, upstream


async def test_the_race_with_a_closing_keep_alive_connection_is_not_seen(mesh: Mesh) -> None:
    client, upstream = await _reused(mesh, GET)
    server = await upstream.accept()
    await server.head()
    await server.send(OK)
    assert (await client.answer())[1] == b"ok"
    assert mesh.count("retries") == 0


def _keeping(mesh: Mesh) -> None:
    """As if the endpoint had been seen to keep its idle connections."""
    _upstream(mesh).kept_idle(time.monotonic())


async def test_a_post_takes_no_connection_that_may_be_closed_under_it(mesh: Mesh) -> None:
    """No race to lose: the endpoint closes its idle connection, the POST comes on a new one and runs once."""
    upstream = await mesh.add("web-1")
    client, idle, _ = await mesh.pair()
    await idle.send(OK)
    await client.answer()
    await client.send(POST)
    idle.close()
    server = await upstream.accept()
    await server.head()
    await server.exactly(b"body")
    await server.send(OK)
    assert (await client.answer())[1] == b"ok"
    await idle.closed()
    assert upstream.accepted == 2


async def test_posts_survive_an_endpoint_that_closes_after_its_answers_without_a_word(mesh: Mesh) -> None:
    ran = 0

    async def curt(peer: Peer) -> None:
        nonlocal ran
        await peer.body(await peer.head())
        ran += 1
        await peer.send(OK)
        await asyncio.sleep(ran % 3 / 1000)

    await mesh.add("web-1", curt)
    client = await mesh.dial()
    for _ in range(100):
        await client.send(POST)
        assert (await client.answer())[0].start == "HTTP/1.1 200 OK"
    assert ran == 100


async def test_posts_share_connections_of_an_endpoint_that_keeps_them(mesh: Mesh) -> None:
    """It has left one open as long as we keep any; once it closes one early, POSTs get new connections again."""
    upstream = await mesh.add("web-1", answering_posts)
    client = await mesh.dial()

    async def post() -> None:
        await client.send(POST)
        assert (await client.answer())[1] == b"body"

    await post()
    await post()
    assert upstream.accepted == 2
    await until(lambda: _upstream(mesh)._keeps, "an idle connection that outlived its time")
    await post()
    before = upstream.accepted
    for _ in range(5):
        await post()
    assert upstream.accepted == before
    for peer in upstream._peers:
        peer.close()
    await until(lambda: not _upstream(mesh)._keeps, "the connection that was closed early")
    await post()
    await post()
    assert upstream.accepted == before + 2


async def test_a_kept_connection_that_was_just_closed_is_seen_before_a_post_is_sent(mesh: Mesh) -> None:
    upstream = await mesh.add("web-1", answering_posts)
    await mesh.ask(POST)
    _keeping(mesh)
    (connection,) = _upstream(mesh).idle
    assert connection.is_open()
    upstream._peers[0].close()
    await asyncio.sleep(0)  # the other side's loop is ours: it has closed, and nobody has told the proxy yet
    assert not connection.is_open()
    assert (await mesh.ask(POST))[1] == b"body"
    assert upstream.accepted == 2


async def test_a_lost_race_is_not_tried_again_with_a_post(mesh: Mesh) -> None:
    """Whether it ran cannot be known: the client is told, and the next POST takes a new connection."""
    upstream = await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    await server.send(OK)
    await client.answer()
    _keeping(mesh)
    await client.send(POST)
    await server.head()
    server.close()
    answer, body = await client.answer()
    assert answer.start == "HTTP/1.1 502 Bad Gateway"
    assert body == b"web.http: web-1 closed a kept connection as it was used\n"
    assert upstream.accepted == 1
    await client.send(POST)
    await upstream.accept()


async def answering_posts(peer: Peer) -> None:
    while (head := await peer.head()).start:
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n" + await peer.body(head))


def _upstream(mesh: Mesh) -> backend.Upstream:
    (upstream,) = mesh.proxy._backends["web", "http"].upstreams
    return upstream


@pytest.mark.parametrize("status", [502, 503])
async def test_a_status_worth_a_retry(mesh: Mesh, status: int) -> None:
    async def failing(peer: Peer) -> None:
        while await peer.reader.readuntil(b"\r\n\r\n"):
            await peer.send(b"HTTP/1.1 %d Bad\r\nContent-Length: 3\r\n\r\nbad" % status)

    await mesh.add("web-1", failing)
    assert (await mesh.ask())[1] == b"bad", "the last answer is the client's"
    await mesh.add("web-2", answering(b"good"))
    assert {(await mesh.ask())[1] for _ in range(6)} == {b"good"}


async def test_retries_are_bounded_by_the_budget(mesh: Mesh) -> None:
    """A service that only fails gets the floor of retries (10/s over 10 s), not one per request."""

    async def failing(peer: Peer) -> None:
        while await peer.reader.readuntil(b"\r\n\r\n"):
            await peer.send(b"HTTP/1.1 503 Bad\r\nContent-Length: 0\r\n\r\n")

    await mesh.add("web-1", failing)
    await mesh.add("web-2", failing)
    client = await mesh.dial()
    for _ in range(300):
        await client.send(GET)
        assert (await client.answer())[0].start == "HTTP/1.1 503 Bad"
    assert 100 <= mesh.count("retries") <= 100 + 0.2 * 300 + 1


# ── time-outs


async def test_an_endpoint_that_never_answers(mesh: Mesh) -> None:
    mesh.traffic = {"timeout": "300ms"}
    await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    answer, body = await client.answer()
    assert answer.start == "HTTP/1.1 504 Gateway Timeout"
    assert body.startswith(b"web.http: no answer from web-1 within 0.")
    await server.closed()


async def test_a_try_that_takes_too_long_goes_elsewhere_where_asked(mesh: Mesh) -> None:
    mesh.traffic = {"retries": {"on": ["timeout"], "per_try_timeout": "200ms"}}
    await mesh.add("web-slow")
    client, _, _ = await mesh.pair()
    await mesh.add("web-2", answering(b"2"))
    assert (await client.answer())[1] == b"2"


@pytest.mark.parametrize("protocol", ["http", "tcp"])
async def test_one_client_too_many_is_reset(mesh: Mesh, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.proxy.context.MAX_CONNECTIONS", 2)
    mesh.protocol = protocol
    await mesh.add("web-1", answering(b"1"))
    clients = [await mesh.dial() for _ in range(2)]
    await until(lambda: mesh.count("connections") == 2, "two clients")
    with contextlib.suppress(ConnectionResetError):  # as early as that
        await (await mesh.dial()).closed()
    for client in clients:
        await client.send(GET)
        assert (await client.answer())[1] == b"1"
    assert mesh.count("upstream_failures", reason="too-many-connections") == 1


async def test_a_connection_that_does_not_come_about(mesh: Mesh) -> None:
    """A full backlog: the kernel drops our SYN."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        mesh.traffic = {"connect_timeout": "200ms"}
        upstream = Upstream("web-deaf")
        upstream.port = port
        mesh.upstreams.append(upstream)
        await mesh.update()
        answer, body = await mesh.ask()
        assert answer.start == "HTTP/1.1 502 Bad Gateway"
        assert body == b"web.http: web-deaf cannot be reached: no connection within 0.2 s\n"
        mesh.upstreams.clear()
        for filler in fillers:
            filler.close()


async def test_a_slow_body_is_not_bound_by_the_request_s_time_out(mesh: Mesh) -> None:
    mesh.traffic = {"timeout": "500ms"}
    await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
    await client.head()
    for piece in (b"a", b"b", b"c", b"d", b"e", b"f"):
        await asyncio.sleep(0.1)
        await server.send(piece)
        await client.exactly(piece)


async def test_a_body_on_which_nothing_moves_is_cut_off(mesh: Mesh) -> None:
    mesh.traffic = {"idle_timeout": "200ms"}
    await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
    await client.head()
    assert await client.rest() == b"abc"
    await server.closed()


async def test_a_client_that_stops_sending_its_body(mesh: Mesh) -> None:
    mesh.traffic = {"idle_timeout": "200ms"}
    await mesh.add("web-1")
    client, server, _ = await mesh.pair(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 10\r\n\r\nabc")
    answer, body = await client.answer()
    assert answer.start == "HTTP/1.1 408 Request Timeout"
    assert body == b"web.http: the request's body stopped coming\n"
    await server.exactly(b"abc")
    await server.closed()


async def test_a_client_that_sends_its_head_too_slowly(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.proxy.l7.HEAD_TIMEOUT", 0.3)
    await mesh.update()
    client = await mesh.dial()
    await client.send(b"GE")
    answer, _ = await client.answer()
    assert answer.start == "HTTP/1.1 408 Request Timeout"
    await client.closed()


# ── answers that break off


async def test_an_answer_shorter_than_its_length(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
    server.close()
    await client.head()
    assert await client.rest() == b"12345"


async def test_chunks_that_break_off_have_no_last_one(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    await server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n")
    await client.head()
    await client.exactly(b"5\r\n12345\r\n")
    server.reset()
    assert await client.rest() == b""


async def test_chunks_that_go_wrong_have_no_last_one(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    await server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n", b"nonsense\r\n")
    await client.head()
    assert await client.rest() == b"5\r\n12345\r\n"


async def test_an_answer_without_framing_that_breaks_off_is_reset(mesh: Mesh) -> None:
    """HTTP/1.0 cannot tell otherwise that something is missing."""
    await mesh.add("web-1")
    client, server, _ = await mesh.pair(b"GET / HTTP/1.0\r\n\r\n")
    await server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n")
    await client.head()
    await client.exactly(b"12345")
    server.reset()
    assert await client.was_reset()
