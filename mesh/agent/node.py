"""One node put together: runtime, store client, workers, agent and admin HTTP, as settings say."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mesh.admin import Admin, Sources, admin_token
from mesh.agent.agent import Agent
from mesh.agent.meter import Meter
from mesh.agent.surroundings import nameservers_of
from mesh.dataplane.load import ReplicaUsage
from mesh.dataplane.worker import DnsArguments, ProxyArguments
from mesh.dataplane.workers import Workers, orphans, refused_addresses
from mesh.model import ReplicaReport
from mesh.probing import Echo, split
from mesh.runtime import ExecResult, MeteredRuntime, Runtime, RuntimeFault
from mesh.settings import AgentSettings
from mesh.store import Store
from mesh.store.consul import ConsulStore

if TYPE_CHECKING:
    from mesh.runtime.docker import DockerRuntime

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What runs this node's replicas, the settings with what that needs, and what is missing for it.

    `gateway`: this host's address on its containers' bridge, if it has one.
    """

    runtime: MeteredRuntime
    settings: AgentSettings
    problems: tuple[str, ...] = ()
    gateway: str = ""
    why: str = ""  # it is not the Docker engine, where that would have been preferred


class Node:
    """`start`, then `run` until cancelled, then `close`."""

    def __init__(self, chosen: Chosen, *, inherit: Sequence[int] = ()) -> None:
        """`inherit`: descriptors that the workers keep open."""
        self.chosen = chosen
        self.settings = settings = chosen.settings
        self.runtime = runtime = chosen.runtime
        self.store: Store = ConsulStore(settings.store)
        dns = DnsArguments(listen=settings.dns_listen, upstreams=settings.upstreams, node=settings.node)
        proxy = ProxyArguments(
            node=settings.node, access_log=settings.access_log, access_log_sample=settings.access_log_sample,
            trust=settings.proxy_trust,
        )  # fmt: skip
        wanted = [dns] * settings.dns_workers + [proxy] * settings.proxy_workers
        self.workers = Workers(settings.state / "workers", wanted, inherit=inherit)
        self._meter = Meter(runtime)
        self.echo = Echo()
        self.agent = Agent(
            settings, self.store, runtime, self.workers, problems=chosen.problems, gateway=chosen.gateway,
            echo=self.echo, answer_probes=self._answer_probes,
        )  # fmt: skip
        sources = Sources(
            waiting_for=self.agent.waiting_for,
            metrics=self.agent.metrics,
            table=lambda: self.agent.table,
            load=lambda: self.workers.load(settings.node),
            waiting=self.workers.held,
            usage=self._usage,
            replicas=_Replicas(self.agent, runtime),
        )
        self.admin = Admin(settings.admin_listen, sources, admin_token(settings.state))

    async def start(self) -> None:
        await self.workers.start()
        await self.admin.start()

    async def _answer_probes(self) -> None:
        """On the node's address, with the admin port's number. Without it the node's session alone tells of its end."""
        _, port = split(self.admin.address.removeprefix("http://"))
        try:
            await self.echo.start(self.settings.address, port)
        except OSError as error:
            log.warning("cannot answer probes on %s:%d/udp: %s", self.settings.address, port, error)

    async def _usage(self, services: Collection[str]) -> dict[str, ReplicaUsage]:
        running = [one.id for one in self.agent.replicas() if one.state.alive and one.service in services]
        return await self._meter.read(running)

    async def run(self) -> None:
        await self.agent.run()

    async def close(self, *, linger: float = 0.0, leave: bool = False) -> None:
        """Replicas run on. `linger`: seconds the workers go on serving; `leave`: the node gives back its key."""
        await self.agent.close(leave=leave)
        self.echo.close()
        await self.admin.close()
        await self.workers.close(linger)
        await self.runtime.close()
        await self.store.close()


class _Replicas:
    """The agent's replicas for admin HTTP."""

    def __init__(self, agent: Agent, runtime: Runtime) -> None:
        self._agent = agent
        self._runtime = runtime

    def list(self) -> list[ReplicaReport]:
        return self._agent.replicas()

    def logs(self, id: str, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]:
        return self._runtime.logs(id, follow=follow, tail=tail)

    async def exec(self, id: str, command: Sequence[str], *, timeout: float) -> ExecResult:
        return await self._runtime.exec(id, command, timeout=timeout)


async def choose_runtime(settings: AgentSettings, *, with_dns: bool = False) -> Chosen:
    """The runtime that the settings name. `auto`: the Docker engine if one answers, else local processes.

    What `auto` found is kept in the state folder: an engine that is slow to come up loses no containers.
    `with_dns`: containers that could not resolve the mesh's names are no choice.
    """
    memory = settings.state / "runtime"
    wanted, why = settings.runtime, ""
    if wanted == "auto" and memory.exists():
        wanted = memory.read_text().strip()
    if wanted == "auto":
        from mesh.runtime.docker_engine import docker_available

        fault = await docker_available(settings.docker_host, settings.state)
        if not fault:
            docker = await _docker(settings)
            fault = "; ".join(docker.problems) if with_dns else ""
            if not fault:
                memory.write_text("docker")
                return docker
            await docker.runtime.close()
        log.info("runtime: local processes, since %s", fault)
        wanted, why = "process", fault
    memory.write_text(wanted)
    if wanted == "docker":
        return await _docker(settings)
    from mesh.runtime.process import ProcessRuntime

    return Chosen(ProcessRuntime(settings.state, settings.node, address=settings.address), settings, why=why)


async def _docker(settings: AgentSettings) -> Chosen:
    """Containers of this machine's engine, or of another's."""
    from mesh.runtime.docker_way import remote_host

    remote = remote_host(settings.docker_host or "")
    return await (_docker_elsewhere(settings, remote) if remote or settings.engine_address else _docker_here(settings))


async def _docker_here(settings: AgentSettings) -> Chosen:
    """DNS answers also where containers find it: on their bridge's gateway."""
    runtime = _docker_runtime(settings, settings.address, direct=ipaddress.ip_address(settings.address).is_loopback)
    try:
        gateway = await runtime.bridge_gateway()
    except RuntimeFault as error:
        return Chosen(runtime, settings, (f"containers get no DNS of this node: {error}",))
    listen = f"{gateway}:53"
    if gateway in nameservers_of(settings, gateway):
        return Chosen(runtime, settings, gateway=gateway)
    ours = orphans(settings.state / "workers")  # they hold it for us
    if not ours and (refused := refused_addresses([listen]).get(listen)):
        why = os.strerror(refused.errno or 0)
        problem = f"containers cannot resolve the mesh's names: DNS cannot listen on {listen}: {why}"
        return Chosen(runtime, settings, (problem,), gateway)
    return Chosen(runtime, replace(settings, dns_listen=(*settings.dns_listen, listen)), gateway=gateway)


async def _docker_elsewhere(settings: AgentSettings, remote: str | None) -> Chosen:
    """Containers are reached at ports of the engine's host, and DNS where they reach this machine."""
    problems = []
    try:
        address = settings.engine_address or await _resolved(str(remote))
    except OSError as error:
        address = settings.address
        problems.append(f"where containers are reached is not known: {remote}: {error.strerror}; set --engine-address")
    if not nameservers_of(settings):
        here = "IP" if ipaddress.ip_address(settings.address).is_loopback else settings.address
        problems.append(
            "containers get no DNS of this node: let it listen on an address that the engine's host reaches, "
            f"--dns-listen {here}:53"
        )
    return Chosen(_docker_runtime(settings, address, direct=False), settings, tuple(problems))


async def _resolved(host: str) -> str:
    found = await asyncio.get_running_loop().getaddrinfo(host, None, family=socket.AF_INET, type=socket.SOCK_STREAM)
    return str(found[0][4][0])


def _docker_runtime(settings: AgentSettings, address: str, *, direct: bool) -> DockerRuntime:
    """`direct`: how containers are reached where the settings leave it open."""
    from mesh.runtime.docker import DockerRuntime

    publish = ("direct" if direct else "published") if settings.publish == "auto" else settings.publish
    return DockerRuntime(
        settings.node, root=settings.store.root, docker_host=settings.docker_host, publish=publish, address=address,
        state=settings.state,
    )  # fmt: skip
