"""One node put together: runtime, store client, workers, agent and admin HTTP, as settings say."""

from __future__ import annotations

import errno
import ipaddress
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from mesh.admin import Admin, Sources, admin_token
from mesh.agent import Agent
from mesh.consul import ConsulStore
from mesh.model import ReplicaReport
from mesh.runtime import ExecResult, Runtime, RuntimeFault
from mesh.settings import AgentSettings
from mesh.store import Store
from mesh.worker import DnsArguments, ProxyArguments
from mesh.workers import Workers, refused_addresses

log = logging.getLogger(__name__)


class Node:
    """`start`, then `run` until cancelled, then `close`."""

    def __init__(self, settings: AgentSettings, runtime: Runtime, *, inherit: Sequence[int] = ()) -> None:
        """`inherit`: descriptors that the workers keep open."""
        self.settings = settings
        self.runtime = runtime
        self.store: Store = ConsulStore(settings.store)
        dns = DnsArguments(listen=settings.dns_listen, upstreams=settings.upstreams, node=settings.node)
        wanted = [dns] * settings.dns_workers + [ProxyArguments(node=settings.node)] * settings.proxy_workers
        self.workers = Workers(settings.state / "workers", wanted, inherit=inherit)
        self.agent = Agent(settings, self.store, runtime, self.workers)
        sources = Sources(
            waiting_for=self.agent.waiting_for,
            metrics=self.agent.metrics,
            table=lambda: self.agent.table,
            replicas=_Replicas(self.agent, runtime),
        )
        self.admin = Admin(settings.admin_listen, sources, admin_token(settings.state))

    async def start(self) -> None:
        await self.workers.start()
        await self.admin.start()

    async def run(self) -> None:
        await self.agent.run()

    async def close(self, *, linger: float = 0.0, leave: bool = False) -> None:
        """Replicas run on. `linger`: seconds the workers go on serving; `leave`: the node gives back its key."""
        await self.agent.close(leave=leave)
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


async def choose_runtime(settings: AgentSettings) -> tuple[Runtime, AgentSettings]:
    """What runs this node's replicas, and the settings with DNS also where containers find it.

    A choice by `auto` is kept in the state folder: an engine that is slow to come up loses no containers.
    """
    memory = settings.state / "runtime"
    wanted = settings.runtime
    if wanted == "auto" and memory.exists():
        wanted = memory.read_text().strip()
    if wanted == "auto":
        from mesh.docker import docker_available

        fault = await docker_available(settings.docker_host)
        log.info("runtime: %s", f"local processes, since {fault}" if fault else "the Docker engine")
        wanted = "process" if fault else "docker"
    memory.write_text(wanted)
    if wanted == "docker":
        return await _docker(settings)
    from mesh.process import ProcessRuntime

    return ProcessRuntime(settings.state, settings.node, address=settings.address), settings


async def _docker(settings: AgentSettings) -> tuple[Runtime, AgentSettings]:
    from mesh.docker import DockerRuntime

    direct = ipaddress.ip_address(settings.address).is_loopback
    publish = ("direct" if direct else "published") if settings.publish == "auto" else settings.publish
    runtime = DockerRuntime(
        settings.node,
        root=settings.store.root,
        docker_host=settings.docker_host,
        publish=publish,
        address=settings.address,
    )
    try:
        gateway = f"{await runtime.bridge_gateway()}:53"
    except RuntimeFault as error:
        log.warning("containers get no DNS of ours: %s", error)
        return runtime, settings
    if gateway in settings.dns_listen or "0.0.0.0:53" in settings.dns_listen:
        return runtime, settings
    refused = refused_addresses([gateway]).get(gateway)
    if refused and refused.errno != errno.EADDRINUSE:  # taken: the workers say so, and wait
        log.warning("containers cannot resolve names of the mesh: DNS cannot listen on %s: %s", gateway, refused)
        return runtime, settings
    return runtime, replace(settings, dns_listen=(*settings.dns_listen, gateway))
