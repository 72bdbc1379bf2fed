"""A proxy that is told to stop: what is open ends well, with a successor on the same sockets and without."""

from __future__ import annotations

import asyncio
import socket

import pytest

from mesh.proxy import context, udp
from tests.parts.ports import free_port
from tests.patience import PATIENCE, soon, until
from tests.proxy_server.wire import GET, OK, Mesh, answering


async def closing(mesh: Mesh, seconds: float = 10.0, *, shared: bool = True) -> asyncio.Task[None]:
    task = asyncio.ensure_future(mesh.proxy.close(seconds, shared=shared))
    await asyncio.sleep(0)
    return task


async def test_an_idle_client_has_one_more_request(mesh: Mesh) -> None:
    await mesh.add("web-1", answering(b"hello"))
    client = await mesh.dial()
    await client.send(GET)
    assert "Connection" not in (await client.answer())[0]
    closed = await closing(mesh)
    await client.send(GET)
    head, body = await client.answer()
    assert (head["Connection"], body) == ("close", b"hello")
    await client.closed()
    await soon(closed)


async def test_a_client_that_rests_is_closed(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "REST", 0.05)
    await mesh.add("web-1", answering(b"hello"))
    client = await mesh.dial()
    await client.send(GET)
    await client.answer()
    closed = await closing(mesh)
    await client.closed()
    await soon(closed)


async def test_without_a_successor_nobody_is_kept_waiting(mesh: Mesh) -> None:
    await mesh.add("web-1")
    idle = await mesh.dial()
    busy, server, _ = await mesh.pair()
    closed = await closing(mesh, shared=False)
    await idle.closed()
    await server.send(OK)
    head, body = await busy.answer()
    assert (head["Connection"], body) == ("close", b"ok")
    await soon(closed)


async def test_a_response_that_promised_to_go_on_does(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhe")
    assert "Connection" not in await client.head()
    closed = await closing(mesh)
    await server.send(b"re")
    await client.exactly(b"here")
    await client.send(GET)
    await server.head()
    await server.send(OK)
    head, _ = await client.answer()
    assert head["Connection"] == "close", "it was not hung up on between two requests"
    await soon(closed)


async def test_tcp_sessions_go_on_until_the_time_is_up(mesh: Mesh) -> None:
    mesh.protocol = "tcp"
    await mesh.add("web-1")
    client = await mesh.dial()
    await client.send(b"a")
    server = await mesh.upstream.accept()
    await server.exactly(b"a")
    closed = await closing(mesh, 0.5)
    await server.send(b"b")
    await client.exactly(b"b")
    assert await client.was_reset()
    await soon(closed)


async def test_a_reply_to_a_datagram_still_arrives(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "DRAIN_IDLE", 0.5)
    mesh.protocol, mesh.port = "udp", free_port()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        for each in (server, client):
            each.settimeout(PATIENCE)
        server.bind(("127.0.0.1", 0))
        client.connect(("127.0.0.1", mesh.port))
        upstream = await mesh.add("dns-1")
        upstream.port = server.getsockname()[1]
        await mesh.update()
        client.send(b"question")
        data, address = await asyncio.to_thread(server.recvfrom, 100)
        closed = await closing(mesh)
        server.sendto(b"answer", address)
        assert (data, await asyncio.to_thread(client.recv, 100)) == (b"question", b"answer")
        await soon(closed)
        await until(lambda: mesh.count("connections") == 0, "its end")
