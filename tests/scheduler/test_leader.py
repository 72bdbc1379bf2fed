"""The scheduler's shell against a store in memory: the lead, the fence, conflicts, a store that is away."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest

from mesh.keys import Keys
from mesh.leader import Scheduler
from mesh.model import Capacity, NodePlan, NodeReport, ServicePlan
from mesh.scheduler.plan import Outcome
from mesh.settings import SchedulerSettings, StoreSettings
from mesh.store import MAX_TXN_OPS, lease
from mesh.store.marks import mark_of
from mesh.transactions import MAX_TXN_BYTES, transactions
from mesh.view import View, encode_document
from tests.fakes.store import FakeStore
from tests.patience import until

KEYS = Keys()


def scheduler(store: FakeStore, name: str = "s1", ttl: float = 10.0) -> Scheduler:
    return Scheduler(store, KEYS, SchedulerSettings(store=StoreSettings(), name=name, session_ttl=ttl))


@contextlib.asynccontextmanager
async def running(one: Scheduler) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(one.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def add_node(store: FakeStore, name: str = "n1") -> str:
    """A node that is held by its agent's session."""
    report = NodeReport(node=name, address="127.0.0.1", runtime="docker", capacity=Capacity(cpu=4000, memory=2**33))
    session = await store.create_session(f"mesh-agent {name}", 10.0)
    assert await store.acquire(KEYS.node_report(name), encode_document(report), session)
    return session


async def wish(store: FakeStore, name: str = "web", **fields: object) -> None:
    await store.put(KEYS.service(name), json.dumps({"image": f"{name}:1", **fields}).encode())


async def plan_of(store: FakeStore, name: str = "web") -> ServicePlan | None:
    entry = await store.get(KEYS.service_plan(name))
    return msgspec.json.decode(entry.value, type=ServicePlan) if entry else None


async def node_plan(store: FakeStore, name: str = "n1") -> NodePlan | None:
    entry = await store.get(KEYS.node_plan(name))
    return msgspec.json.decode(entry.value, type=NodePlan) if entry else None


async def replicas_on(store: FakeStore, name: str = "n1") -> int:
    plan = await node_plan(store, name)
    return len(plan.replicas) if plan else 0


def has_replicas(store: FakeStore, count: int, node: str = "n1") -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return await replicas_on(store, node) == count

    return check


async def test_a_wish_becomes_a_plan() -> None:
    store = FakeStore()
    await add_node(store)
    async with running(scheduler(store)) as _:
        await wish(store, replicas=3)
        await until(has_replicas(store, 3))
        plan = await plan_of(store)
        assert plan is not None
        assert (plan.desired, plan.vip, plan.releases[0].number) == (3, "10.96.0.1", 1)
        await wish(store, replicas=1)
        await until(lambda: _desires(store, 1))


async def _desires(store: FakeStore, count: int) -> bool:
    plan = await plan_of(store)
    return plan is not None and plan.desired == count


async def test_nothing_is_written_when_nothing_changes() -> None:
    store = FakeStore()
    await add_node(store)
    await wish(store, replicas=2)
    one = scheduler(store)
    async with running(one):
        await until(has_replicas(store, 2))
        await until(lambda: one.status().leads)
        before = store.writes
        await store.put(f"{KEYS.desired}configs/x", b"1")  # wakes it
        looks = one.metrics()
        await until(lambda: one.metrics() != looks)
        assert store.writes == before + 1


async def test_one_leads_and_the_other_takes_over_at_once_when_it_resigns() -> None:
    store = FakeStore()
    await add_node(store)
    first, second = scheduler(store, "s1"), scheduler(store, "s2")
    async with running(second):
        await until(lambda: second.leads)
        async with running(first):
            await wish(store, replicas=1)
            await until(has_replicas(store, 1))
            assert not first.leads
    async with running(first):
        await until(lambda: first.leads, within=10)  # a session that is not released lasts for 20 s
        await wish(store, replicas=2)
        await until(has_replicas(store, 2))


async def test_a_leader_whose_session_ended_leads_no_more_and_another_does() -> None:
    store = FakeStore()
    await add_node(store)
    first, second = scheduler(store, "s1"), scheduler(store, "s2")
    async with running(first):
        await until(lambda: first.leads)
        async with running(second):
            entry = await store.get(KEYS.leader)
            assert entry is not None
            assert entry.session is not None
            assert json.loads(entry.value)["name"] == "s1"
            await store.destroy_session(entry.session)
            await until(lambda: first.leads != second.leads)
            await wish(store, replicas=2)
            await until(has_replicas(store, 2))


async def test_the_store_is_away_at_the_start_and_later() -> None:
    store = FakeStore()
    one = scheduler(store)
    with store.away():
        task = asyncio.create_task(one.run())
        await asyncio.sleep(0)
    await add_node(store)
    await wish(store, replicas=1)
    await until(has_replicas(store, 1))
    with store.away():
        await asyncio.sleep(0.05)
    await wish(store, replicas=2)
    await until(has_replicas(store, 2))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_plan_that_somebody_edited_is_read_again_before_it_is_written() -> None:
    store = FakeStore()
    await add_node(store)
    await wish(store, replicas=1)
    one = scheduler(store)
    async with running(one):
        await until(has_replicas(store, 1))
        plan = await plan_of(store)
        assert plan is not None
        await store.put(KEYS.service_plan("web"), encode_document(msgspec.structs.replace(plan, vip="10.96.9.9")))
        await wish(store, replicas=2)
        await until(has_replicas(store, 2))
        after = await plan_of(store)
        assert after is not None
        assert after.vip == "10.96.9.9"
        assert _value(one, "mesh_scheduler_conflicts") >= 1


def _value(one: Scheduler, name: str) -> float:
    return next(family.samples[0].value for family in one.metrics() if family.name == name)


async def test_a_leader_that_slept_cannot_write() -> None:
    """The lock is taken from a leader that has not noticed: its transaction is refused as a whole."""
    store = FakeStore()
    session = await lease.KeptSession.create(store, "sleeper", 10.0)
    assert await store.acquire(KEYS.leader, b"{}", session.id)
    lock = lease.Lock(store, KEYS.leader, session)
    await store.destroy_session(session.id)
    outcome = Outcome(nodes={"n1": NodePlan(node="n1")})
    for ops in transactions(outcome, View(), KEYS):
        result = await store.txn([lock.fence(), *ops])
        assert not result.ok
    assert await node_plan(store) is None
    await lock.release()


async def test_a_mistake_of_ours_gives_the_lead_to_whoever_fares_better(monkeypatch: pytest.MonkeyPatch) -> None:
    store = FakeStore()
    await add_node(store)
    await wish(store, replicas=1)
    first, second = scheduler(store, "s1"), scheduler(store, "s2")
    monkeypatch.setattr(first, "_clock", None)
    async with running(first):
        await until(lambda: _value(first, "mesh_scheduler_terms") == 1)
        async with running(second):
            await until(has_replicas(store, 1))
            assert second.leads


async def test_a_plan_of_a_newer_version_is_left_alone() -> None:
    store = FakeStore()
    await add_node(store)
    newer = json.dumps({"format": 99, "service": "web"}).encode()
    await store.put(KEYS.service_plan("web"), newer)
    await wish(store, "web", replicas=2)
    await wish(store, "other", replicas=1)
    one = scheduler(store)
    async with running(one):
        await until(has_replicas(store, 1))
        assert any("newer" in problem for problem in one.status().problems)
    entry = await store.get(KEYS.service_plan("web"))
    assert entry is not None
    assert entry.value == newer


async def test_a_broken_wish_says_so_in_the_plan() -> None:
    store = FakeStore()
    await store.put(KEYS.service("web"), b"{not json")
    async with running(scheduler(store)):

        async def told() -> bool:
            plan = await plan_of(store)
            return plan is not None and "not JSON" in plan.errors[0]

        await until(told)


def test_many_writes_are_split_into_transactions_that_the_store_takes() -> None:
    big = ServicePlan(service="big", errors=["x" * (MAX_TXN_BYTES // 2)])
    outcome = Outcome(
        services={f"s{number}": ServicePlan(service=f"s{number}") for number in range(100)} | {"t": big, "u": big},
        nodes={"n1": NodePlan(node="n1")},
    )
    batches = list(transactions(outcome, View(), KEYS))
    assert all(len(batch) < MAX_TXN_OPS for batch in batches)
    assert all(sum(len(op.value) for op in batch) <= MAX_TXN_BYTES for batch in batches)
    keys = [op.key for batch in batches for op in batch if ".marks/" not in op.key]
    assert len(keys) == 103
    marks = {op.key for batch in batches for op in batch} - set(keys)
    assert marks == {mark_of(key) for key in keys[:-1]}, "what everybody watches is marked"
    assert keys[-1] == KEYS.node_plan("n1"), "a node's plan comes after the services that it names"


async def test_the_metrics_have_one_name_each() -> None:
    one = scheduler(FakeStore())
    names = [family.name for family in one.metrics()]
    assert len(names) == len(set(names))
    assert all(name.startswith("mesh_scheduler_") for name in names)
