"""Services at zero: who comes is held, told of, and served by the first endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping

import pytest

from mesh.proxy.access_log import AccessLog
from mesh.proxy.context import Context
from mesh.table import ProxyProtocol, Rule, Table, TableRoute, Target
from tests.parts.ports import free_port
from tests.patience import soon, until
from tests.proxy_server.wire import GET, OK, Mesh, Peer, answering

POST = b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture
async def asleep(mesh: Mesh) -> Mesh:
    """`web` at zero; `await mesh.add(…)` gives it a replica."""
    await sleep(mesh)
    return mesh


async def sleep(mesh: Mesh) -> None:
    mesh.asleep, mesh.desired, mesh.upstreams = True, 0, []
    await mesh.update()


async def wake(mesh: Mesh, name: str = "web-1", text: bytes = b"hello") -> None:
    mesh.asleep, mesh.desired = False, 1
    await mesh.add(name, answering(text))


def waiting(mesh: Mesh) -> dict[str, int]:
    context: Context = mesh.proxy._context
    return context.waiting.services()


async def held(mesh: Mesh, count: int = 1) -> None:
    await until(lambda: waiting(mesh) == ({"web": count} if count else {}), f"{count} held")


async def test_a_request_is_held_until_there_is_an_endpoint(asleep: Mesh) -> None:
    client = await asleep.dial()
    await client.send(GET)
    await held(asleep)
    assert (asleep.count("held"), asleep.count("queued"), asleep.count("in_flight")) == (1, 1, 1)
    await wake(asleep)
    head, body = await client.answer()
    assert (head.start, body) == ("HTTP/1.1 200 OK", b"hello")
    assert waiting(asleep) == {}
    assert (asleep.count("held"), asleep.count("queued"), asleep.count("holds")) == (0, 0, 1)
    await client.send(GET)
    assert (await client.answer())[1] == b"hello", "its connection goes on"


async def test_just_woken_it_waits_for_the_first_that_is_ready(asleep: Mesh) -> None:
    """One that runs and is not ready yet is no better than waiting; later it is, as ever."""
    client = await asleep.dial()
    await client.send(GET)
    await held(asleep)
    asleep.asleep, asleep.desired = False, 1
    await asleep.update()
    asleep.states["web-1"] = "running"
    await asleep.add("web-1", answering(b"hello"))
    late = await asleep.dial()
    await late.send(GET)
    await held(asleep, 2)
    asleep.states["web-1"] = "ready"
    await asleep.update()
    assert [(await each.answer())[1] for each in (client, late)] == [b"hello", b"hello"]
    asleep.states["web-1"] = "running"
    await asleep.update()
    assert (await asleep.ask())[1] == b"hello", "it has been awake: better a try than an outage"


async def test_a_sleeping_service_whose_last_replica_is_still_there_is_served_by_it(mesh: Mesh) -> None:
    await mesh.add("web-1", answering(b"hello"))
    mesh.asleep, mesh.desired = True, 0
    await mesh.update()
    assert (await mesh.ask())[1] == b"hello"


async def test_what_is_in_flight_as_it_falls_asleep_ends_well(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    await sleep(mesh)
    late = await mesh.dial()
    await late.send(GET)
    await held(mesh)
    await server.send(OK)
    assert (await client.answer())[1] == b"ok"
    await wake(mesh, "web-2")
    assert (await late.answer())[1] == b"hello"


async def test_whoever_stood_in_line_as_it_fell_asleep_is_held(mesh: Mesh) -> None:
    mesh.traffic = {"limits": {"in_flight": 1}}
    await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    queued = await mesh.dial()
    await queued.send(GET)
    await until(lambda: mesh.count("queued") == 1, "the line")
    await sleep(mesh)
    await held(mesh)
    await server.send(OK)
    assert (await client.answer())[1] == b"ok"
    await wake(mesh, "web-2")
    assert (await queued.answer())[1] == b"hello"


async def test_a_request_whose_endpoint_leaves_as_it_is_sent_is_held(mesh: Mesh) -> None:
    """It came between the decision to go to zero and the last endpoint's end."""
    await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    await sleep(mesh)
    server.reset()
    await held(mesh)
    await wake(mesh, "web-2")
    assert (await client.answer())[1] == b"hello"


async def test_an_operator_s_zero_is_answered_at_once(asleep: Mesh) -> None:
    client = await asleep.dial()
    await client.send(GET)
    await held(asleep)
    asleep.asleep = False
    await asleep.update()
    for head, body in (await client.answer(), await asleep.ask()):
        assert head.start == "HTTP/1.1 503 Service Unavailable"
        assert b"scaled to zero" in body
    assert waiting(asleep) == {}


async def test_a_service_that_is_gone_keeps_nobody_waiting(asleep: Mesh) -> None:
    client = await asleep.dial()
    await client.send(GET)
    await held(asleep)
    await asleep.update(Table())
    head, body = await client.answer()
    assert (head.start, b"gone" in body) == ("HTTP/1.1 503 Service Unavailable", True)


# ── bounds


async def test_two_hundred_first_requests_are_served_within_the_limits(asleep: Mesh) -> None:
    asleep.traffic = {"limits": {"in_flight": 7, "queue": 10}}
    await asleep.update()
    now = most = 0

    async def serve(peer: Peer) -> None:
        nonlocal now, most
        while await peer.reader.readuntil(b"\r\n\r\n"):
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.001)
            now -= 1
            await peer.send(OK)

    asked = [asyncio.ensure_future(asleep.ask()) for _ in range(200)]
    await held(asleep, 200)
    asleep.asleep, asleep.desired = False, 2
    await asleep.add("web-1", serve)
    assert {head.start for head, _ in await asyncio.gather(*asked)} == {"HTTP/1.1 200 OK"}
    assert most <= 7
    assert asleep.count("holds") == 200


async def test_more_than_may_be_held_are_refused(asleep: Mesh) -> None:
    asleep.traffic = {"limits": {"held": 2}}
    await asleep.update()
    clients = [await asleep.dial() for _ in range(3)]
    for client in clients[:2]:
        await client.send(GET)
    await held(asleep, 2)
    await clients[2].send(GET)
    head, body = await clients[2].answer()
    assert (head.start, head["Retry-After"]) == ("HTTP/1.1 503 Service Unavailable", "5")
    assert b"too many wait" in body
    assert asleep.count("upstream_failures", reason="held-overflow") == 1
    await wake(asleep)
    assert [(await each.answer())[1] for each in clients[:2]] == [b"hello"] * 2


async def test_a_worker_holds_so_much_of_all_services(asleep: Mesh) -> None:
    room = asleep.proxy._context.waiting
    room._most_bytes = 50_000
    client = await asleep.dial()
    await client.send(POST % 45_000 + bytes(45_000))
    await held(asleep)
    late = await asleep.dial()
    await late.send(POST % 30_000 + bytes(30_000))
    assert (await late.head()).start == "HTTP/1.1 503 Service Unavailable"
    assert room.bytes <= room._most_bytes


async def test_of_a_body_only_what_came_with_its_head_is_read(asleep: Mesh) -> None:
    size = 20 * 2**20
    client = await asleep.dial()
    sending = asyncio.ensure_future(client.send(POST % size + bytes(size)))
    await held(asleep)
    _, pending = await asyncio.wait([sending], timeout=0.1)
    assert pending, "the kernel has the rest of what it took"
    assert asleep.proxy._context.waiting.bytes < 2**20
    asleep.asleep, asleep.desired = False, 1
    upstream = await asleep.add("web-1")
    server = await upstream.accept()
    await server.head()
    assert len(await soon(server.reader.readexactly(size))) == size
    await sending
    await server.send(OK)
    assert (await client.answer())[1] == b"ok"


async def test_a_service_that_does_not_start_in_time(asleep: Mesh) -> None:
    asleep.traffic = {"limits": {"held_timeout": "150ms"}, "timeout": "50ms"}
    await asleep.update()
    head, body = await asleep.ask()
    assert (head.start, head["Retry-After"]) == ("HTTP/1.1 503 Service Unavailable", "5")
    assert b"web.http: the service did not start within 0." in body
    assert asleep.count("upstream_failures", reason="start-timeout") == 1
    assert (waiting(asleep), asleep.count("held")) == ({}, 0)


async def test_the_time_out_begins_with_the_endpoint(asleep: Mesh) -> None:
    asleep.traffic = {"timeout": "50ms"}
    await asleep.update()
    client = await asleep.dial()
    await client.send(GET)
    await held(asleep)
    await asyncio.sleep(0.3)  # far beyond the time-out, and the wheel's coarseness
    await wake(asleep)
    assert (await client.answer())[1] == b"hello"
    asleep.upstreams.clear()
    await asleep.add("web-2")
    assert (await asleep.ask())[0].start == "HTTP/1.1 504 Gateway Timeout"


# ── clients that leave


@pytest.mark.parametrize("how", ["close", "reset", "body"])
async def test_a_client_that_leaves_is_forgotten_at_once(asleep: Mesh, how: str) -> None:
    client, other = await asleep.dial(), await asleep.dial()
    await client.send(POST % 2**20 + bytes(30_000) if how == "body" else GET)
    await other.send(GET)
    await held(asleep, 2)
    client.reset() if how == "reset" else client.close()
    await held(asleep, 1)
    assert (asleep.count("requests", code="none"), asleep.count("in_flight")) == (1, 1)
    await wake(asleep)
    await other.answer()
    assert asleep.upstreams[0].accepted == 1, "nobody asks for who left"


async def test_the_access_log_tells_why(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("log") / "access.log"
    mesh.proxy._context.access_log = log = AccessLog(str(file))
    mesh.traffic = {"limits": {"held": 1, "held_timeout": "200ms"}}
    await sleep(mesh)
    first = await mesh.dial()
    await first.send(GET)
    await held(mesh)
    await mesh.ask()
    await first.answer()
    gone = await mesh.dial()
    await gone.send(GET)
    await held(mesh)
    gone.close()
    await held(mesh, 0)
    await log.close()
    assert [line.partition('"reason":"')[2].partition('"')[0] for line in file.read_text().splitlines()] == [
        "held-overflow", "start-timeout", "client-left",
    ]  # fmt: skip


# ── TCP


@pytest.fixture
async def tcp(mesh: Mesh) -> Mesh:
    mesh.protocol = "tcp"
    await sleep(mesh)
    return mesh


async def test_a_connection_is_held(tcp: Mesh) -> None:
    client = await tcp.dial()
    await client.send(b"hello")
    await held(tcp)
    assert (tcp.count("held"), tcp.count("queued")) == (1, 1)
    await client.send(b" world")
    client.finish()
    tcp.asleep, tcp.desired = False, 1
    upstream = await tcp.add("db-1")
    server = await upstream.accept()
    await server.exactly(b"hello world")
    await server.closed()
    await server.send(b"bye")
    server.close()
    await client.exactly(b"bye")
    await client.closed()
    assert tcp.count("held") == 0


async def test_many_connections_are_held_and_none_takes_a_place(tcp: Mesh) -> None:
    tcp.traffic = {"limits": {"in_flight": 1}}
    await tcp.update()
    clients = [await tcp.dial() for _ in range(50)]
    await held(tcp, 50)
    tcp.asleep, tcp.desired = False, 1
    upstream = await tcp.add("db-1")
    servers = [await upstream.accept() for _ in clients]
    for server in servers:
        await server.send(b"welcome")
    for client in clients:
        await client.exactly(b"welcome")


@pytest.mark.parametrize(("sends", "how"), [(b"", "close"), (b"", "reset"), (b"hello", "reset")])
async def test_a_connection_that_ends_is_forgotten(tcp: Mesh, sends: bytes, how: str) -> None:
    client = await tcp.dial()
    await client.send(sends)
    await held(tcp)
    client.reset() if how == "reset" else client.close()
    await held(tcp, 0)
    await until(lambda: tcp.count("connections") == 0, "its end")


async def test_a_connection_too_many_and_one_too_long_are_reset(tcp: Mesh) -> None:
    tcp.traffic = {"limits": {"held": 1, "held_timeout": "200ms"}}
    await tcp.update()
    client = await tcp.dial()
    await held(tcp)
    with contextlib.suppress(ConnectionResetError):
        assert await (await tcp.dial()).was_reset()
    assert await client.was_reset()
    assert tcp.count("upstream_failures", reason="held-overflow") == 1
    assert tcp.count("upstream_failures", reason="start-timeout") == 1
    assert waiting(tcp) == {}


async def test_the_endpoint_is_still_told_whose_connection_it_is(mesh: Mesh) -> None:
    mesh.protocol = "tcp"
    mesh.proxy_protocol = ProxyProtocol(accept=True, send="v1")
    await sleep(mesh)
    client = await mesh.dial()
    await client.send(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 80\r\nhello")
    await held(mesh)
    mesh.asleep, mesh.desired = False, 1
    server = await (await mesh.add("db-1")).accept()
    line = await soon(server.reader.readline())
    assert line.startswith(b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 ")
    await server.exactly(b"hello")


# ── routes, upgrades, other protocols


def route(*to: Target, tls: str | None = None) -> tuple[int, dict[str, TableRoute]]:
    port = free_port()
    rules = [Rule(host="web.example.com", to=list(to))]
    return port, {"shop": TableRoute(listen=f"127.0.0.1:{port}", rules=rules, tls=tls)}  # type: ignore[arg-type]


async def test_through_a_route(mesh: Mesh) -> None:
    port, mesh.routes = route(Target(service="web"))
    await sleep(mesh)
    client = await mesh.dial(port)
    await client.send(b"GET / HTTP/1.1\r\nHost: web.example.com\r\n\r\n")
    await held(mesh)
    await wake(mesh)
    assert (await client.answer())[1] == b"hello"


async def test_a_route_that_splits_by_tag_takes_whichever_replica_comes_first(mesh: Mesh) -> None:
    port, mesh.routes = route(Target(service="web", tag="v2", weight=50), Target(service="web", weight=50))
    await sleep(mesh)
    clients = [await mesh.dial(port) for _ in range(4)]
    for client in clients:
        await client.send(b"GET / HTTP/1.1\r\nHost: web.example.com\r\n\r\n")
    await held(mesh, 4)
    await wake(mesh)
    assert [(await each.answer())[1] for each in clients] == [b"hello"] * 4


async def test_a_websocket_is_opened_late(asleep: Mesh) -> None:
    client = await asleep.dial()
    await client.send(b"GET /chat HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    await held(asleep)
    asleep.asleep, asleep.desired = False, 1
    server = await (await asleep.add("web-1")).accept()
    assert (await server.head())["Upgrade"] == "websocket"
    await server.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nwelcome")
    await client.head()
    await client.exactly(b"welcome")


async def test_a_datagram_is_dropped(mesh: Mesh) -> None:
    mesh.protocol = "udp"
    await sleep(mesh)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"question", ("127.0.0.1", mesh.port))
        await until(lambda: mesh.count("upstream_failures", reason="no-endpoint") == 1, "its loss")
    assert waiting(mesh) == {}


# ── telling


async def test_a_burst_is_told_as_one(mesh: Mesh) -> None:
    told: list[Mapping[str, int]] = []
    mesh.proxy.tell_waiting(told.append)
    await sleep(mesh)
    clients = [await mesh.dial() for _ in range(20)]
    for client in clients:
        await client.send(GET)
    await held(mesh, 20)
    await until(lambda: told[-1:] == [{"web": 20}], "all told")
    assert told[0]["web"] > 1
    assert len(told) <= 4
    await wake(mesh)
    for client in clients:
        await client.answer()
    await until(lambda: told[-1] == {}, "nobody waits")


# ── a worker that is replaced


async def test_a_worker_that_drains_waits_for_those_that_it_holds(asleep: Mesh) -> None:
    client = await asleep.dial()
    await client.send(GET)
    await held(asleep)
    closed = asyncio.ensure_future(asleep.proxy.close(10.0, shared=True))
    await asyncio.sleep(0)
    await wake(asleep)
    head, body = await client.answer()
    assert (head["Connection"], body) == ("close", b"hello")
    await soon(closed)
