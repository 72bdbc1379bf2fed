"""The life of workers under load: replaced, stopped, crashed, handed from one supervisor to the next."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import dnslib
import pytest

from mesh.dataplane.worker import Arguments, DnsArguments, ProxyArguments
from mesh.dataplane.workers import Workers, orphans
from mesh.metrics import merge
from mesh.table import Endpoint, Table, TablePort, TableService
from tests.parts.ports import free_port
from tests.patience import until

REQUEST = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"


class World:
    """An upstream in this process, a Table that leads to it, and supervisors one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.dns = free_port()
        self.hold = asyncio.Event()  # answers wait for it
        self.hold.set()
        self.asked = 0
        self._supervisors: list[Workers] = []

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.asked += 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhe")
                await self.hold.wait()
                writer.write(b"re")
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    @property
    def table(self) -> Table:
        endpoint = Endpoint(
            id="web-1-aaaa", slot=1, node="n1", address="127.0.0.1",
            ports={"http": self._server.sockets[0].getsockname()[1]},
        )  # fmt: skip
        port = TablePort(port=80, protocol="http", listen=f"127.0.0.1:{self.port}")
        service = TableService(vip="127.88.0.1", desired=1, ports={"http": port}, endpoints=[endpoint])
        return Table(services={"web": service})

    async def supervise(self, *arguments: Arguments) -> Workers:
        workers = Workers(self.folder, arguments)
        self._supervisors.append(workers)
        workers.publish(self.table)
        await workers.start()
        await workers.serving()
        return workers

    async def die(self, workers: Workers) -> None:
        """As by `kill -9`, as far as its workers can tell."""
        self._supervisors.remove(workers)
        await workers._tasks.close()
        workers._dismiss_newcomers()
        await workers._feed.close()
        workers._shelf.close()

    async def stop(self, workers: Workers) -> None:
        """As by SIGTERM: its workers linger for the next."""
        self._supervisors.remove(workers)
        await workers.close(linger=30.0)

    def pid(self, name: str) -> int:
        return int((self.folder / f"{name}.pid").read_text())

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def close(self) -> None:
        self.hold.set()
        for workers in self._supervisors:
            await workers.close(drain=0.2)
        self._server.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path / "workers")
    await world.start()
    yield world
    await world.close()
    assert not orphans(world.folder)


class Load:
    """Clients that keep their connections, clients that make one per request, and a resolver; all note what fails."""

    def __init__(self, world: World, clients: int = 6, dns: bool = False) -> None:
        self._world = world
        self.done = 0
        self.faults: list[str] = []
        self._over = False
        jobs = [self._keep] * clients + [self._fresh] * clients + [self._resolve] * dns
        self._tasks = [asyncio.create_task(self._repeat(job)) for job in jobs]

    async def _repeat(self, job: Callable[[], Any]) -> None:
        while not self._over:
            try:
                await job()
            except (OSError, EOFError, AssertionError) as fault:
                self.faults.append(f"{job.__name__}: {fault!r}")

    async def _keep(self) -> None:
        reader, writer = await self._world.connect()
        try:
            head = b""
            while not self._over and b"Connection: close" not in head:
                writer.write(REQUEST)
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                assert await reader.readexactly(4) == b"here"
                self.done += 1
        finally:
            writer.close()

    async def _fresh(self) -> None:
        reader, writer = await self._world.connect()
        try:
            writer.write(REQUEST.replace(b"Host", b"Connection: close\r\nHost"))
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 200 "), answer
            assert answer.endswith(b"here"), answer
            self.done += 1
        finally:
            writer.close()

    async def _resolve(self) -> None:
        """A lost query would be an answer that never comes."""

        def ask() -> int:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
                asker.settimeout(5)
                asker.connect(("127.0.0.1", self._world.dns))
                asker.send(dnslib.DNSRecord.question("web.svc.cluster").pack())
                return int(dnslib.DNSRecord.parse(asker.recv(4096)).header.rcode)

        assert await asyncio.to_thread(ask) == dnslib.RCODE.NOERROR
        self.done += 1

    async def more(self, count: int) -> None:
        """Returns after as many further requests."""
        wanted = self.done + count
        await until(lambda: self.done >= wanted, f"{count} requests")

    async def end(self) -> list[str]:
        self._over = True
        await asyncio.gather(*self._tasks)
        return self.faults


def counted(families: Sequence[Any], name: str) -> float:
    return sum(sample.value for family in merge(families) if family.name == name for sample in family.samples)


async def test_replacing_all_workers_under_load_fails_nothing(world: World) -> None:
    workers = await world.supervise(
        DnsArguments(listen=(f"127.0.0.1:{world.dns}",)), ProxyArguments(), ProxyArguments()
    )
    load = Load(world, dns=True)
    for _ in range(5):
        await load.more(400)
        before = [world.pid(name) for name in ("dns-1", "proxy-1", "proxy-2")]
        assert await workers.replace() == []
        assert not set(before) & {world.pid(name) for name in ("dns-1", "proxy-1", "proxy-2")}
    await load.more(200)
    assert await load.end() == []
    assert load.done >= 2000
    assert counted(await workers.metrics(), "mesh_worker_restarts") == 0
    assert workers.problems() == []


async def test_counts_go_on_over_a_replacement(world: World) -> None:
    workers = await world.supervise(ProxyArguments())
    load = Load(world, clients=2)
    seen = 0.0
    for _ in range(3):
        await load.more(100)
        await workers.replace()
        now = counted(await workers.metrics(), "mesh_proxy_requests")
        assert now >= seen
        seen = now
    await load.end()
    await until(lambda: len(workers._feed.links) == 1, "the last predecessor has ended")
    assert counted(await workers.metrics(), "mesh_proxy_requests") == load.done


async def test_the_load_of_the_last_seconds_is_exact(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.dataplane.load.WINDOW", 100)  # all of it is in the window, also on a slow machine
    workers = await world.supervise(ProxyArguments(), ProxyArguments())
    load = Load(world, clients=2)
    await load.more(50)
    await workers.replace()
    await load.more(50)
    await load.end()
    report = await workers.load("n1")
    web = report.services["web"]
    assert web.rps * report.window == pytest.approx(load.done, rel=0.01)
    assert web.success_ratio == 1.0
    assert web.p50 is not None
    assert web.p99 is not None
    assert web.p50 <= web.p99
    assert web.endpoints["web-1-aaaa"].rps == pytest.approx(web.rps)


async def test_what_is_in_flight_counts_while_it_lasts(world: World) -> None:
    workers = await world.supervise(ProxyArguments())
    world.hold.clear()
    clients = [await world.connect() for _ in range(3)]
    began = time.monotonic()
    for _, writer in clients:
        writer.write(REQUEST)
    await until(lambda: world.asked == 3, "three requests")
    sent = time.monotonic()
    await asyncio.sleep(0.3)
    before = time.monotonic()
    report = await workers.load()
    after = time.monotonic()
    web = report.services["web"]
    assert (web.in_flight_now, web.rps) == (3, 0)
    assert 3 * (before - sent) <= web.in_flight * report.window * 1.01
    assert web.in_flight * report.window <= 3 * (after - began) * 1.01
    for _, writer in clients:
        writer.close()


async def test_a_response_under_way_comes_whole_and_an_idle_client_has_one_more_request(world: World) -> None:
    workers = await world.supervise(ProxyArguments())
    idle_reader, idle_writer = await world.connect()
    idle_writer.write(REQUEST)
    assert b"Connection: close" not in await idle_reader.readuntil(b"\r\n\r\n")
    await idle_reader.readexactly(4)
    world.hold.clear()
    reader, writer = await world.connect()
    writer.write(REQUEST)
    await reader.readuntil(b"\r\n\r\n")
    predecessor = world.pid("proxy-1")
    await workers.replace()
    world.hold.set()
    assert await reader.readexactly(4) == b"here", "from the process that was replaced"
    idle_writer.write(REQUEST)
    while b"Connection: close" not in await idle_reader.readuntil(b"\r\n\r\n"):  # has not heard yet that it is to end
        assert await idle_reader.readexactly(4) == b"here"
        idle_writer.write(REQUEST)
    assert await idle_reader.read() == b"here"
    writer.write(REQUEST)
    assert b"Connection: close" in await reader.readuntil(b"\r\n\r\n")
    assert await reader.read() == b"here"
    await until(lambda: not Path(f"/proc/{predecessor}").exists(), "it has nothing left to do")
    idle_writer.close()
    writer.close()


async def test_what_waits_for_a_crashed_worker_is_served_by_its_successor(world: World) -> None:
    workers = await world.supervise(ProxyArguments())
    crashed = world.pid("proxy-1")
    os.kill(crashed, signal.SIGSTOP)
    reader, writer = await world.connect()  # the kernel accepts it: it waits in the queue
    writer.write(REQUEST)
    os.kill(crashed, signal.SIGKILL)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    assert counted(await workers.metrics(), "mesh_worker_restarts") == 1
    writer.close()


async def test_only_what_a_crashed_worker_had_in_flight_fails(world: World) -> None:
    await world.supervise(ProxyArguments(), ProxyArguments())
    load = Load(world)
    await load.more(200)
    os.kill(world.pid("proxy-1"), signal.SIGKILL)
    await load.more(500)
    assert len(await load.end()) <= 12, "one for each client at most"


async def test_a_worker_that_is_told_to_end_has_a_successor_first(world: World) -> None:
    workers = await world.supervise(ProxyArguments())
    load = Load(world)
    await load.more(100)
    told = world.pid("proxy-1")
    os.kill(told, signal.SIGTERM)
    await until(lambda: not Path(f"/proc/{told}").exists(), "its end")
    await load.more(100)
    assert await load.end() == []
    assert world.pid("proxy-1") != told
    assert counted(await workers.metrics(), "mesh_worker_restarts") == 0


async def test_workers_of_another_kind_are_replaced_by_a_new_supervisor_without_a_fault(world: World) -> None:
    first = await world.supervise(ProxyArguments(), ProxyArguments())
    load = Load(world)
    await load.more(100)
    processes = [world.pid("proxy-1"), world.pid("proxy-2")]
    await world.die(first)
    await load.more(100)
    await world.supervise(ProxyArguments(node="n1"))
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), "their end, of both")
    await load.more(100)
    assert await load.end() == []


async def test_a_supervisor_that_ends_while_it_replaces_a_worker_leaves_the_old_one_to_the_next(world: World) -> None:
    first = await world.supervise(ProxyArguments())
    process = world.pid("proxy-1")
    load = Load(world)
    await load.more(100)
    first.replace_soon()
    await until(lambda: world.pid("proxy-1") != process, "a successor's start")
    await world.stop(first)
    assert world.pid("proxy-1") == process
    await world.supervise(ProxyArguments(node="n1"))
    await until(lambda: world.pid("proxy-1") != process, "another successor's start")
    await load.more(200)
    assert await load.end() == []


async def test_a_successor_that_does_not_start_leaves_the_old_one_in_place(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = await world.supervise(ProxyArguments())
    process = world.pid("proxy-1")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert await workers.replace() == ["proxy-1"]
    assert world.pid("proxy-1") == process
    assert workers.problems() == [f"worker proxy-1: its successor did not start, process {process} goes on"]
    reader, writer = await world.connect()
    writer.write(REQUEST)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    writer.close()
    monkeypatch.undo()
    assert await workers.replace() == []
    assert workers.problems() == []


async def test_a_port_that_left_the_table_is_closed_though_the_supervisor_had_a_copy(world: World) -> None:
    workers = await world.supervise(ProxyArguments())
    await workers.acknowledged(workers.publish(Table()), 10)

    async def refused() -> bool:
        try:
            _, writer = await world.connect()
        except ConnectionRefusedError:
            return True
        writer.close()
        return False

    deadline = time.monotonic() + 10
    while not await refused():
        assert time.monotonic() < deadline
    await workers.acknowledged(workers.publish(world.table), 10)
    assert not await refused()
