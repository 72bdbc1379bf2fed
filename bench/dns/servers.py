"""Our server and its peers, each with the same answers: started, pinned to one core, ended by their pids."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.request import Request, urlopen

from bench.dns.world import answered_addresses, query
from bench.processes import cpu_seconds, pin, resident
from mesh.dataplane.worker import DnsArguments
from mesh.dataplane.workers import Workers
from mesh.table import Table
from tests.parts.consul import ConsulServer
from tests.parts.ports import free_port

PATIENCE = 60.0

PROGRAMS = {"dnsmasq": "dnsmasq-base", "knotd": "knot", "unbound": "unbound", "consul": "consul", "dnsperf": "dnsperf"}
"""What the benchmark runs, and the Debian package that has it."""


@dataclass(frozen=True)
class Server:
    name: str
    pid: int
    port: int
    domain: str = "svc.cluster"

    def cpu_seconds(self) -> float:
        """What it has used so far, with its children (dnsmasq has one per TCP connection)."""
        return cpu_seconds(self.pid)

    def resident_mib(self) -> float:
        return resident(self.pid) / 2**20


def missing() -> list[str]:
    return [package for program, package in PROGRAMS.items() if not shutil.which(program)]


@asynccontextmanager
async def ours(folder: Path, table: Table) -> AsyncIterator[tuple[Server, Workers]]:
    """A DNS worker as an agent runs it: metrics, rate limit and forwarding on."""
    port = free_port()
    workers = Workers(folder / "ours", [DnsArguments(listen=(f"127.0.0.1:{port}",), survive=False)])
    await workers.start()
    try:
        workers.publish(table)
        async with asyncio.timeout(PATIENCE):
            await workers.serving()
        pid = int((folder / "ours" / "dns-1.pid").read_text())
        pin(pid)
        yield Server("ours", pid, port), workers
    finally:
        await workers.close()


@asynccontextmanager
async def peers(folder: Path, table: Table) -> AsyncIterator[list[Server]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(process("dnsmasq", folder, table, dnsmasq)),
            await stack.enter_async_context(process("knot", folder, table, knot)),
            await stack.enter_async_context(process("unbound", folder, table, unbound)),
            await stack.enter_async_context(consul(folder, table)),
        ]


def records(table: Table) -> Iterator[tuple[str, str]]:
    """(full name, address) of all that there is to be answered."""
    for name, service in table.services.items():
        for endpoint in service.endpoints:
            yield f"{name}.svc.cluster", endpoint.address


def dnsmasq(folder: Path, table: Table, port: int) -> list[str]:
    hosts = folder / "hosts"
    hosts.write_text("".join(f"{address} {name}\n" for name, address in records(table)))
    return ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", f"--port={port}", "--listen-address=127.0.0.1",
            "--bind-interfaces", "--no-resolv", "--no-hosts", f"--addn-hosts={hosts}", "--local=/cluster/",
            "--local-ttl=5", "--user=root", "--pid-file="]  # fmt: skip


def knot(folder: Path, table: Table, port: int) -> list[str]:
    zone = "cluster. 5 IN SOA ns.cluster. hostmaster.cluster. 1 7200 1800 86400 5\ncluster. 5 IN NS ns.cluster.\n"
    zone += "ns.cluster. 5 IN A 127.0.0.1\n" + "".join(f"{name}. 5 IN A {ip}\n" for name, ip in records(table))
    (folder / "cluster.zone").write_text(zone)
    (folder / "knot.conf").write_text(
        f"server:\n  listen: 127.0.0.1@{port}\n  rundir: {folder}\n  udp-workers: 1\n  tcp-workers: 1\n"
        f"  background-workers: 1\ndatabase:\n  storage: {folder}/knot\n"
        f"zone:\n  - domain: cluster\n    file: {folder}/cluster.zone\n"
    )
    return ["knotd", "--config", str(folder / "knot.conf")]


def unbound(folder: Path, table: Table, port: int) -> list[str]:
    data = "".join(f'  local-data: "{name}. 5 IN A {address}"\n' for name, address in records(table))
    (folder / "unbound.conf").write_text(
        f'server:\n  interface: 127.0.0.1\n  port: {port}\n  num-threads: 1\n  username: ""\n  chroot: ""\n'
        f'  pidfile: ""\n  directory: "{folder}"\n  use-syslog: no\n  do-daemonize: no\n'
        f'  local-zone: "cluster." static\n{data}remote-control:\n  control-enable: no\n'
    )
    return ["unbound", "-d", "-c", str(folder / "unbound.conf")]


@asynccontextmanager
async def process(
    name: str, folder: Path, table: Table, configure: Callable[[Path, Table, int], list[str]]
) -> AsyncIterator[Server]:
    port = free_port()
    with (folder / f"{name}.log").open("wb") as log:
        running = await asyncio.create_subprocess_exec(
            *configure(folder, table, port), stdout=log, stderr=log, start_new_session=True
        )
    try:
        server = Server(name, running.pid, port)
        await answering(server, table)
        pin(running.pid)
        yield server
    finally:
        running.send_signal(signal.SIGTERM)
        await running.wait()


@asynccontextmanager
async def consul(folder: Path, table: Table) -> AsyncIterator[Server]:
    port = free_port()
    agent = ConsulServer(folder / "consul", {"ports": {"dns": port}})
    await asyncio.to_thread(agent.start)
    try:
        await asyncio.to_thread(register, agent.address, table)
        server = Server("Consul", agent.pid, port, "service.consul")
        await answering(server, table)
        pin(server.pid)
        yield server
    finally:
        await asyncio.to_thread(agent.kill)


def register(address: str, table: Table) -> None:
    for name, service in table.services.items():
        for endpoint in service.endpoints:
            entry = {"ID": endpoint.id, "Service": name, "Address": endpoint.address, "Port": 80}
            body = {"Node": f"node-{endpoint.slot}", "Address": "127.0.0.1", "Service": entry}
            urlopen(Request(f"{address}/v1/catalog/register", json.dumps(body).encode(), method="PUT")).read()


async def answering(server: Server, table: Table) -> None:
    """Waits until it has the last name."""
    name = list(table.services)[-1]
    async with asyncio.timeout(PATIENCE):
        while True:
            if await ask(server, name):
                return
            await asyncio.sleep(0.05)


async def ask(server: Server, name: str) -> frozenset[str]:
    """The addresses that it gives for a service; none if it does not answer."""
    client = await Client.connect(server)
    try:
        return await client.ask(name)
    finally:
        client.close()


class Client(asyncio.DatagramProtocol):
    """One question at a time."""

    def __init__(self, domain: str) -> None:
        self._domain = domain
        self._transport: asyncio.DatagramTransport | None = None
        self._answer: asyncio.Future[bytes] | None = None

    @classmethod
    async def connect(cls, server: Server) -> Client:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_datagram_endpoint(
            lambda: cls(server.domain), remote_addr=("127.0.0.1", server.port)
        )
        return client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    async def ask(self, name: str) -> frozenset[str]:
        assert self._transport
        asked = query(f"{name}.{self._domain}")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.sendto(asked)
        try:
            async with asyncio.timeout(1):
                while (packet := await self._answer)[:2] != asked[:2]:
                    self._answer = asyncio.get_running_loop().create_future()
        except (TimeoutError, OSError):
            return frozenset()
        return answered_addresses(packet)

    def close(self) -> None:
        if self._transport:
            self._transport.close()

    def datagram_received(self, data: bytes, address: object) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_result(data)

    def error_received(self, error: Exception) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(error)
