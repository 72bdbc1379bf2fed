"""The whole cluster: hosts with their engine, agent and data plane; schedulers; the store between them.

Everything that can happen to it is a method; `chaos` decides what happens when.
"""

from __future__ import annotations

import asyncio
import functools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from mesh.agent.agent import Agent
from mesh.aio import Signal
from mesh.dataplane.workers import Workers
from mesh.leader import Scheduler
from mesh.metrics import Family
from mesh.model import Capacity
from mesh.settings import AgentSettings, SchedulerSettings, StoreSettings
from mesh.store import StoreError
from mesh.table import Table
from tests.fakes.runtime import Ground
from tests.simulation.clock import Process, VirtualLoop
from tests.simulation.engine import Engine, EngineLink
from tests.simulation.history import Fact, Offered, Said, Trouble
from tests.simulation.load import GATE, Requests
from tests.simulation.network import KEYS, Link, Middle
from tests.simulation.peers import PORT, Cable, Machine, Peers, SimulatedEcho

RESTART = 1.0
"""Seconds until a service manager restarts an agent that has ended by itself."""


class Cluster:
    """Hosts n1.. and schedulers s1, s2."""

    def __init__(
        self, loop: VirtualLoop, nodes: int, choose: random.Random, record: Callable[[Fact], None], *, probes: bool
    ) -> None:
        """`probes`: nodes answer direct probes; else their sessions alone tell of their end."""
        self.loop = loop
        self.choose = choose
        self.record = record
        self.middle = Middle(loop, record)
        self.probes = probes
        self.peers = Peers(loop, choose)
        self.load = Requests(self)
        self.hosts = {name: Host(self, name) for name in (f"n{number}" for number in range(1, nodes + 1))}
        self.schedulers = {name: SchedulerSeat(self, name) for name in ("s1", "s2")}
        self._ids: set[int] = set()
        self.graveyard: list[object] = []  # what killed processes leave is not to be finalised meanwhile

    async def start(self) -> None:
        for scheduler in self.schedulers.values():
            scheduler.start()
        for host in self.hosts.values():
            host.power_on()

    # ── what operators do ────────────────────────────────────────────────────────────────────

    def write(self, key: str, document: Mapping[str, Any] | int | None) -> None:
        """An operator's write; None deletes the key."""
        if document is None:
            self.middle.now(self.middle.delete(key), "operator")
        else:
            self.middle.now(self.middle.put(key, json.dumps(document).encode()), "operator")

    def read(self, prefix: str) -> dict[str, bytes]:
        """What the store has under a prefix, by the rest of the keys."""
        return {key[len(prefix) :]: entry.value for key, entry in self.middle.listing(prefix).entries.items()}

    def new_id(self, choose: random.Random) -> str:
        """One that no replica of this cluster ever had: to the oracle two with one id would be one."""
        while (number := choose.randrange(65536)) in self._ids:
            pass
        self._ids.add(number)
        return f"{number:04x}"

    def say(self, text: str) -> None:
        self.record(Said(self.loop.time(), "operator", text))

    def trouble(self, who: str, what: str, begins: bool) -> None:
        self.record(Trouble(self.loop.time(), who, what, begins))

    async def end(self) -> None:
        """Everything ends, also what was killed long ago: nothing may be left to the garbage collector."""
        for link in (*(host.link for host in self.hosts.values()), *(seat.link for seat in self.schedulers.values())):
            link.closed = True
        await self.loop.bury()
        await self.middle.close()


class Host:
    """One machine. Its data plane outlives its agent, its containers outlive both, unless the power goes."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.name = name
        self.cluster = cluster
        self.loop = cluster.loop
        self.ground = Ground()
        self.link = Link(cluster.loop, cluster.middle, name, cluster.choose)
        self.engine = self._new_engine()
        self.plane = Plane(self)
        self.process: Process | None = None
        self.agent: asyncio.Task[None] | None = None
        self.machine = Machine()
        self.cable = Cable()
        cluster.peers.machines[name], cluster.peers.cables[name] = self.machine, self.cable
        self.is_on = False
        self.is_managed = False  # the service manager keeps an agent running
        self.skew = cluster.choose.choice([0.0, 0.0, cluster.choose.uniform(-3.0, 3.0)])

    def _new_engine(self) -> Engine:
        return Engine(self.loop, self.name, self.ground, self.cluster.record)

    # ── power ────────────────────────────────────────────────────────────────────────────────

    def power_on(self) -> None:
        if self.is_on:
            return
        self.is_on = self.machine.is_on = True
        self.ground.listeners.clear()
        self.engine = self._new_engine()
        self.start_agent()

    def power_off(self) -> None:
        """All that runs is gone; what engine and store have on disk stays."""
        if not self.is_on:
            return
        self.is_on = self.machine.is_on = False
        self.kill_agent()
        self.engine.process.dead = True
        self.engine.crash_all()
        self.plane = Plane(self)
        self.cluster.record(Offered(self.loop.time(), self.name, {}))

    # ── the agent ────────────────────────────────────────────────────────────────────────────

    def start_agent(self) -> None:
        self.is_managed = True
        if not self.is_on or (self.process is not None and not self.process.dead):
            return
        self.process = Process(self.name, skew=self.skew)
        self.machine.process = self.process
        self.agent = self.loop.spawn(self.process, self._run_agent(), f"agent {self.name}")
        self.agent.add_done_callback(functools.partial(self._agent_ended, self.process))

    def kill_agent(self) -> None:
        """SIGKILL: nothing is tidied up."""
        self.is_managed = False
        if self.process is not None:
            self.process.dead = True
            self.cluster.graveyard.append(self.agent)

    def stop_agent(self) -> None:
        """SIGTERM: it closes what it has; containers and data plane go on."""
        self.is_managed = False
        if self.agent is not None:
            self.agent.cancel()

    async def _run_agent(self) -> None:
        settings = AgentSettings(
            node=self.name,
            store=StoreSettings(),
            state=Path("/simulated", self.name),
            address=self.name,
            admin_listen=f"{self.name}:{PORT}",
            reserved=Capacity(),
            vips="loopback",
        )
        workers = cast(Workers, PlaneLink(self.plane))
        echo = SimulatedEcho(self.cluster.peers, self.name) if self.cluster.probes else None
        self.machine.echo = None

        async def answer_probes() -> None:
            self.machine.echo = echo

        agent = Agent(settings, self.link, EngineLink(self.loop, self.engine), workers, echo=echo,
                      answer_probes=answer_probes)  # fmt: skip
        try:
            await agent.run()
        finally:
            await agent.close()

    def _agent_ended(self, process: Process, task: asyncio.Task[None]) -> None:
        if process.dead or self.process is not process:
            return
        process.dead = True
        if not task.cancelled() and (error := task.exception()) is not None:
            expected = isinstance(error, StoreError) or (
                isinstance(error, BaseExceptionGroup) and error.split(StoreError)[1] is None
            )
            text = f"the agent ended by itself: {error!r}"
            self.cluster.record(Said(self.loop.time(), self.name, text, is_error=not expected))
        if self.is_managed:
            self.loop.later(RESTART, self._restart_agent)

    def _restart_agent(self) -> None:
        if self.is_managed:
            self.start_agent()


class Plane:
    """A host's DNS and proxy: takes each new Table a moment later, and goes on with the last."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.table: Table | None = None
        self.sequence = 0
        self.applied = 0
        self.endpoints: dict[str, str] = {}
        self.progress = Signal()

    def publish(self, table: Table) -> int:
        self.table = table
        self.sequence += 1
        self.host.loop.later(self.host.cluster.choose.uniform(0.0005, 0.02), self._apply, table, self.sequence)
        return self.sequence

    def _apply(self, table: Table, sequence: int) -> None:
        if self.host.plane is not self or sequence < self.applied:
            return
        self.applied = sequence
        if self.host.name == GATE:
            self.host.cluster.load.offered({name for name, service in table.services.items() if service.endpoints})
        endpoints = {one.id: one.state for service in table.services.values() for one in service.endpoints}
        if endpoints != self.endpoints:
            self.endpoints = endpoints
            self.host.cluster.record(Offered(self.host.loop.time(), self.host.name, endpoints))
        self.progress.set()


class PlaneLink:
    """What an agent sees of its data plane: the part of `Workers` that it uses."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self.news = Signal()

    @property
    def table(self) -> Table | None:
        return self._plane.table

    def publish(self, table: Table) -> int:
        return self._plane.publish(table)

    def give_secrets(self, secrets: Mapping[str, str]) -> None:
        """There are none."""

    async def acknowledged(self, sequence: int, timeout: float) -> bool:
        deadline = self._plane.host.loop.time() + timeout
        while self._plane.applied < sequence:
            left = deadline - self._plane.host.loop.time()
            if left <= 0:
                return False
            await asyncio.sleep(min(left, 0.005))
        return True

    def problems(self) -> list[str]:
        return []

    def waiting(self) -> list[str]:
        return []

    async def metrics(self) -> Sequence[Family]:
        return []


class SchedulerSeat:
    """One scheduler process."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.name = name
        self.cluster = cluster
        self.loop = cluster.loop
        self.link = Link(cluster.loop, cluster.middle, name, cluster.choose)
        self.cable = Cable()
        cluster.peers.cables[name] = self.cable
        self.process: Process | None = None
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self.process is not None and not self.process.dead:
            return
        self.process = Process(self.name)
        choose = random.Random(self.cluster.choose.random())
        settings = SchedulerSettings(store=StoreSettings(), name=self.name)
        scheduler = Scheduler(self.link, KEYS, settings, new_id=lambda: self.cluster.new_id(choose))
        self.task = self.loop.spawn(self.process, self._run(scheduler), f"scheduler {self.name}")
        self.task.add_done_callback(functools.partial(self._ended, self.process))

    async def _run(self, scheduler: Scheduler) -> None:
        await scheduler.run()

    def kill(self) -> None:
        if self.process is not None:
            self.process.dead = True
            self.cluster.graveyard.append(self.task)

    def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()

    def _ended(self, process: Process, task: asyncio.Task[None]) -> None:
        if process.dead:
            return
        process.dead = True
        if not task.cancelled():
            text = f"the scheduler ended by itself: {task.exception()!r}"
            self.cluster.record(Said(self.loop.time(), self.name, text, is_error=True))
