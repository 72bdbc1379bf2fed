"""TCP and UDP: bytes as they are."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.proxy_server.wire import Mesh, Peer, Upstream, free_port, until


@pytest.fixture
def tcp(mesh: Mesh) -> Mesh:
    mesh.protocol = "tcp"
    return mesh


async def echo(peer: Peer) -> None:
    while data := await peer.reader.read(65536):
        await peer.send(data)


async def test_bytes_both_ways(tcp: Mesh) -> None:
    await tcp.add("db-1")
    client = await tcp.dial()
    server = await tcp.upstream.accept()
    await server.send(b"220 I speak first\r\n")
    await client.exactly(b"220 I speak first\r\n")
    await client.send(b"\x00\xff")
    await server.exactly(b"\x00\xff")
    assert tcp.count("bytes", direction="in") == 2
    assert tcp.count("connections") == 1


async def test_half_close_is_kept_both_ways(tcp: Mesh) -> None:
    await tcp.add("db-1")
    for first_ends_client in (True, False):
        client = await tcp.dial()
        server = await tcp.upstream.accept()
        first, second = (client, server) if first_ends_client else (server, client)
        await first.send(b"question")
        first.finish()
        assert await second.rest() == b"question"
        await second.send(b"answer")
        second.finish()
        assert await first.rest() == b"answer"
    await until(lambda: tcp.count("connections") == 0, "both sessions' end")


async def test_a_reset_is_passed_on(tcp: Mesh) -> None:
    await tcp.add("db-1")
    client = await tcp.dial()
    server = await tcp.upstream.accept()
    server.reset()
    await client.closed()
    client = await tcp.dial()
    server = await tcp.upstream.accept()
    client.reset()
    await server.closed()
    await until(lambda: tcp.count("connections") == 0, "both sessions' end")


async def test_much_data_arrives_unchanged(tcp: Mesh) -> None:
    await tcp.add("db-1", echo)
    client = await tcp.dial()
    data = random.Random(1).randbytes(20 * 2**20)

    async def send() -> None:
        await client.send(data)
        client.finish()

    sending = asyncio.create_task(send())
    digest = hashlib.sha256()
    while piece := await client.reader.read(2**16):
        digest.update(piece)
    await sending
    assert digest.digest() == hashlib.sha256(data).digest()


async def test_backpressure_reaches_the_sender(tcp: Mesh) -> None:
    await tcp.add("db-1")
    client = await tcp.dial()
    server = await tcp.upstream.accept()
    server.reader._transport.pause_reading()  # type: ignore[attr-defined]
    client.writer.write(bytes(50 * 2**20))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.writer.drain(), 0.5)


async def test_a_dead_endpoint_is_passed_over(tcp: Mesh) -> None:
    dead = Upstream("db-dead")
    dead.port = free_port()
    tcp.upstreams.append(dead)
    await tcp.add("db-1", echo)
    for _ in range(4):
        client = await tcp.dial()
        await client.send(b"first bytes are not lost")
        await client.exactly(b"first bytes are not lost")
    tcp.upstreams.remove(dead)


async def test_nothing_to_connect_to(tcp: Mesh) -> None:
    await tcp.update()
    client = await tcp.dial()
    await client.closed()
    assert tcp.count("connections") == 0


async def test_idle_connections_end(tcp: Mesh) -> None:
    tcp.traffic = {"idle_timeout": "300ms"}
    await tcp.add("db-1")
    client = await tcp.dial()
    server = await tcp.upstream.accept()
    await client.closed()
    await server.closed()


async def test_connections_outlive_their_endpoint_s_place_in_the_table(tcp: Mesh) -> None:
    """They last until the endpoint ends; new ones go elsewhere."""
    await tcp.add("db-1")
    old_client = await tcp.dial()
    old_server = await tcp.upstream.accept()
    old = tcp.upstreams.pop()
    await tcp.add("db-2")
    await old_client.send(b"still here")
    await old_server.exactly(b"still here")
    await tcp.dial()
    await tcp.upstream.accept()
    old_server.close()
    await old_client.closed()
    assert old.accepted == 1
    await old.stop()


@pytest.mark.redis
async def test_redis(tcp: Mesh, tmp_path: Path) -> None:
    """A real server and its real client."""
    upstream = Upstream("redis-1")
    upstream.port = free_port()
    arguments = ["--port", str(upstream.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    redis = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)  # noqa: ASYNC220

    async def run(*command: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "redis-cli", "-p", str(tcp.port), *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, error = await asyncio.wait_for(process.communicate(), 10)
        return (out + error).decode().strip()

    try:
        tcp.upstreams.append(upstream)
        await tcp.update()
        await asyncio.to_thread(_wait_for_port, upstream.port)
        assert await run("ping") == "PONG"
        assert await run("set", "key", "value") == "OK"
        assert await run("get", "key") == "value"
    finally:
        tcp.upstreams.remove(upstream)
        redis.terminate()
        redis.wait()


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "redis-server does not listen"
            time.sleep(0.05)


# ── UDP


class Datagrams(asyncio.DatagramProtocol):
    """One end of UDP, played by the test."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[tuple[bytes, tuple[str, int]]] = asyncio.Queue()

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self.received.put_nowait((data, address))

    async def next(self) -> tuple[bytes, tuple[str, int]]:
        return await asyncio.wait_for(self.received.get(), 10)


async def _udp(port: int = 0, to: int | None = None) -> tuple[asyncio.DatagramTransport, Datagrams]:
    loop = asyncio.get_running_loop()
    if to is not None:
        return await loop.create_datagram_endpoint(Datagrams, remote_addr=("127.0.0.1", to))
    return await loop.create_datagram_endpoint(Datagrams, local_addr=("127.0.0.1", port))


async def test_datagrams_and_their_replies(mesh: Mesh) -> None:
    mesh.protocol = "udp"
    mesh.port = free_port(socket.SOCK_DGRAM)
    servers = []
    for name in ("dns-1", "dns-2"):
        transport, server = await _udp()
        upstream = Upstream(name)
        upstream.port = transport.get_extra_info("sockname")[1]
        mesh.upstreams.append(upstream)
        servers.append((transport, server))
    await mesh.update()
    clients = [await _udp(to=mesh.port) for _ in range(2)]
    for number, (client, replies) in enumerate(clients):
        client.sendto(b"question %d" % number)
        transport, server = servers[number]  # they take turns
        data, address = await server.next()
        assert data == b"question %d" % number
        transport.sendto(b"answer %d" % number, address)
        assert (await replies.next())[0] == b"answer %d" % number
    assert mesh.count("connections") == 2
    # The first client's endpoint leaves: its next datagram goes to the other one.
    gone = mesh.upstreams.pop(0)
    await mesh.update()
    clients[0][0].sendto(b"again")
    assert (await servers[1][1].next())[0] == b"again"
    mesh.upstreams = []
    for transport, _ in [*servers, *clients]:
        transport.close()
    assert gone.accepted == 0
