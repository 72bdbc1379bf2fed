"""The processes: each `run_…` puts its parts together, runs until told to stop, and returns the exit code.

SIGTERM and SIGINT end a process gracefully; a second SIGINT ends it at once. SIGHUP puts new processes in the place of
all data-plane workers, one after the other, without a gap.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from mesh import console
from mesh.admin import Admin, Sources
from mesh.dataplane.slot import GRACE
from mesh.dataplane.table_file import TableFile
from mesh.dataplane.worker import DRAIN, Arguments, DnsArguments, ProxyArguments
from mesh.dataplane.workers import Workers, refused_addresses
from mesh.metrics import Family
from mesh.settings import AgentSettings, DnsSettings, ProxySettings, SchedulerSettings
from mesh.startup import StartError, locked
from mesh.store import StoreError

if TYPE_CHECKING:
    from mesh.leader import Scheduler

log = logging.getLogger(__name__)

LINGER = 60.0
"""Seconds the data plane goes on after SIGTERM, for an agent that is restarted."""


IMPATIENCE = 0.5
"""Seconds after which a second SIGINT means: at once. Sooner, it is the same Ctrl-C, passed on by a wrapper too."""


class Stop:
    """Told to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._since = 0.0
        self._told = asyncio.Event()

    def listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._tell, number)

    def _tell(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._since = number, now
        elif number is signal.SIGINT and now - self._since > IMPATIENCE:
            os._exit(130)
        self._told.set()

    async def wait(self) -> None:
        await self._told.wait()


async def until_stopped(work: Coroutine[object, object, None], stop: Stop) -> None:
    """Runs `work`, which ends only by failing, until told to stop."""
    task = asyncio.create_task(work, name="work")
    told = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait([task, told], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        for each in (task, told):
            each.cancel()
        await asyncio.gather(task, told, return_exceptions=True)


def run_process(main: Callable[[Stop], Awaitable[None]]) -> int:
    """Runs a process's `main`; 1, with the sentence on stderr, where it cannot start or go on."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s  %(message)s")

    async def run() -> None:
        stop = Stop()
        stop.listen()
        await main(stop)

    try:
        uvloop.run(run())
    except (StartError, StoreError) as error:
        console.error(str(error))
        return 1
    except BaseExceptionGroup as group:
        expected, rest = group.split((StartError, StoreError))
        if rest:
            raise
        console.error(str(_first(expected)))
        return 1
    return 0


def _first(error: BaseException | None) -> BaseException | None:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def settle() -> None:
    """After the start: spares the collector what stays for ever."""
    gc.collect()
    gc.freeze()


# ── agent ────────────────────────────────────────────────────────────────────────────────────


def run_agent(settings: AgentSettings) -> int:
    """One node's agent. SIGTERM leaves replicas and, for a minute, the data plane; SIGINT leaves the replicas."""
    return run_process(lambda stop: _agent(settings, stop))


async def _agent(settings: AgentSettings, stop: Stop) -> None:
    from mesh.agent.node import Node, choose_runtime

    with locked(settings.state, "one agent for each state folder; choose another with --state"):
        node = Node(await choose_runtime(settings))
        linger = LINGER
        try:
            await node.start()
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, node.workers.replace_soon)
            settle()
            await until_stopped(node.run(), stop)
        except (StartError, StoreError):  # it never became this node's agent; those of the last one serve on
            linger = LINGER if node.workers.adopted else 0.0
            raise
        finally:
            await node.close(linger=0.0 if stop.signal is signal.SIGINT else linger)


# ── scheduler ────────────────────────────────────────────────────────────────────────────────


def run_scheduler(settings: SchedulerSettings) -> int:
    """One scheduler; the lead passes to another at once when it is told to stop."""
    return run_process(lambda stop: _scheduler(settings, stop))


async def _scheduler(settings: SchedulerSettings, stop: Stop) -> None:
    from mesh.keys import Keys
    from mesh.leader import Scheduler
    from mesh.store.consul import ConsulStore

    store = ConsulStore(settings.store)
    scheduler = Scheduler(store, Keys(settings.store.root), settings)

    admin = scheduler_admin(scheduler, settings.admin_listen)
    try:
        await admin.start()
        settle()
        await until_stopped(scheduler.run(_from_elsewhere(admin.address)), stop)
    finally:
        await admin.close()
        await store.close()


def _from_elsewhere(address: str) -> str:
    """The base URL for other hosts: of what listens on every address, by this host's name."""
    return re.sub(r"//(0\.0\.0\.0|\[::\])?:", f"//{socket.gethostname()}:", address)


def scheduler_admin(scheduler: Scheduler, listen: str) -> Admin:
    """The admin HTTP of a scheduler."""

    async def metrics() -> list[Family]:
        return scheduler.metrics()

    return Admin(
        listen, Sources(waiting_for=list, metrics=metrics, status=scheduler.status, autoscale=scheduler.explain)
    )


# ── dns and proxy from a file ────────────────────────────────────────────────────────────────


def run_dns(settings: DnsSettings) -> int:
    """The DNS server alone, from a Table in a file."""
    for address, error in refused_addresses(settings.listen).items():
        console.error(f"dns cannot listen on {address}: {os.strerror(error.errno or 0)}: choose another with --listen")
        return 1
    arguments = DnsArguments(
        listen=settings.listen, upstreams=settings.upstreams, forward=settings.forward, allow=settings.allow,
        survive=False,
    )  # fmt: skip
    return run_process(lambda stop: _serve(settings.table, [arguments] * settings.workers, settings.admin_listen, stop))


def run_proxy(settings: ProxySettings) -> int:
    """The proxy alone, from a Table in a file."""
    arguments = ProxyArguments(
        node=settings.node,
        access_log=settings.access_log,
        access_log_sample=settings.access_log_sample,
        trust=settings.trust,
        survive=False,
    )
    workers = [arguments] * settings.workers
    return run_process(lambda stop: _serve(settings.table, workers, settings.admin_listen, stop))


async def _serve(path: Path, wanted: Sequence[Arguments], admin_listen: str | None, stop: Stop) -> None:
    table = TableFile(path)
    first = table.read()
    with tempfile.TemporaryDirectory(prefix="mesh-") as folder:
        workers = Workers(Path(folder), wanted)
        proxies = any(isinstance(each, ProxyArguments) for each in wanted)
        sources = Sources(
            waiting_for=lambda: [f"worker {name} has no Table yet" for name in workers.waiting()],
            metrics=workers.metrics,
            table=lambda: workers.table,
            load=workers.load if proxies else None,
            waiting=workers.held if proxies else None,
        )
        admin = Admin(admin_listen, sources) if admin_listen else None
        try:
            workers.publish(first)
            await workers.start()
            workers.log_problems()
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, workers.replace_soon)
            if admin:
                await admin.start()
            await until_stopped(table.follow(workers.publish), stop)
        finally:
            if admin:
                await admin.close()
            await workers.close(drain=DRAIN if stop.signal is signal.SIGTERM else GRACE)
