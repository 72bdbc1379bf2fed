"""TCP: bytes as they are."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import socket
import struct
import subprocess
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.proxy import context
from mesh.proxy.flow import Flow
from mesh.proxy.splice import Pipes
from tests.parts.ports import free_port
from tests.patience import soon, until
from tests.proxy_server.wire import Mesh, Peer, Upstream, endpoint


@pytest.fixture(params=["splice", "copy"])
def tcp(mesh: Mesh, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Mesh:
    """A tcp port; all that holds with splice(2) holds without."""
    if request.param == "copy":
        monkeypatch.setattr(Pipes, "take", lambda self: None)
    mesh.protocol = "tcp"
    return mesh


async def echo(peer: Peer) -> None:
    while data := await peer.reader.read(65536):
        await peer.send(data)


async def is_turned_away(tcp: Mesh) -> None:
    """A connection is reset, be it while it is being set up."""
    try:
        client = await tcp.dial()
    except ConnectionResetError:
        return
    assert await client.was_reset()


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
    assert await client.was_reset()
    client = await tcp.dial()
    server = await tcp.upstream.accept()
    client.reset()
    assert await server.was_reset()
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


async def read_slowly(peer: Peer, size: int) -> bytes:
    """Reads in small pieces that lag behind the sender."""
    data = bytearray()
    while len(data) < size and (piece := await soon(peer.reader.read(100_000))):
        data += piece
        await asyncio.sleep(0)
    return bytes(data)


async def test_a_slow_reader_gets_every_byte_both_ways_at_once(tcp: Mesh) -> None:
    await tcp.add("db-1")
    client = await tcp.dial()
    server = await tcp.upstream.accept()
    there, back = random.Random(2).randbytes(9 * 2**20), random.Random(3).randbytes(7 * 2**20)

    async def send(peer: Peer, data: bytes) -> None:
        for start in range(0, len(data), 777_777):
            peer.writer.write(data[start : start + 777_777])
            await soon(peer.writer.drain())
        peer.finish()

    _, _, got_there, got_back = await asyncio.gather(
        send(client, there), send(server, back), read_slowly(server, len(there)), read_slowly(client, len(back))
    )
    assert got_there == there
    assert got_back == back
    await client.closed()
    await until(lambda: tcp.count("connections") == 0, "the session's end")
    assert tcp.count("bytes", direction="in") == len(there)
    assert tcp.count("bytes", direction="out") == len(back)


async def test_the_last_bytes_before_an_end_are_not_lost(tcp: Mesh) -> None:
    """The client takes its time; the endpoint has long ended."""
    data = random.Random(4).randbytes(3 * 2**20)
    await tcp.add("db-1")
    client = await tcp.dial()
    server = await tcp.upstream.accept()
    client.reader._transport.pause_reading()  # type: ignore[attr-defined]
    server.writer.write(data)
    server.close()
    await until(lambda: tcp.count("bytes", direction="out") > 100_000, "some of it to come")
    client.reader._transport.resume_reading()  # type: ignore[attr-defined]
    assert await client.rest() == data


async def test_an_answer_before_the_reset_is_delivered(tcp: Mesh) -> None:
    """A server that says no and closes without reading the rest resets; what it said still counts."""
    await tcp.add("smtp-1")
    client = await tcp.dial()
    server = await tcp.upstream.accept()
    server.reader._transport.pause_reading()  # type: ignore[attr-defined]
    await server.send(b"554 no\r\n")
    await client.send(bytes(200_000))
    await until(lambda: tcp.count("bytes", direction="in") > 0, "the proxy to have read")
    server.close()
    assert await client.rest() == b"554 no\r\n"


async def test_an_endpoint_killed_mid_stream_resets_the_client(tcp: Mesh) -> None:
    """So that nobody takes half a transfer for a whole one."""
    await tcp.add("db-1")
    client = await tcp.dial()
    server = await tcp.upstream.accept()
    server.writer.write(bytes(2**20))
    await until(lambda: tcp.count("bytes", direction="out") > 0, "some of it to come")
    server.reset()
    assert await client.was_reset()
    await until(lambda: tcp.count("connections") == 0, "the session's end")


class Ends:
    """A session that only hears how its flow ended."""

    def __init__(self) -> None:
        self.count = 0
        self.how: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def moved(self, flow: Flow, count: int) -> None:
        self.count += count

    def ended(self, flow: Flow) -> None:
        self.how.set_result("ended")

    def broken(self, flow: Flow) -> None:
        self.how.set_result("broken")

    def unwanted(self, flow: Flow) -> None:
        self.how.set_result("unwanted")


@pytest.mark.parametrize("size", [0, 10, 100_000])
@pytest.mark.parametrize("spliced", [False, True])
async def test_a_reset_that_waits_behind_bytes_is_found_with_them(size: int, spliced: bool) -> None:
    """The loop tells of both with one event, and then no more."""
    sink, client = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener, sink, client:
        endpoint = socket.create_connection(listener.getsockname())
        source, _ = listener.accept()
        sink.setblocking(False)
        source.setblocking(False)
        endpoint.sendall(bytes(size))
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        endpoint.close()
        session = Ends()
        flow = Flow(session, source, sink, Pipes())
        flow._bulk = spliced
        flow.start()
        assert await soon(session.how) == "broken"
        assert session.count == size
        source.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_connections_that_move_nothing_hold_no_pipes(tcp: Mesh) -> None:
    await tcp.add("db-1", echo)
    before = descriptors()
    clients = [await tcp.dial() for _ in range(30)]
    block = bytes(300_000)
    for client in clients:
        client.writer.write(block)
        assert len(await soon(client.reader.readexactly(len(block)))) == len(block)
    pipes = 2 * 2  # of the one or two directions that were under way at once
    assert descriptors() <= before + 30 * 4 + pipes
    for client in clients:
        client.close()
    await until(lambda: tcp.count("connections") == 0, "their end")
    await until(lambda: descriptors() <= before + pipes, "their descriptors")


async def test_more_slow_receivers_than_pipes(tcp: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those without a pipe are served by copying."""
    tcp.proxy._context.pipes = Pipes(2)
    await tcp.add("db-1")
    data = random.Random(5).randbytes(2**20)
    pairs = []
    for _ in range(6):
        client = await tcp.dial()
        server = await tcp.upstream.accept()
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        server.writer.write(data)
        server.finish()
        pairs.append(client)
    await until(lambda: tcp.count("bytes", direction="out") > 6 * 100_000, "all to be blocked")
    for client in pairs:
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]
    assert [await client.rest() == data for client in pairs] == [True] * 6


async def test_splicing_is_given_up_where_the_sandbox_has_none(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EINVAL, "no splice here")

    monkeypatch.setattr(os, "splice", refuse)
    mesh.protocol = "tcp"
    await test_much_data_arrives_unchanged(mesh)
    assert mesh.proxy._context.pipes.take() is None


def full_port() -> tuple[socket.socket, list[socket.socket]]:
    """A listener that answers no further SYN: its queue is full."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(0)
    held = []
    for _ in range(4):
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(listening.getsockname())
        held.append(one)
    return listening, held


async def test_an_endpoint_that_does_not_answer_costs_its_connect_timeout(tcp: Mesh) -> None:
    listening, held = full_port()
    silent = Upstream("db-silent")
    silent.port = listening.getsockname()[1]
    tcp.upstreams.append(silent)
    tcp.traffic = {"connect_timeout": "100ms"}
    await tcp.add("db-1", echo)
    for _ in range(2):
        client = await tcp.dial()
        await client.send(b"hello")
        await client.exactly(b"hello")
    assert tcp.count("upstream_failures", reason="connect-failure") >= 1
    tcp.upstreams.remove(silent)
    for one in [listening, *held]:
        one.close()


async def test_endpoints_may_be_named_or_ipv6(tcp: Mesh) -> None:
    upstream = await Upstream("db-1").start(echo)
    six = await asyncio.start_server(_echo_stream, "::1", upstream.port)
    for address in ("localhost", "::1"):
        table = tcp.table()
        service = msgspec.structs.replace(
            table.services["web"],
            endpoints=[msgspec.structs.replace(endpoint(upstream), id=address, address=address)],
        )
        await tcp.update(msgspec.structs.replace(table, services={"web": service}))
        client = await tcp.dial()
        await client.send(b"hello")
        await client.exactly(b"hello")
        client.close()
    six.close()
    await upstream.stop()


async def _echo_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data)
    writer.close()


async def test_one_connection_too_many_is_reset(tcp: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "MAX_CONNECTIONS", 2)
    await tcp.add("db-1", echo)
    clients = [await tcp.dial() for _ in range(2)]
    for client in clients:
        await client.send(b"in")
        await client.exactly(b"in")
    await is_turned_away(tcp)
    assert tcp.count("upstream_failures", reason="too-many-connections") == 1


_PIECES = st.lists(st.binary(max_size=40_000), max_size=6)


@given(_PIECES, _PIECES, st.sampled_from(["client", "server", "both"]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_pieces_arrive_as_they_were(
    tcp: Mesh, there: list[bytes], back: list[bytes], ends_first: str
) -> None:
    """Both ways at once, and whoever ends first."""
    if not tcp.upstreams:
        await tcp.add("db-1")
    client = await tcp.dial()
    server = await tcp.upstream.accept()

    async def play(peer: Peer, pieces: list[bytes], *, first: bool) -> bytes:
        if not first:
            received = await peer.rest()
        await peer.send(*pieces)
        peer.finish()
        return await peer.rest() if first else received

    got_there, got_back = await asyncio.gather(
        play(server, back, first=ends_first != "client"), play(client, there, first=ends_first != "server")
    )
    assert got_there == b"".join(there)
    assert got_back == b"".join(back)


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
    await is_turned_away(tcp)
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
