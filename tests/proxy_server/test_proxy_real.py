"""Real clients and servers: curl, aiohttp on both sides with WebSockets and streams, a worker's memory."""

from __future__ import annotations

import asyncio
import hashlib
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
import pytest_asyncio
from aiohttp import web

from mesh.table import Table
from tests.patience import until
from tests.proxy_server.test_proxy_table import WORKER
from tests.proxy_server.wire import Mesh, Peer, Upstream

MEGABYTE = b"m" * 2**20


async def _echo(request: web.Request) -> web.StreamResponse:
    """The body back, as it comes."""
    response = web.StreamResponse()
    response.content_length = request.content_length
    await response.prepare(request)
    async for piece in request.content.iter_any():
        await response.write(piece)
    await response.write_eof()
    return response


async def _socket(request: web.Request) -> web.WebSocketResponse:
    peer = web.WebSocketResponse()
    await peer.prepare(request)
    async for message in peer:
        await peer.send_bytes(message.data[::-1])
    return peer


async def _events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in range(3):
        await response.write(b"data: %d\n\n" % number)
    return response


@pytest_asyncio.fixture
async def site(mesh: Mesh) -> AsyncIterator[str]:
    """An aiohttp server behind the proxy; its URL."""
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/echo", _echo)
    app.router.add_get("/socket", _socket)
    app.router.add_get("/events", _events)
    runner = web.AppRunner(app)
    await runner.setup()
    server = web.TCPSite(runner, "127.0.0.1", 0)
    await server.start()
    upstream = Upstream("web-1")
    upstream.port = runner.addresses[0][1]
    mesh.upstreams = [upstream]
    await mesh.update()
    yield f"http://127.0.0.1:{mesh.port}"
    mesh.upstreams = []
    await runner.cleanup()


async def test_aiohttp_client_and_server(site: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield MEGABYTE

    async with aiohttp.ClientSession() as session:
        for data, length in ((b"small", 5), (MEGABYTE * 20, 20 * 2**20), (pieces(), 20 * 2**20)):
            async with session.post(f"{site}/echo", data=data) as response:
                assert response.status == 200
                assert len(await response.read()) == length
        async with session.put(f"{site}/echo", data=MEGABYTE, expect100=True) as response:
            assert await response.read() == MEGABYTE
        async with session.get(f"{site}/events") as response:
            assert await response.read() == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"


async def test_web_sockets(site: str, mesh: Mesh) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{site}/socket", max_msg_size=2**24) as peer:
        for data in (b"abc", bytes(range(256)) * 10_000):
            await peer.send_bytes(data)
            assert await peer.receive_bytes() == data[::-1]
    await until(lambda: mesh.count("requests", code="1xx") == 1, "the tunnel's end")


async def _curl(*arguments: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--max-time", "30", *arguments, stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out


@pytest.mark.curl
async def test_curl(site: str, tmp_path: Path) -> None:
    file = tmp_path / "body"
    file.write_bytes(MEGABYTE * 5)
    url = f"{site}/echo"
    assert await _curl(url, "--data-binary", f"@{file}") == MEGABYTE * 5  # asks for 100 Continue
    assert await _curl(url, "--data-binary", f"@{file}", "-H", "Transfer-Encoding: chunked") == MEGABYTE * 5
    assert await _curl(url, "-T", str(file), "--http1.0") == MEGABYTE * 5
    assert await _curl(url, "-d", "x", "--next", url, "-d", "y", "--next", f"{site}/events", "-I") != b""


async def test_a_worker_s_memory_does_not_grow_with_a_body(mesh: Mesh, tmp_path: Path) -> None:
    """300 MiB up and down through a worker of its own, read slowly enough to fill every buffer."""
    size = 300 * 2**20

    async def back_and_forth(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        left = size
        while left and (piece := await peer.reader.read(2**18)):
            left -= len(piece)
            peer.writer.write(piece)
            await peer.writer.drain()

    await mesh.add("web-1", back_and_forth)
    table = mesh.table()
    await mesh.update(Table())
    file = tmp_path / "table.json"
    file.write_bytes(msgspec.json.encode(table))
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, str(file), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert worker.stdout is not None
        assert await worker.stdout.readline() == b"ready\n"
        before = _peak_memory(worker.pid)
        client = await mesh.dial()
        digest, expected = hashlib.md5(), hashlib.md5()

        async def send() -> None:
            await client.send(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n" % size)
            for _ in range(size // len(MEGABYTE)):
                client.writer.write(MEGABYTE)
                expected.update(MEGABYTE)
                await client.writer.drain()

        sending = asyncio.create_task(send())
        await client.head()
        left = size
        while left and (piece := await client.reader.read(2**18)):
            left -= len(piece)
            digest.update(piece)
        await sending
        assert digest.digest() == expected.digest()
        assert _peak_memory(worker.pid) - before < 16 * 2**20
    finally:
        worker.kill()
        await worker.wait()


def _peak_memory(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
