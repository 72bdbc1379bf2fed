"""The real leader and its autoscaler, with a store in memory and agents that answer as they are told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from aiohttp import web

from mesh.autoscaling import live
from mesh.dataplane.load import Load, LoadReport, ServiceReport, Total
from mesh.dataplane.waiting import WaitingReport
from mesh.keys import Keys
from mesh.leader import Scheduler
from mesh.model import (
    Capacity,
    NodePlan,
    NodeReport,
    ReplicaReport,
    ReplicaState,
    ScaleState,
    ServicePlan,
    Want,
)
from mesh.settings import SchedulerSettings, StoreSettings
from mesh.view import encode_document
from tests.fakes.store import FakeStore
from tests.patience import until

KEYS = Keys()
IN_FLIGHT = {"max": 6, "metrics": [{"in_flight": 10}]}


@dataclass
class Agent:
    """One node: runs at once all that it is told to, and carries the load that it is given."""

    store: FakeStore
    name: str = "n1"
    admin: str = ""
    in_flight: dict[str, float] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)
    replicas_state: ReplicaState = ReplicaState.READY
    silent: bool = False
    asked: list[str] = field(default_factory=list)
    _busy: dict[str, float] = field(default_factory=dict)
    _session: str = ""
    _looked: float = field(default_factory=time.monotonic)
    _bell: asyncio.Event = field(default_factory=asyncio.Event)

    async def stats(self, request: web.Request) -> web.Response:
        self.asked.append(request.query_string)
        if self.silent:
            raise web.HTTPServiceUnavailable
        now = time.monotonic()
        services = {}
        for service, in_flight in self.in_flight.items():
            self._busy[service] = self._busy.get(service, 0.0) + in_flight * (now - self._looked)
            total = Total(requests=int(self._busy[service]), busy=self._busy[service])
            port = Load(in_flight=in_flight, in_flight_now=int(in_flight), total=total)
            services[service] = ServiceReport(ports={"http": port})
        self._looked = now
        report = LoadReport(node=self.name, time=now, window=10.0, services=services)
        return web.Response(body=msgspec.json.encode(report))

    async def held(self, request: web.Request) -> web.Response:
        self.asked.append("waiting")
        if "since" in request.query or not self.waiting:
            self._bell.clear()
            await self._bell.wait()
        return web.Response(body=msgspec.json.encode(WaitingReport(len(self.waiting), self.waiting)))

    def hold(self, **waiting: int) -> None:
        """Requests wait for services that sleep."""
        self.waiting = waiting
        self._bell.set()

    async def report(self) -> None:
        entry = await self.store.get(KEYS.node_plan(self.name))
        plan = msgspec.json.decode(entry.value, type=NodePlan) if entry else NodePlan(node=self.name)
        replicas = [
            ReplicaReport(id=one.id, service=one.service, slot=one.slot, release=one.release,
                          state=self.replicas_state if one.want is Want.RUN else ReplicaState.STOPPED, started=1.0)
            for one in plan.replicas
        ]  # fmt: skip
        document = NodeReport(node=self.name, address="127.0.0.1", admin=self.admin, runtime="docker",
                              capacity=Capacity(cpu=10**6, memory=2**40), replicas=replicas)  # fmt: skip
        self._session = self._session or await self.store.create_session(f"mesh-agent {self.name}", 60.0)
        assert await self.store.acquire(KEYS.node_report(self.name), encode_document(document), self._session)

    async def run(self) -> None:
        async for _ in self.store.watch(KEYS.planned_nodes):
            await self.report()


@asynccontextmanager
async def cluster(count: int = 1) -> AsyncIterator[tuple[FakeStore, list[Agent]]]:
    store = FakeStore()
    agents, runners, tasks = [Agent(store, f"n{number}") for number in range(1, count + 1)], [], []
    for agent in agents:
        app = web.Application()
        app.router.add_get("/v1/stats", agent.stats)
        app.router.add_get("/v1/waiting", agent.held)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        agent.admin = f"http://127.0.0.1:{runner.addresses[0][1]}"
        await agent.report()
        runners.append(runner)
        tasks.append(asyncio.create_task(agent.run()))
    try:
        yield store, agents
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(runner.cleanup() for runner in runners))


@asynccontextmanager
async def leading(store: FakeStore, name: str = "s1") -> AsyncIterator[Scheduler]:
    one = Scheduler(store, KEYS, SchedulerSettings(store=StoreSettings(), name=name))
    task = asyncio.create_task(one.run("http://127.0.0.1:7071"))
    try:
        yield one
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def wish(store: FakeStore, name: str = "web", **fields: Any) -> None:
    ports = {"http": {"port": 80, "protocol": "http"}}
    spec = {"image": "web:1", "ports": ports, "update": {"min_healthy": "1ms"}, **fields}
    await store.put(KEYS.service(name), json.dumps(spec).encode())


async def plan_of(store: FakeStore, name: str = "web") -> ServicePlan:
    entry = await store.get(KEYS.service_plan(name))
    return msgspec.json.decode(entry.value, type=ServicePlan) if entry else ServicePlan(service=name, desired=-1)


async def state_of(store: FakeStore, name: str = "web") -> ScaleState | None:
    entry = await store.get(KEYS.scale_state(name))
    return msgspec.json.decode(entry.value, type=ScaleState) if entry else None


async def desired(store: FakeStore, count: int, name: str = "web") -> None:
    async def reached() -> bool:
        return (await plan_of(store, name)).desired == count

    await until(reached)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "TICK", 0.5)


async def test_the_count_follows_the_load_up_to_max_and_every_change_has_its_sentence() -> None:
    async with cluster() as (store, (agent,)), leading(store) as leader:
        await wish(store, scale=IN_FLIGHT)
        await desired(store, 1)
        agent.in_flight["web"] = 500.0
        await desired(store, 6)
        state = await state_of(store)
        assert state
        assert state.replicas == 6
        events = [event.text for event in (await plan_of(store)).events if event.cause == "autoscaler"]
        assert events[-1].endswith(state.changes[-1].why) or "placed" in events[-1]
        assert any(text.startswith("scaled from ") and "in flight" in text for text in events)

        async def told() -> bool:
            now = leader.explain("web")
            return now is not None and (now.current, now.metrics[0].metric) == (6, "in_flight")

        await until(told)
        assert leader.explain("other") is None


async def test_nobody_is_asked_while_nothing_follows_its_load() -> None:
    async with cluster() as (store, (agent,)), leading(store):
        await wish(store)
        await desired(store, 1)
        assert agent.asked == []
        await wish(store, scale=IN_FLIGHT)

        async def asked() -> bool:
            return len(agent.asked) > 1

        await until(asked)
        assert agent.asked[:2] == ["", "active=1"]


async def test_a_service_sleeps_and_what_waits_wakes_it_with_one_decision() -> None:
    async with cluster() as (store, (agent,)), leading(store):
        await wish(store, scale={**IN_FLIGHT, "min": 0, "to_zero_after": "1s"})
        await desired(store, 0)
        assert (await plan_of(store)).asleep
        looks = len(agent.asked)
        await until(lambda: "waiting" in agent.asked)
        assert "active=1" not in agent.asked[looks : agent.asked.index("waiting")], "not only from the next look on"
        agent.hold(web=9)
        await desired(store, 1)
        assert (await plan_of(store)).asleep, "until a replica is ready, who comes is held"
        state = await state_of(store)
        assert state
        assert [(change.current, change.replicas) for change in state.changes] == [(1, 0), (0, 1)]


async def test_an_operators_count_wins_and_is_where_the_autoscaler_goes_on() -> None:
    async with cluster() as (store, (agent,)), leading(store):
        await wish(store, scale=IN_FLIGHT)
        agent.in_flight["web"] = 35.0
        await desired(store, 4)
        await store.put(KEYS.scale("web"), b"2")
        await desired(store, 2)
        agent.in_flight["web"] = 500.0

        async def noted() -> bool:
            state = await state_of(store)
            return state is not None and state.replicas == 2

        await until(noted)
        agent.in_flight["web"] = 20.0
        await asyncio.sleep(1.0)
        assert (await plan_of(store)).desired == 2
        await store.delete(KEYS.scale("web"))
        agent.in_flight["web"] = 500.0
        await desired(store, 6)


async def test_what_an_operator_holds_at_zero_stays_there_whoever_waits() -> None:
    async with cluster() as (store, (agent,)), leading(store):
        await wish(store, scale={**IN_FLIGHT, "min": 0, "to_zero_after": "1s"})
        await store.put(KEYS.scale("web"), b"0")
        await desired(store, 0)
        agent.in_flight["web"] = 50.0
        agent.hold(web=9)
        await asyncio.sleep(1.5)
        plan = await plan_of(store)
        assert (plan.desired, plan.asleep) == (0, False)


async def test_scale_taken_out_of_the_spec_or_the_service_deleted_leaves_no_document() -> None:
    async with cluster() as (store, (agent,)), leading(store):
        for name in ("web", "api"):
            await wish(store, name, scale=IN_FLIGHT)
            agent.in_flight[name] = 500.0
        await desired(store, 6)
        await desired(store, 6, "api")
        await wish(store, "web")
        await store.delete(KEYS.service("api"))
        await desired(store, 1)

        async def gone() -> bool:
            return await state_of(store) is None and await state_of(store, "api") is None

        await until(gone)


async def test_a_broken_spec_leaves_the_autoscaler_at_work_with_the_last_good_one() -> None:
    async with cluster() as (store, (agent,)), leading(store) as leader:
        await wish(store, scale=IN_FLIGHT)
        await desired(store, 1)
        await until(lambda: (told := leader.explain("web")) and told.metrics, "it is followed")
        await wish(store, scale={"max": 0})

        async def refused() -> bool:
            return bool((await plan_of(store)).errors)

        await until(refused)
        agent.in_flight["web"] = 500.0
        await desired(store, 6)


async def test_a_new_leader_takes_the_count_over_and_scales_nothing_down_at_first() -> None:
    async with cluster() as (store, (agent,)):
        async with leading(store):
            await wish(store, scale=IN_FLIGHT)
            agent.in_flight["web"] = 500.0
            await desired(store, 6)
        agent.in_flight["web"] = 0.0
        async with leading(store, "s2") as heir:

            async def explained() -> Any:
                told = heir.explain("web")
                return told if told and told.metrics else None

            await until(explained)
            await asyncio.sleep(2.0)
            told = heir.explain("web")
            assert told
            assert (told.replicas, told.limit) == (6, "first window")
            assert (await plan_of(store)).desired == 6


async def test_a_node_that_is_silent_keeps_the_others_load_and_forbids_less() -> None:
    async with cluster(2) as (store, (first, second)), leading(store) as leader:
        await wish(store, scale=IN_FLIGHT)
        second.silent = True
        first.in_flight["web"] = 500.0
        await desired(store, 6)
        told = leader.explain("web")
        assert told
        assert "n2" in told.metrics[0].fault
        assert sum(sample.value for family in leader.metrics() for sample in family.samples
                   if family.name == "mesh_scheduler_autoscale_unanswered") > 0  # fmt: skip


async def test_a_leader_whose_lock_is_gone_changes_no_count() -> None:
    async with cluster() as (store, (agent,)), leading(store) as leader:
        await wish(store, scale=IN_FLIGHT)
        await desired(store, 1)

        async def measured() -> Any:
            return leader.explain("web")

        await until(measured)
        entry = await store.get(KEYS.leader)
        assert entry
        assert msgspec.json.decode(entry.value)["admin"] == "http://127.0.0.1:7071"
        assert entry.session
        other = await store.create_session("other", 60.0)
        await store.destroy_session(entry.session)
        assert await store.acquire(KEYS.leader, b"{}", other)
        agent.in_flight["web"] = 500.0
        await asyncio.sleep(2.0)
        assert await state_of(store) is None
        assert not leader.leads
