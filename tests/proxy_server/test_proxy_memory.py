"""Bodies of any size pass in constant memory: a worker of its own, so that its memory is its own."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path

import msgspec

from mesh.table import Table
from tests.proxy_server.test_proxy_table import WORKER
from tests.proxy_server.wire import Mesh, Peer

SIZE = 200 * 2**20
BLOCK = bytes(range(256)) * 4096  # 1 MiB
GROWTH = 24 * 2**20
"""Bytes of memory that a body may cost, whatever its size."""


def resident(pid: int, field: str) -> int:
    """Bytes of `VmRSS` (now) or `VmHWM` (at most so far)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


async def read(peer: Peer, count: int) -> str:
    """The digest of the next `count` bytes."""
    digest = hashlib.blake2b()
    while count:
        piece = await peer.reader.read(min(count, 2**20))
        assert piece
        digest.update(piece)
        count -= len(piece)
    return digest.hexdigest()


async def write(peer: Peer, *, chunked: bool) -> str:
    """Sends SIZE bytes; their digest."""
    digest = hashlib.blake2b()
    for _ in range(SIZE // len(BLOCK)):
        peer.writer.write(b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK) if chunked else BLOCK)
        await peer.writer.drain()
        digest.update(BLOCK)
    if chunked:
        peer.writer.write(b"0\r\n\r\n")
    return digest.hexdigest()


async def test_large_bodies_pass_in_constant_memory(mesh: Mesh, tmp_path: Path) -> None:
    """Up with a length, then back in chunks."""
    upstream = await mesh.add("web-1")
    table = tmp_path / "table.json"
    table.write_bytes(msgspec.json.encode(mesh.table()))
    await mesh.update(Table())
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, str(table), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert worker.stdout is not None
        assert await worker.stdout.readline() == b"ready\n"
        before = resident(worker.pid, "VmRSS")
        client = await mesh.dial()
        await client.send(b"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n" % SIZE)
        server = await upstream.accept()
        await server.head()
        sent = asyncio.create_task(write(client, chunked=False))
        assert await read(server, SIZE) == await sent
        await server.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        answered = asyncio.create_task(write(server, chunked=True))
        await client.head()
        digest = hashlib.blake2b()
        while size := int(await client.reader.readuntil(b"\r\n"), 16):
            digest.update((await client.reader.readexactly(size + 2))[:-2])
        assert digest.hexdigest() == await answered
        assert resident(worker.pid, "VmHWM") - before < GROWTH
    finally:
        worker.kill()
        await worker.wait()
