"""`mesh dev`: store, scheduler and agent of a whole mesh in one process, with the agent's workers.

It leaves nothing behind: on exit every replica it started is stopped and removed. After a `kill -9` the next
`mesh dev` on the same state folder adopts what still runs, at the same addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import json
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from pathlib import Path

import msgspec

from mesh import console
from mesh.agent import vip_route
from mesh.agent.localise import Network, loopback_range
from mesh.agent.node import Node, choose_runtime
from mesh.daemon import Stop, run_process, scheduler_admin, settle
from mesh.dataplane.workers import orphans, refused_addresses
from mesh.keys import Keys
from mesh.leader import Scheduler
from mesh.model import ClusterConfig
from mesh.settings import (
    AgentSettings,
    DevInfo,
    DevSettings,
    EmbeddedStoreSettings,
    SchedulerSettings,
    StoreSettings,
)
from mesh.settings.sources import dev_state, host_name
from mesh.startup import StartError, locked
from mesh.store import Store, StoreError
from mesh.store.consul import ConsulStore
from mesh.store.embedded import EmbeddedStore
from mesh.view import decode_document, encode_document

log = logging.getLogger(__name__)

EXIT_GRACE = 3.0
"""Seconds that a replica gets to end when `mesh dev` does."""

VIP_RANGES = range(96, 128)
"""The second bytes of 10.x.0.0/16: each `mesh dev` of a machine has one of its own."""


def run_dev(settings: DevSettings) -> int:
    """A whole mesh until Ctrl-C or SIGTERM; then it stops and removes all that it started."""
    return run_process(lambda stop: _dev(settings, stop))


async def _dev(settings: DevSettings, stop: Stop) -> None:
    begun = time.monotonic()
    with locked(settings.state, "a `mesh dev` that runs already; start another beside it with --state DIR"):
        before = _previous(settings.state)
        async with _store(settings, before) as store_settings:
            store = ConsulStore(store_settings)
            claim = None
            try:
                claim = await _claim_vips(settings, store, Keys(store_settings.root))
                chosen = await choose_runtime(_agent_settings(settings, store_settings, before), with_dns=True)
                node = Node(chosen, inherit=[claim.fileno()] if claim else [])
                await _live(settings, node, store, stop, begun)
            finally:
                if claim:
                    claim.close()
                await store.close()


async def _live(settings: DevSettings, node: Node, store: Store, stop: Stop, begun: float) -> None:
    """Runs scheduler and node until told to stop; then leaves nothing of them."""
    keys = Keys(node.settings.store.root)
    scheduler = Scheduler(store, keys, SchedulerSettings(store=node.settings.store, name=node.settings.node))
    admin = scheduler_admin(scheduler, "127.0.0.1:0")
    information = settings.state / "dev.json"
    try:
        await node.start()
        await admin.start()
        _write_info(information, node)
        settle()
        async with asyncio.TaskGroup() as group:
            deciding = group.create_task(scheduler.run(admin.address), name="scheduler")
            acting = group.create_task(node.run(), name="agent")
            greeting = group.create_task(_greet(node, begun), name="greeting")
            await stop.wait()
            console.note("stopping: removing every replica (Ctrl-C again: leave them)")
            for task in (deciding, acting, greeting):
                task.cancel()
    finally:
        await admin.close()
        await _leave(node, store, keys)
        information.unlink(missing_ok=True)
        (settings.state / "runtime").unlink(missing_ok=True)


async def _leave(node: Node, store: Store, keys: Keys) -> None:
    await node.agent.remove_all(EXIT_GRACE)
    route = node.settings.state / "vip_route"
    if route.exists():
        await vip_route.remove(route.read_text())
        route.unlink()
    await node.close(leave=True)
    try:
        for key in (keys.node_plan(node.settings.node), keys.node_report(node.settings.node)):
            await store.delete(key)
    except StoreError as error:
        log.warning("this node stays in the store: %s", error)


# ── where everything listens ─────────────────────────────────────────────────────────────────


def _previous(state: Path) -> DevInfo | None:
    """The addresses of a `mesh dev` on this folder that was killed, to take them again."""
    try:
        return DevInfo(**json.loads((state / "dev.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


@contextlib.asynccontextmanager
async def _store(settings: DevSettings, before: DevInfo | None) -> AsyncIterator[StoreSettings]:
    """The store to use: the given one, or an embedded one that lives as long as this block."""
    if settings.store:
        yield settings.store
        return
    listen = settings.store_listen or _free(before.store if before else "", "127.0.0.1", 8500)
    embedded = EmbeddedStore(EmbeddedStoreSettings(settings.state / "store", listen))
    await embedded.start()
    try:
        yield StoreSettings(address=embedded.address)
    finally:
        await embedded.close()


def _agent_settings(settings: DevSettings, store: StoreSettings, before: DevInfo | None) -> AgentSettings:
    adopting = orphans(settings.state / "workers")
    if settings.dns_listen:
        dns = settings.dns_listen
    elif before and adopting:
        dns = before.dns
    else:
        dns = _free(before.dns if before else "", "127.0.0.1", 53, 5353)
    return AgentSettings(
        node=settings.node or _node_name(settings.state),
        store=store,
        state=settings.state,
        runtime=settings.runtime,
        docker_host=settings.docker_host,
        labels=settings.labels,
        dns_listen=(dns,),
        dns_workers=settings.dns_workers,
        proxy_workers=settings.proxy_workers,
        proxy_trust=settings.proxy_trust,
        admin_listen=settings.admin_listen or _free(before.admin if before else "", "127.0.0.1", 7070),
        vips=settings.vips,
        upstreams=settings.upstreams,
        access_log=settings.access_log,
        access_log_sample=settings.access_log_sample,
    )


def _free(before: str, host: str, *ports: int) -> str:
    """The address of last time, else the first of `ports` and their successors that can be bound."""
    numbers = [port for first in ports for port in ([first] if first < 1024 else range(first, first + 100))]
    addresses = [before.removeprefix("http://")] if before else []
    for address in addresses + [f"{host}:{number}" for number in numbers]:
        if not refused_addresses([address]):
            return address
    raise StartError(f"none of the ports {ports[-1]} to {ports[-1] + 99} of {host} is free")


def _node_name(state: Path) -> str:
    """Names this mesh's only node; another state folder is another node, also to a shared engine or Consul."""
    name = f"{host_name()[:40]}-dev"
    if state.resolve() == dev_state(os.environ).resolve():
        return name
    return f"{name}-{hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:4]}"


async def _claim_vips(settings: DevSettings, store: Store, keys: Keys) -> socket.socket | None:
    """Gives this mesh a range of virtual IPs that no other `mesh dev` of the machine has.

    The claim is a socket in the abstract namespace, which lives as long as a process that holds it: we, and our
    workers, which may outlive us.
    """
    entry = await store.get(keys.config)
    config = decode_document(entry.value, ClusterConfig) if entry else ClusterConfig()
    own = ipaddress.ip_network(config.vip_range)
    if settings.store or own not in _RANGES:
        return None  # the operators' choice
    if orphans(settings.state / "workers"):
        return None  # our own workers hold the claim
    for network in (own, *(network for network in _RANGES if network != own)):
        if _served(network):
            continue
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0mesh-dev-vips-{network}")
        except OSError:
            claim.close()
            continue
        if network != own:
            changed = msgspec.structs.replace(config, vip_range=str(network))
            await store.put(keys.config, encode_document(changed))
        return claim
    raise StartError("every range of virtual IPs is taken: too many `mesh dev` on this machine")


def _served(network: Network) -> bool:
    """True if some program of this machine, an agent's proxy say, listens on a virtual IP of the range."""
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {local.partition(":")[0] for _, local, _, state, *_ in sockets if state == "0A"}
    addresses = [ipaddress.IPv4Address(int.from_bytes(bytes.fromhex(each), sys.byteorder)) for each in listening]
    return any(address in network or address in loopback_range(network) for address in addresses)


_RANGES = [ipaddress.ip_network(f"10.{second}.0.0/16") for second in VIP_RANGES]


# ── what it says ─────────────────────────────────────────────────────────────────────────────


def _write_info(path: Path, node: Node) -> None:
    settings = node.settings
    store = settings.store
    info = DevInfo(os.getpid(), store.address, settings.dns_listen[0], node.admin.address, store.root)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(info), indent=2) + "\n")
    os.replace(fresh, path)


async def _greet(node: Node, begun: float) -> None:
    """Says what to type, once DNS answers."""
    await node.workers.serving()
    for line in _greeting(node, time.monotonic() - begun):
        console.note(line)


def _greeting(node: Node, seconds: float) -> Iterator[str]:
    settings, vips = node.settings, node.agent.vips
    host, _, port = settings.dns_listen[0].rpartition(":")
    dig = f"dig @{host}" + (f" -p {port}" if port != "53" else "")
    yield f"mesh dev is ready after {seconds:.1f} s: node {settings.node}, store {settings.store.address}"
    if node.chosen.why:
        yield f"replicas are local processes: {node.chosen.why}"
    for problem in node.chosen.problems:
        yield f"problem: {problem}"
    if vips and vips.mode == "loopback":
        first = vip_route.first_port()
        moved = f", and ports below {first} are moved up by 8000" if first > 1 else ""
        yield f"virtual IPs are addresses of 127.0.0.0/8{moved}: {vips.why}"
    yield "try, in another terminal:"
    yield "  mesh apply examples/guestbook"
    yield "  mesh status --watch"
    yield f"  {dig} web.svc.cluster"
    yield "Ctrl-C stops it and removes every replica; what you applied is kept for the next time."
