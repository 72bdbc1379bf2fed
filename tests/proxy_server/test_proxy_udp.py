"""UDP: datagrams, the replies to them, and the sessions that match both."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import msgspec
import pytest

from mesh.proxy import udp
from tests.parts.ports import free_port
from tests.patience import soon, until
from tests.proxy_server.wire import Mesh, Upstream, endpoint


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


async def test_datagrams_and_their_replies(datagrams: Mesh) -> None:
    mesh = datagrams
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


class Client:
    """A client of the mesh's port, and what it was told."""

    def __init__(self, transport: asyncio.DatagramTransport, replies: Datagrams) -> None:
        self._transport = transport
        self._replies = replies

    @classmethod
    async def of(cls, mesh: Mesh, host: str = "127.0.0.1") -> Client:
        loop = asyncio.get_running_loop()
        return cls(*await loop.create_datagram_endpoint(Datagrams, remote_addr=(host, mesh.port)))

    def send(self, data: bytes) -> None:
        self._transport.sendto(data)

    async def reply(self) -> bytes:
        return (await self._replies.next())[0]

    def close(self) -> None:
        self._transport.close()


class Echo(asyncio.DatagramProtocol):
    """Answers each datagram with its name and the datagram."""

    transport: asyncio.DatagramTransport

    def __init__(self, name: str) -> None:
        self._name = name.encode()
        self.clients: set[tuple[str, int]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self.clients.add(address)
        self.transport.sendto(self._name + b":" + data, address)


async def add_echo(mesh: Mesh, name: str) -> Echo:
    transport, echo = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Echo(name), local_addr=("127.0.0.1", 0)
    )
    upstream = Upstream(name)
    upstream.port = transport.get_extra_info("sockname")[1]
    mesh.upstreams.append(upstream)
    await mesh.update()
    return echo


@pytest.fixture
def datagrams(mesh: Mesh) -> Iterator[Mesh]:
    mesh.protocol = "udp"
    mesh.port = free_port()
    yield mesh
    mesh.upstreams = []
    for session in list(mesh.proxy._context.datagrams):
        session.end()  # else they are waited for


async def test_bursts_and_sizes(datagrams: Mesh) -> None:
    """In order, of any size that UDP has, from many clients at once."""
    echo = await add_echo(datagrams, "a")
    clients = [await Client.of(datagrams) for _ in range(20)]
    for size in (1, 1472, 9000, 60_000):
        for client in clients:
            sent = os.urandom(size)
            client.send(sent)
            assert await client.reply() == b"a:" + sent
    for client in clients:
        for number in range(10):
            client.send(b"%d" % number)
    for client in clients:
        assert [await client.reply() for _ in range(10)] == [b"a:%d" % number for number in range(10)]
    assert len(echo.clients) == 20, "one session each"
    assert datagrams.count("bytes", direction="in") == 20 * (1 + 1472 + 9000 + 60_000 + 10)
    assert datagrams.count("connections") == 20


async def test_a_silent_session_ends(datagrams: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "IDLE", 0.2)
    echo = await add_echo(datagrams, "a")
    client = await Client.of(datagrams)
    for _ in range(2):
        client.send(b"x")
        assert await client.reply() == b"a:x"
        await until(lambda: datagrams.count("connections") == 0, "its end")
    assert len(echo.clients) == 2


async def test_too_many_clients_cost_the_most_silent_its_session(
    datagrams: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is turned away, and who is active stays."""
    monkeypatch.setattr(udp, "MAX_SESSIONS", 3)
    echo = await add_echo(datagrams, "a")
    clients = [await Client.of(datagrams) for _ in range(4)]
    for client in (*clients[:3], clients[0], clients[3], clients[0]):
        client.send(b"x")
        assert await client.reply() == b"a:x"
    assert datagrams.count("connections") == 3
    assert len(echo.clients) == 4
    clients[1].send(b"x")  # had been silent for longest
    assert await clients[1].reply() == b"a:x"
    assert len(echo.clients) == 5


async def test_nobody_listens_at_an_endpoint(datagrams: Mesh) -> None:
    """ICMP tells; what the client sends next goes elsewhere at once."""
    dead = Upstream("dead")
    dead.port = free_port()
    datagrams.upstreams.append(dead)
    await add_echo(datagrams, "a")
    for _ in range(4):
        client = await Client.of(datagrams)
        client.send(b"first")
        reply = asyncio.ensure_future(client.reply())
        if not (await asyncio.wait([reply], timeout=0.5))[0]:  # it was lost, as none but the first may be
            client.send(b"second")
        assert await soon(reply) in (b"a:first", b"a:second")
        client.close()
    assert datagrams.count("upstream_failures", reason="connect-failure") >= 1


async def test_no_endpoint_at_all(datagrams: Mesh) -> None:
    await datagrams.update()
    client = await Client.of(datagrams)
    client.send(b"x")
    await until(lambda: datagrams.count("upstream_failures", reason="no-endpoint") == 1, "it to be counted")
    assert datagrams.count("connections") == 0


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "[::]"])
async def test_replies_leave_by_the_address_that_was_asked(datagrams: Mesh, wildcard: str) -> None:
    """Else the client, which asked another, would not take them."""
    await add_echo(datagrams, "a")
    table = datagrams.table()
    ports = {name: msgspec.structs.replace(port, listen=f"{wildcard}:{datagrams.port}")
             for name, port in table.services["web"].ports.items()}  # fmt: skip
    service = msgspec.structs.replace(table.services["web"], ports=ports)
    await datagrams.update(msgspec.structs.replace(table, services={"web": service}))
    for host in ("127.0.0.2", "127.0.0.3") if wildcard == "0.0.0.0" else ("::1",):
        client = await Client.of(datagrams, host)
        client.send(b"x")
        assert await client.reply() == b"a:x"


async def test_an_endpoint_may_be_a_name(datagrams: Mesh) -> None:
    await add_echo(datagrams, "a")
    table = datagrams.table()
    named = msgspec.structs.replace(endpoint(datagrams.upstream), id="named", address="localhost")
    service = msgspec.structs.replace(table.services["web"], endpoints=[named])
    await datagrams.update(msgspec.structs.replace(table, services={"web": service}))
    client = await Client.of(datagrams)
    for number in range(3):
        client.send(b"%d" % number)
    assert [await client.reply() for _ in range(3)] == [b"a:0", b"a:1", b"a:2"]
