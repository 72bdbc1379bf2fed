"""Listening sockets: nobody who was let in is turned away, whatever becomes of the listener."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Awaitable, Callable
from typing import cast

import pytest

from mesh.proxy.listener import Address, Listeners, Open, Opened, Serve, Wanted, serve_protocol, serve_sockets
from tests.parts.ports import free_port
from tests.patience import soon, until


class Greeter(asyncio.Protocol):
    """Says who serves, and closes."""

    def __init__(self, name: bytes) -> None:
        self._name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        transport.write(self._name)
        transport.close()


def greeting(name: bytes) -> Serve:
    def serve(connection: socket.socket, address: Address) -> None:
        with connection:
            connection.send(name)

    return serve


def protocol(name: bytes) -> Open:
    return serve_protocol(lambda: Greeter(name))


def sockets(name: bytes) -> Open:
    return serve_sockets(greeting(name))


BOTH = pytest.mark.parametrize("opener", [protocol, sockets])


def wanted(port: int, opened: Open, kind: str = "tcp") -> dict[str, Wanted]:
    return {"web.http": Wanted(f"127.0.0.1:{port}", kind, opened)}


def dial(port: int) -> socket.socket:
    """A connection that the kernel has set up, whether or not anybody has accepted it."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setblocking(False)
    return connection


async def read(connection: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    with connection:
        data = b""
        while piece := await soon(loop.sock_recv(connection, 100)):
            data += piece
        return data


@BOTH
async def test_what_waits_in_the_queue_is_served_when_the_listener_closes(opener: Callable[[bytes], Open]) -> None:
    listeners, port = Listeners(), free_port()
    await listeners.update(wanted(port, opener(b"a")))
    clients = [dial(port) for _ in range(50)]
    listeners.close()
    assert [await read(client) for client in clients] == [b"a"] * 50
    with pytest.raises(ConnectionRefusedError):
        dial(port)


@BOTH
async def test_a_successor_takes_the_socket_with_all_that_waits(opener: Callable[[bytes], Open]) -> None:
    old, new, port = Listeners(), Listeners(), free_port()
    await old.update(wanted(port, opener(b"old")))
    descriptors = old.export()
    assert list(descriptors) == [f"tcp 127.0.0.1:{port}"]
    new.adopt({place: os.dup(descriptor) for place, descriptor in descriptors.items()})
    clients = [dial(port) for _ in range(50)]
    old.close(shared=True)
    await new.update(wanted(port, opener(b"new")))
    clients += [dial(port) for _ in range(50)]
    assert {await read(client) for client in clients} <= {b"old", b"new"}
    assert await read(dial(port)) == b"new"
    new.close()


@BOTH
async def test_hand_over_under_load_fails_no_connection(opener: Callable[[bytes], Open]) -> None:
    port = free_port()
    current = Listeners()
    await current.update(wanted(port, opener(b"0")))
    answers: list[bytes] = []
    going = True

    async def client() -> None:
        while going:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            answers.append(await reader.read())
            writer.close()

    clients = [asyncio.create_task(client()) for _ in range(8)]
    for number in range(1, 20):
        served = b"%d" % (number - 1)
        await until(lambda served=served: answers.count(served) > 5, "answers of the present one")  # type: ignore[misc]
        successor = Listeners()
        successor.adopt({place: os.dup(descriptor) for place, descriptor in current.export().items()})
        await successor.update(wanted(port, opener(b"%d" % number)))
        current.close(shared=True)
        current = successor
    going = False
    await asyncio.gather(*clients)
    assert b"" not in answers
    current.close()


async def test_what_a_successor_does_not_want_is_closed() -> None:
    old, new, port = Listeners(), Listeners(), free_port()
    await old.update(wanted(port, protocol(b"old")))
    new.adopt({place: os.dup(descriptor) for place, descriptor in old.export().items()})
    await new.update({})
    old.close(shared=True)
    with pytest.raises(ConnectionRefusedError):
        dial(port)


async def test_another_kind_or_name_on_the_same_address_loses_nobody() -> None:
    listeners, port = Listeners(), free_port()
    await listeners.update(wanted(port, protocol(b"http"), "http"))
    clients = [dial(port) for _ in range(20)]
    await listeners.update(wanted(port, sockets(b"tcp"), "tcp"))
    await listeners.update({"db.tcp": Wanted(f"127.0.0.1:{port}", "tcp", sockets(b"renamed"))})
    clients.append(dial(port))
    answers = [await read(client) for client in clients]
    assert set(answers) <= {b"http", b"tcp", b"renamed"}
    assert answers[-1] == b"renamed"
    listeners.close()


async def test_a_datagram_socket_is_handed_over_as_it_is() -> None:
    """What came while nobody read is read by the successor."""
    received: list[bytes] = []

    class Reader:
        def __init__(self, bound: socket.socket) -> None:
            self._bound = bound
            asyncio.get_running_loop().add_reader(bound, lambda: received.append(bound.recv(100)))

        def close(self, *, shared: bool) -> None:
            asyncio.get_running_loop().remove_reader(self._bound)
            self._bound.close()

    async def opened(bound: socket.socket) -> Opened:
        return Reader(bound)

    old, new, port = Listeners(), Listeners(), free_port()
    await old.update(wanted(port, opened, "udp"))
    new.adopt({place: os.dup(descriptor) for place, descriptor in old.export().items()})
    old.close(shared=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"between", ("127.0.0.1", port))
    await new.update(wanted(port, opened, "udp"))
    await until(lambda: received == [b"between"], "the datagram")
    new.close()


async def test_without_descriptors_connections_wait() -> None:
    listeners, port = Listeners(), free_port()
    await listeners.update(wanted(port, sockets(b"a")))
    with socket.socket() as client:
        client.setblocking(False)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        held = [os.dup(0) for _ in range(highest)]  # no gap is left below the limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1, hard))
        try:
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 100), 0.2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in held:
                os.close(descriptor)
        assert await soon(asyncio.get_running_loop().sock_recv(client, 100)) == b"a"
    listeners.close()


async def test_an_opener_that_fails_is_a_problem_and_is_tried_again() -> None:
    listeners, port = Listeners(), free_port()
    failures = [OSError(1, "first"), OSError(2, "second")]

    def flaky() -> Callable[[socket.socket], Awaitable[Opened]]:
        async def opened(bound: socket.socket) -> Opened:
            if failures:
                raise failures.pop()
            return await protocol(b"at last")(bound)

        return opened

    await listeners.update(wanted(port, flaky()))
    assert listeners.problems()
    await listeners.retry()
    await listeners.retry()
    assert not listeners.problems()
    assert await read(dial(port)) == b"at last"
    listeners.close()
