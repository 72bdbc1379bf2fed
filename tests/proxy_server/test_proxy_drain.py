"""Endpoints that leave, and L4 traffic under the same policies: nothing is cut, nothing new comes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mesh.proxy.breaker import State
from tests.proxy_server.wire import GET, Mesh, Peer, Upstream, free_port, until

UPGRADE = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


@pytest.mark.parametrize("kind", ["http", "websocket", "tcp"])
async def test_what_an_endpoint_has_when_it_leaves_goes_on(mesh: Mesh, kind: str) -> None:
    if kind == "tcp":
        mesh.protocol = "tcp"
    leaving = await mesh.add("web-1")
    client = await mesh.dial()
    if kind != "tcp":
        await client.send(UPGRADE if kind == "websocket" else GET)
    server = await leaving.accept()
    if kind == "websocket":
        await server.head()
        await server.send(SWITCHED)
        await client.head()
    elif kind == "http":
        await server.head()
        await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        await client.head()
    mesh.upstreams = []
    staying = await mesh.add("web-2")
    for _ in range(3):
        await server.send(b"x" * 100)
        await client.exactly(b"x" * 100)
    other = await mesh.dial()
    await other.send(GET)
    await (await staying.accept()).head()
    assert leaving.accepted == 1
    await leaving.stop()


async def test_a_dead_tcp_endpoint_is_ejected_and_connections_go_elsewhere(mesh: Mesh) -> None:
    mesh.protocol = "tcp"
    dead = Upstream("db-dead")
    dead.port = free_port()
    mesh.upstreams.append(dead)
    alive = await mesh.add("db-1")
    for _ in range(6):
        client = await mesh.dial()
        await client.send(b"hello")
        await (await alive.accept()).exactly(b"hello")
        (upstream,) = [each for each in mesh.proxy._backends["web", "http"].upstreams if each.id == "db-dead"]
        upstream.avoid_until = 0.0 if upstream.breaker.state is State.CLOSED else upstream.avoid_until
    mesh.upstreams.remove(dead)


async def test_tcp_connections_of_one_client_go_to_one_endpoint(mesh: Mesh) -> None:
    mesh.protocol = "tcp"
    mesh.traffic = {"balance": {"hash": "client"}}
    upstreams = [await mesh.add(f"db-{number}") for number in range(4)]
    for _ in range(8):
        await (await mesh.dial()).send(b"x")
    await until(lambda: sum(each.accepted for each in upstreams) == 8, "all connections")
    assert sorted(each.accepted for each in upstreams) == [0, 0, 0, 8]


ENDPOINT = textwrap.dedent("""
    import socket, sys
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 100000\\r\\n\\r\\nhalf")
        print("answering", flush=True)
""")


async def test_an_endpoint_killed_in_the_middle_of_its_answer(mesh: Mesh, tmp_path: Path) -> None:
    """The client can tell that something is missing; the next request goes elsewhere."""
    process = subprocess.Popen([sys.executable, "-c", ENDPOINT], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    assert process.stdout is not None
    doomed = Upstream("web-1")
    doomed.port = int(await asyncio.to_thread(process.stdout.readline))
    mesh.upstreams.append(doomed)
    await mesh.update()
    client = await mesh.dial()
    await client.send(GET)
    assert (await client.head())["Content-Length"] == "100000"
    await client.exactly(b"half")
    os.kill(process.pid, signal.SIGKILL)
    await asyncio.to_thread(process.wait)
    assert await client.rest() == b""

    async def well(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell")

    await mesh.add("web-2", well)
    for _ in range(4):
        assert (await mesh.ask())[1] == b"well"
    mesh.upstreams.remove(doomed)
    process.stdout.close()


async def test_an_endpoint_that_answers_drop_by_drop(mesh: Mesh) -> None:
    await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc":
        await server.send(bytes([byte]))
    assert (await client.answer())[1] == b"abc"


async def test_an_endpoint_whose_answer_is_longer_than_it_says(mesh: Mesh) -> None:
    """The client gets what was announced; the rest reaches nobody."""
    upstream = await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef")
    assert (await client.answer())[1] == b"abc"
    await server.closed()
    await client.send(GET)
    second = await upstream.accept()
    await second.head()
    await second.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert (await client.answer())[1] == b"ok"


async def test_a_client_that_takes_nothing_is_cut_off(mesh: Mesh) -> None:
    """Its answer waits in bounded memory, and not for ever."""
    mesh.traffic = {"idle_timeout": "300ms"}
    await mesh.add("web-1")
    client, server, _ = await mesh.pair()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
    sent = 0
    try:
        while sent < 1_000_000_000:
            server.writer.write(bytes(2**16))
            sent += 2**16
            await asyncio.wait_for(server.writer.drain(), 10)
    except ConnectionError:
        pass
    assert sent < 100_000_000
    assert mesh.count("upstream_failures", reason="idle-timeout") == 1
    await until(lambda: mesh.count("in_flight") == 0, "the end of the exchange")
