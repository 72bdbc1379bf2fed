"""What one change costs in a large cluster: requests, bytes and CPU, of each agent and of the scheduler.

    python -m bench.scale [--nodes 300] [--services 500] [--replicas 20] [--agents 6] [--rate 10] [--seconds 15]

A real Consul server, the real scheduler and real agents with their store clients, Views and Tables, on engines in
memory. A few agents live, together in one process, and what they cost is divided by their number; all other nodes are
documents that somebody else writes, and obeys the plans for. Two kinds of changes come at a steady rate: replicas that
turn unready and ready again (one report each), and services that are scaled by one and back (a wish, a plan for the
service, one for a node, and the reports of a replica's life).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from bench.reconcile import Cluster
from mesh.agent.agent import Agent
from mesh.agent.report import report_ops
from mesh.dataplane.workers import Workers
from mesh.keys import Keys
from mesh.leader import Scheduler
from mesh.model import Assignment, Capacity, NodePlan, NodeReport, ReplicaReport, ReplicaState, Want
from mesh.runtime import Instance, InstanceState
from mesh.scheduler.plan import Outcome
from mesh.settings import AgentSettings, SchedulerSettings, StoreSettings
from mesh.store import consul as consul_store
from mesh.store.consul import ConsulStore
from mesh.store.consul_http import Answer, Transport
from mesh.store.lease import KeptSession
from mesh.transactions import transactions
from mesh.view import View, decode_document, encode_document
from tests.fakes.runtime import FakeRuntime, Ground
from tests.parts.consul import ConsulServer

KEYS = Keys()
WARM_UP = 20.0
"""Seconds until agents and scheduler have read everything and rest."""
STARTS_IN = 0.2
"""Seconds from a plan to the report that a replica is ready."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process has used so far; `cpu` in seconds."""

    cpu: float
    requests: int
    bytes: int

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.cpu - other.cpu, self.requests - other.requests, self.bytes - other.bytes)


class CountingTransport(Transport):
    """The store's transport, whose answers are counted."""

    requests = 0
    bytes = 0

    async def _send(self, *arguments: Any, **more: Any) -> Answer:
        answer = await super()._send(*arguments, **more)
        CountingTransport.requests += 1
        CountingTransport.bytes += len(answer.body)
        return answer


# ── the processes that are measured ──────────────────────────────────────────────────────────


def measured(role: str, store: str, folder: Path, agents: int) -> None:
    """Runs as a process of its own; says what it has used whenever it is asked on its standard input."""
    vars(consul_store)["Transport"] = CountingTransport
    logging.basicConfig(level=logging.WARNING)
    threading.Thread(target=_answer_questions, daemon=True).start()
    work = _agents(store, folder, agents) if role == "agents" else _scheduler(store)
    try:
        uvloop.run(work)
    except KeyboardInterrupt:
        pass


def _answer_questions() -> None:
    for _ in sys.stdin:
        spent = time.process_time()
        print(json.dumps([spent, CountingTransport.requests, CountingTransport.bytes]), flush=True)


async def _scheduler(store: str) -> None:
    settings = SchedulerSettings(store=StoreSettings(address=store), name="bench")
    await Scheduler(ConsulStore(settings.store), KEYS, settings).run()


async def _agents(store: str, folder: Path, count: int) -> None:
    await asyncio.gather(*(_agent(store, folder, _name(number)) for number in range(count)))


async def _agent(store: str, folder: Path, node: str) -> None:
    client = ConsulStore(StoreSettings(address=store))
    entry = await client.get(KEYS.node_report(node))
    assert entry is not None
    runtime = FakeRuntime(
        _ground(decode_document(entry.value, NodeReport)), capacity=Capacity(cpu=16_000, memory=64 * 2**30)
    )
    settings = AgentSettings(node=node, store=StoreSettings(address=store), state=folder / node, vips="loopback",
                             labels={"zone": f"z{int(node[1:]) % 3}"}, reserved=Capacity())  # fmt: skip
    settings.state.mkdir()
    workers = Workers(settings.state / "workers", [])
    await workers.start()
    await Agent(settings, client, runtime, workers).run()


def _ground(report: NodeReport) -> Ground:
    """An engine that runs what the report says."""
    ground = Ground()
    for one in report.replicas:
        ground.instances[one.id] = Instance(one.id, one.service, one.slot, one.release, InstanceState.RUNNING,
                                            one.address, dict(one.ports), one.started)  # fmt: skip
        ground.outputs[one.id] = b""
    return ground


class Measured:
    """The other end of `measured`."""

    def __init__(self, role: str, store: str, folder: Path, agents: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.scale", "--role", role, "--store", store, "--folder", str(folder),
             "--agents", str(agents)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def cost(self) -> Cost:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("?\n")
        self._process.stdin.flush()
        return Cost(*json.loads(self._process.stdout.readline()))

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


# ── everybody else ───────────────────────────────────────────────────────────────────────────


class Fleet:
    """All nodes that have no agent of their own here: writes their reports, and does as their plans say."""

    def __init__(self, store: ConsulStore, view: View, agents: int) -> None:
        self._store = store
        self._reports = {name: seen.report for name, seen in view.nodes.items()}
        self._others = [name for name in sorted(view.nodes) if int(name[1:]) >= agents]
        self._wishes = view.wishes
        self._choose = random.Random(7)
        self._session: KeptSession | None = None
        self._locks = {name: asyncio.Lock() for name in self._others}
        self._tasks: set[asyncio.Task[None]] = set()

    async def settle_in(self, view: View) -> None:
        """Puts the whole cluster into the store."""
        self._session = await KeptSession.create(self._store, "fleet", 30.0)
        for name, wish in view.wishes.items():
            assert wish.spec is not None
            await self._store.put(KEYS.service(name), wish.spec.model_dump_json(exclude_unset=True).encode())
        plans = Outcome(services=dict(view.plans), nodes=dict(view.node_plans))
        for ops in transactions(plans, View(), KEYS):
            await self._store.txn(ops)
        for name in view.nodes:
            await self._write(name)
        self._spawn(self._obey())

    async def rest(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, name: str) -> None:
        assert self._session is not None
        value = encode_document(self._reports[name])
        if name in self._locks:
            result = await self._store.txn(report_ops(KEYS.node_report(name), value, self._session.id))
            assert result.ok, result.errors
        else:  # for its agent to find
            await self._store.put(KEYS.node_report(name), value)

    async def _obey(self) -> None:
        """Slow and steady: one look at all plans, then one per change of any."""
        async for change in self._store.watch(KEYS.planned_nodes):
            for key in change.changed:
                name = key.removeprefix(KEYS.planned_nodes)
                if name in self._locks and key in change.entries:
                    plan = decode_document(change.entries[key].value, NodePlan)
                    self._spawn(self._follow(name, plan.replicas))

    async def _follow(self, name: str, planned: list[Assignment]) -> None:
        async with self._locks[name]:
            known = {one.id: one for one in self._reports[name].replicas}
            wanted = [one for one in planned if one.want is not Want.KEEP]
            if {one.id for one in wanted if one.want is Want.RUN} == known.keys() == {one.id for one in planned}:
                return
            for state in (ReplicaState.STARTING, ReplicaState.READY):
                replicas = [_as_planned(one, known.get(one.id), state) for one in wanted]
                self._reports[name] = NodeReport(**{**_fields(self._reports[name]), "replicas": replicas})
                await self._write(name)
                await asyncio.sleep(STARTS_IN)

    async def flap(self) -> None:
        """One replica turns unready, or ready again."""
        name = self._choose.choice(self._others)
        async with self._locks[name]:
            replicas = list(self._reports[name].replicas)
            place = self._choose.randrange(len(replicas))
            one = replicas[place]
            state = ReplicaState.RUNNING if one.state is ReplicaState.READY else ReplicaState.READY
            replicas[place] = ReplicaReport(**{**_fields(one), "state": state, "since": time.time()})
            self._reports[name] = NodeReport(**{**_fields(self._reports[name]), "replicas": replicas})
            await self._write(name)

    async def scale(self, number: int, replicas: int) -> None:
        """One service gets one replica more, or loses it again."""
        name = f"s{number // 2 % len(self._wishes):03}"
        await self._store.put(KEYS.scale(name), json.dumps(replicas + 1 - number % 2).encode())


def _as_planned(one: Assignment, known: ReplicaReport | None, state: ReplicaState) -> ReplicaReport:
    if one.want is Want.STOP:
        state = ReplicaState.STOPPED
    elif known is not None and known.state in (ReplicaState.READY, ReplicaState.RUNNING):
        return known
    return ReplicaReport(id=one.id, service=one.service, slot=one.slot, release=one.release, state=state,
                         since=time.time(), address="10.0.0.1", ports={"http": 31000})  # fmt: skip


def _fields(struct: Any) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def _name(number: int) -> str:
    return f"n{number:03}"


# ── measuring ────────────────────────────────────────────────────────────────────────────────


@contextmanager
def consul(folder: Path) -> Iterator[str]:
    with ConsulServer(folder) as server:
        yield server.address


async def measure(given: argparse.Namespace, folder: Path, store_address: str) -> None:
    cluster = Cluster(given.nodes, given.services, given.replicas)
    cluster.apply_all()
    cluster.settle()
    store = ConsulStore(StoreSettings(address=store_address))
    fleet = Fleet(store, cluster.view, given.agents)
    await fleet.settle_in(cluster.view)
    sizes = [len(encode_document(seen.report)) for seen in cluster.view.nodes.values()]
    count = sum(len(seen.report.replicas) for seen in cluster.view.nodes.values())
    print(f"{given.nodes} nodes, {given.services} services, {count} replicas; "
          f"all reports {sum(sizes) / 2**20:.1f} MiB; {given.agents} agents live")  # fmt: skip
    processes = {role: Measured(role, store_address, folder, given.agents) for role in ("agents", "scheduler")}
    shares = {"agents": given.agents, "scheduler": 1}
    try:
        await asyncio.sleep(WARM_UP)
        print(f"{'':10} {'changes':27} {'requests/s':>10} {'KiB/s':>9} {'KiB/change':>10} "
              f"{'ms/change':>10} {'% of a core':>11}")  # fmt: skip
        idle = await _during(processes, _nothing, 0, given)
        _show("nothing", idle, shares, given, 0.0)
        _show("a replica's readiness", await _during(processes, lambda _: fleet.flap(), given.rate, given), shares,
              given, given.rate)  # fmt: skip
        await asyncio.sleep(2)
        scales = lambda number: fleet.scale(number, given.replicas)  # noqa: E731
        _show("a service's scale", await _during(processes, scales, given.scales, given), shares, given, given.scales)
    finally:
        for process in processes.values():
            process.stop()
        await fleet.rest()
        await store.close()


async def _nothing(_: int) -> None:
    """No change."""


async def _during(
    processes: dict[str, Measured], change: Any, rate: float, given: argparse.Namespace
) -> dict[str, Cost]:
    before = {role: process.cost() for role, process in processes.items()}
    began = time.monotonic()
    number = 0
    while time.monotonic() - began < given.seconds:
        if rate:
            await change(number)
            number += 1
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()) if rate else 0.5)
    await asyncio.sleep(0.5)
    return {role: process.cost() - before[role] for role, process in processes.items()}


def _show(what: str, costs: dict[str, Cost], shares: dict[str, int], given: argparse.Namespace, rate: float) -> None:
    for role, cost in costs.items():
        share = shares[role] * given.seconds
        each = (
            f"{cost.bytes / share / rate / 1024:10.1f} {1000 * cost.cpu / share / rate:10.2f}"
            if rate
            else f"{'':10} {'':10}"
        )
        label = f"{rate:g}/s {what}" if rate else what
        print(f"{role.removesuffix('s') if role == 'agents' else role:10} {label:27} {cost.requests / share:10.1f} "
              f"{cost.bytes / share / 1024:9.1f} {each} {100 * cost.cpu / share:11.2f}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=300)
    parser.add_argument("--services", type=int, default=500)
    parser.add_argument("--replicas", type=int, default=20)
    parser.add_argument("--agents", type=int, default=6, help="that live")
    parser.add_argument("--rate", type=float, default=10.0, help="reports a second")
    parser.add_argument("--scales", type=float, default=2.0, help="wishes a second")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--role", choices=["agents", "scheduler"], help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role:
        measured(given.role, given.store, given.folder, given.agents)
        return
    with tempfile.TemporaryDirectory() as folder, consul(Path(folder, "consul")) as address:
        asyncio.run(measure(given, Path(folder), address))


if __name__ == "__main__":
    main()
