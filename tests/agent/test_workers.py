"""Real worker processes under their supervisor: fed, restarted, kept, replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import dnslib
import msgspec
import pytest

from mesh.dataplane.worker import DnsArguments, ProxyArguments
from mesh.dataplane.workers import Workers, orphans, refused_addresses
from mesh.table import Endpoint, Table, TablePort, TableService
from tests.parts.ports import free_port
from tests.patience import until


def table(*services: str) -> Table:
    endpoint = Endpoint(id="web-1-aaaa", slot=1, node="n1", address="127.0.0.1", ports={"http": 9})
    service = TableService(
        vip="127.88.0.1", ports={"http": TablePort(port=8080, protocol="tcp")}, endpoints=[endpoint]
    )  # fmt: skip
    return Table(services=dict.fromkeys(services, service))


async def rcode(port: int, name: str) -> int | None:
    """How the DNS server answers for `name`; None: not at all."""

    def ask() -> int | None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.settimeout(0.5)
            asker.connect(("127.0.0.1", port))
            try:
                asker.send(dnslib.DNSRecord.question(name).pack())
                return int(dnslib.DNSRecord.parse(asker.recv(4096)).header.rcode)
            except OSError:
                return None

    return await asyncio.to_thread(ask)


async def until_rcode(port: int, name: str, wanted: int) -> None:
    deadline = time.monotonic() + 20
    while (found := await rcode(port, name)) != wanted:
        assert time.monotonic() < deadline, f"{name}: {found} instead of {wanted}"
        await asyncio.sleep(0.02)


def pid(folder: Path, name: str) -> int:
    return int((folder / f"{name}.pid").read_text())


class Supervisors:
    """Supervisors of one folder, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.arguments: list[DnsArguments | ProxyArguments] = [DnsArguments(listen=(f"127.0.0.1:{self.port}",))]
        self._workers: list[Workers] = []

    async def start(self, *more: DnsArguments | ProxyArguments) -> Workers:
        workers = Workers(self.folder, [*self.arguments, *more])
        self._workers.append(workers)
        await workers.start()
        return workers

    async def die(self, workers: Workers) -> None:
        """As by `kill -9`, as far as its workers can tell: the connections break, and nobody says a word."""
        self._workers.remove(workers)
        await workers._tasks.close()
        workers._dismiss_newcomers()
        await workers._feed.close()

    async def close(self) -> None:
        for workers in self._workers:
            await workers.close()


@pytest.fixture
async def supervisors(tmp_path: Path) -> AsyncIterator[Supervisors]:
    supervisors = Supervisors(tmp_path / "workers")
    yield supervisors
    await supervisors.close()
    assert not orphans(supervisors.folder)


async def test_workers_answer_from_what_is_published(supervisors: Supervisors) -> None:
    workers = await supervisors.start(ProxyArguments())
    await until_rcode(supervisors.port, "web.svc.cluster", dnslib.RCODE.SERVFAIL)
    assert workers.waiting() == ["dns-1", "proxy-1"]
    sequence = workers.publish(table("web"))
    await workers.serving()
    assert await workers.acknowledged(sequence, 5)
    assert await rcode(supervisors.port, "web.svc.cluster") == dnslib.RCODE.NOERROR
    assert await workers.acknowledged(workers.publish(table()), 5)
    assert await rcode(supervisors.port, "web.svc.cluster") == dnslib.RCODE.NXDOMAIN, (
        "an acknowledged change is in force"
    )
    assert workers.waiting() == []
    names = {family.name for family in await workers.metrics()}
    assert "mesh_worker_restarts" in names
    assert any(name.startswith("mesh_dns") for name in names)
    assert any(name.startswith("mesh_proxy") for name in names)


async def test_a_killed_worker_is_started_again(supervisors: Supervisors) -> None:
    workers = await supervisors.start()
    workers.publish(table("web"))
    await workers.serving()
    killed = pid(supervisors.folder, "dns-1")
    os.kill(killed, signal.SIGKILL)
    await until(lambda: pid(supervisors.folder, "dns-1") != killed, "another process")
    await until_rcode(supervisors.port, "web.svc.cluster", dnslib.RCODE.NOERROR)
    restarts = next(family for family in await workers.metrics() if family.name == "mesh_worker_restarts")
    assert [sample.value for sample in restarts.samples] == [1]


async def test_several_workers_share_the_port(supervisors: Supervisors) -> None:
    workers = await supervisors.start(*supervisors.arguments)
    workers.publish(table("web"))
    await workers.serving()
    os.kill(pid(supervisors.folder, "dns-1"), signal.SIGKILL)
    await until_rcode(supervisors.port, "web.svc.cluster", dnslib.RCODE.NOERROR)
    await workers.serving()
    assert workers.problems() == []


async def test_workers_serve_on_without_a_supervisor_and_are_kept_by_the_next(supervisors: Supervisors) -> None:
    first = await supervisors.start()
    first.publish(table("web"))
    await first.serving()
    process = pid(supervisors.folder, "dns-1")
    await supervisors.die(first)
    assert orphans(supervisors.folder)
    assert await rcode(supervisors.port, "web.svc.cluster") == dnslib.RCODE.NOERROR
    second = await supervisors.start()
    assert await rcode(supervisors.port, "web.svc.cluster") == dnslib.RCODE.NOERROR
    second.publish(table("web", "shop"))
    await second.serving()
    await until_rcode(supervisors.port, "shop.svc.cluster", dnslib.RCODE.NOERROR)
    assert pid(supervisors.folder, "dns-1") == process
    os.kill(process, signal.SIGKILL)  # one that is no child of ours is restarted too
    await until(lambda: pid(supervisors.folder, "dns-1") != process, "another process")


async def test_a_worker_of_other_arguments_is_replaced_without_a_gap(supervisors: Supervisors) -> None:
    first = await supervisors.start()
    first.publish(table("web"))
    await first.serving()
    process = pid(supervisors.folder, "dns-1")
    await supervisors.die(first)
    supervisors.arguments = [DnsArguments(listen=(f"127.0.0.1:{supervisors.port}",), forward=False)]
    second = await supervisors.start()
    second.publish(table("web"))
    while not await asyncio.to_thread(gone, process):
        assert await rcode(supervisors.port, "web.svc.cluster") in (dnslib.RCODE.NOERROR, None)
    await until_rcode(supervisors.port, "web.svc.cluster", dnslib.RCODE.NOERROR)
    assert pid(supervisors.folder, "dns-1") != process


def gone(process: int) -> bool:
    """True if it has ended, reaped or not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second when it ends between open and read
        return True


async def test_workers_that_were_told_to_linger_end_by_themselves(supervisors: Supervisors) -> None:
    first = await supervisors.start()
    first.publish(table("web"))
    await first.serving()
    process = pid(supervisors.folder, "dns-1")
    await first.close(linger=0.5)
    supervisors._workers.remove(first)
    assert await rcode(supervisors.port, "web.svc.cluster") == dnslib.RCODE.NOERROR
    await until(lambda: gone(process), "its end")


async def test_a_worker_serves_on_beside_a_supervisor_of_another_language(supervisors: Supervisors) -> None:
    first = await supervisors.start()
    first.publish(table("web"))
    await first.serving()
    process = pid(supervisors.folder, "dns-1")
    await supervisors.die(first)
    calls = 0

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        frame = msgspec.msgpack.encode({"type": "Later", "what": "nobody knows"})
        writer.write(len(frame).to_bytes(4, "big") + frame)
        await reader.read()
        writer.close()

    way = supervisors.folder / "feed.sock"
    way.unlink(missing_ok=True)
    async with await asyncio.start_unix_server(speak, way):
        await until(lambda: calls >= 2, "it calls again")
        assert await rcode(supervisors.port, "web.svc.cluster") == dnslib.RCODE.NOERROR
    second = await supervisors.start()
    second.publish(table("web", "api"))
    await until_rcode(supervisors.port, "api.svc.cluster", dnslib.RCODE.NOERROR)
    assert second.adopted
    assert pid(supervisors.folder, "dns-1") == process


async def test_a_port_that_another_program_holds_is_a_problem_until_it_is_free(supervisors: Supervisors) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # it would even share
        other.bind(("127.0.0.1", supervisors.port))
        workers = await supervisors.start()
        workers.publish(table("web"))
        await until(workers.problems, "the problem")
        assert workers.problems() == [
            f"dns: 127.0.0.1:{supervisors.port} is taken by another program: stop it, or choose another DNS address"
        ]
    await workers.serving()
    assert workers.problems() == []


async def test_what_the_proxy_cannot_open_is_a_problem(supervisors: Supervisors) -> None:
    supervisors.arguments = [ProxyArguments()]
    with socket.socket() as other:
        other.bind(("127.88.0.1", 8080))
        other.listen()
        workers = await supervisors.start()
        workers.publish(table("web"))
        await until(workers.problems, "the problem")
        assert "127.88.0.1:8080" in workers.problems()[0]
    await until(lambda: not workers.problems(), "it is opened later")


async def test_a_worker_without_survival_ends_with_its_supervisor(supervisors: Supervisors) -> None:
    supervisors.arguments = [DnsArguments(listen=(f"127.0.0.1:{supervisors.port}",), survive=False)]
    workers = await supervisors.start()
    workers.publish(table("web"))
    await workers.serving()
    process = pid(supervisors.folder, "dns-1")
    await supervisors.die(workers)
    await until(lambda: gone(process), "its end")


def test_addresses_that_cannot_be_bound_are_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert refused_addresses([address]).keys() == {address}
        assert refused_addresses(["192.0.2.1:53"]).keys() == {"192.0.2.1:53"}
    assert refused_addresses([address]) == {}
