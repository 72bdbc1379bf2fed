"""A steady load on a service through the proxies of some hosts, as programs on these hosts make it.

Requests begin at their times whether or not earlier ones have been answered, so that a stall is felt by as many as
it would be. On each host every other request opens a connection of its own; the rest share connections that are kept.
Every fourth first asks the host's DNS for the name. Nothing is tried again: whatever does not end in a whole `200` has
failed.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Self

from dnslib import RCODE, DNSRecord

from tests.lab.system import NAME, LabError
from tests.simulation.history import Failed

CLONE_NEWNET = 0x40000000
TIMEOUT = 10.0
PORT = 80
KEPT = 16
"""Connections that are kept per host."""
KEPT_FOR = 2.0
"""Seconds after which a kept connection is given up, before the proxy does."""

RESOLVED_EVERY = 4
SLOW_EVERY = 20
"""Each so-manieth request takes a while (`/slow`), so that some are always on their way."""


@dataclass(frozen=True, slots=True)
class Failure:
    """`began`: seconds, of the monotonic clock or since a fault."""

    began: float
    host: str
    what: str

    def __str__(self) -> str:
        return f"{self.host}: {self.what}"


@dataclass
class _Client:
    """One host's: its network, and the connections that it keeps."""

    host: str
    kept: deque[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=deque)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Sockets made here are the host's."""
        libc = ctypes.CDLL(None, use_errno=True)
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        theirs = os.open(f"/run/netns/{NAME}-{self.host}", os.O_RDONLY)
        try:
            if libc.setns(theirs, CLONE_NEWNET):
                raise LabError(f"cannot enter the network of {self.host}: {os.strerror(ctypes.get_errno())}")
            yield
        finally:
            libc.setns(own, CLONE_NEWNET)
            os.close(own)
            os.close(theirs)

    async def connection(self, address: str, *, keep: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while keep and self.kept:
            since, reader, writer = self.kept.pop()
            if time.monotonic() - since < KEPT_FOR and not reader.at_eof():
                return reader, writer
            writer.close()
        with self.inside():
            made = socket.socket()
        made.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(made, (address, PORT))
            return await asyncio.open_connection(sock=made)
        except BaseException:
            made.close()
            raise


class Traffic:
    """`with Traffic("10.96.0.1", ["h1", "h2"]) as traffic:` runs until the end of the block, and waits for the last."""

    def __init__(
        self,
        address: str,
        hosts: Sequence[str],
        *,
        name: str = "web.svc.cluster",
        rate: float = 200.0,
        record: Callable[[Failed], None] = lambda _: None,
    ) -> None:
        """`address`: what `name` must lead to; `record`: is told of what fails."""
        self._record = record
        self.address = address
        self.name = name
        self.rate = rate
        self.answers: Counter[str] = Counter()
        """By what the replicas say who they are."""
        self.failures: list[Failure] = []
        self.slowest = 0.0
        self._clients = [_Client(host) for host in hosts]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    @property
    def total(self) -> int:
        return sum(self.answers.values()) + len(self.failures)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(2 * TIMEOUT)

    def more(self, count: int) -> Callable[[], bool]:
        """Whether so many more requests than now are over."""
        seen = self.total
        return lambda: self.total >= seen + count

    async def _run(self) -> None:
        under_way: set[asyncio.Task[None]] = set()
        due = time.monotonic()
        for number, client in enumerate(cycle(self._clients)):
            if self._stopped.is_set():
                break
            task = asyncio.create_task(self._ask(client, number // len(self._clients)))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            due += 1 / self.rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await asyncio.gather(*under_way)
        for client in self._clients:
            for _, _, writer in client.kept:
                writer.close()

    async def _ask(self, client: _Client, number: int) -> None:
        began = time.monotonic()
        path = "/slow" if number % SLOW_EVERY == 0 else "/"
        try:
            async with asyncio.timeout(TIMEOUT):
                if number % RESOLVED_EVERY == 1:
                    await self._resolve(client)
                who = await self._exchange(client, path, keep=number % 2 == 0)
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            self._fail(Failure(began, client.host, f"{path} {error!r}"))
        else:
            self.answers[who] += 1
            if path == "/":
                self.slowest = max(self.slowest, time.monotonic() - began)

    def _fail(self, failure: Failure) -> None:
        self.failures.append(failure)
        now, lasted = time.time(), time.monotonic() - failure.began
        self._record(Failed(now, failure.host, now - lasted, failure.what))

    async def _resolve(self, client: _Client) -> None:
        with client.inside():
            asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with asker:
            asker.setblocking(False)
            asker.connect(("127.0.0.1", 53))
            asker.send(DNSRecord.question(self.name).pack())
            answer = DNSRecord.parse(await asyncio.get_running_loop().sock_recv(asker, 4096))
        if [str(one.rdata) for one in answer.rr] != [self.address]:
            raise ValueError(f"{self.name}: {RCODE[answer.header.rcode]} {answer.rr}")

    async def _exchange(self, client: _Client, path: str, *, keep: bool) -> str:
        reader, writer = await client.connection(self.address, keep=keep)
        is_kept = False
        try:
            close = "" if keep else "Connection: close\r\n"
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {self.address}\r\n{close}\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            body = (await reader.readexactly(int(lines["content-length"]))).decode().strip()
            if " 200 " not in head.partition("\r\n")[0]:
                raise ValueError(f"{head.partition(chr(13))[0]}: {body[:200]}")
            is_kept = keep and len(client.kept) < KEPT and lines.get("connection") != "close"
            return body
        finally:
            if is_kept:
                client.kept.append((time.monotonic(), reader, writer))
            else:
                writer.close()
