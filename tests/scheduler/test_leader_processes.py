"""Two real schedulers on a real store: one is killed, told to stop, put to sleep; only who leads writes."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from mesh.keys import Keys
from mesh.model import Capacity, NodePlan, NodeReport, Want
from mesh.settings import EmbeddedStoreSettings, StoreSettings
from mesh.store.consul import ConsulStore
from mesh.store.embedded import EmbeddedStore
from mesh.view import encode_document
from tests.parts.consul import ConsulServer
from tests.patience import until

KEYS = Keys()
TTL = 1.0
DEADLINE = 30.0


class Cluster:
    """A store with a node in it, and schedulers in processes of their own."""

    def __init__(self, address: str) -> None:
        self.store = ConsulStore(StoreSettings(address=address))
        self._address = address
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    async def prepare(self) -> None:
        report = NodeReport(
            node="n1", address="127.0.0.1", runtime="docker", capacity=Capacity(cpu=10**6, memory=2**40)
        )
        session = await self.store.create_session("mesh-agent n1", 60.0)
        assert await self.store.acquire(KEYS.node_report("n1"), encode_document(report), session)

    async def start(self, name: str, ttl: float = TTL) -> None:
        self._processes[name] = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.scheduler.scheduler_main", self._address, name, str(ttl),
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip

    def signal(self, name: str, what: signal.Signals) -> None:
        os.kill(self._processes[name].pid, what)

    async def ended(self, name: str) -> int:
        return await self._processes[name].wait()

    async def close(self) -> None:
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()
                await process.wait()
        await self.store.close()

    async def leader(self) -> str:
        entry = await self.store.get(KEYS.leader)
        return json.loads(entry.value)["name"] if entry and entry.session else ""

    async def wish(self, replicas: int) -> None:
        await self.store.put(KEYS.service("web"), json.dumps({"image": "web:1", "replicas": replicas}).encode())

    async def has(self, replicas: int) -> bool:
        """So many replicas are wanted, each in a slot of its own."""
        entry = await self.store.get(KEYS.node_plan("n1"))
        plan = msgspec.json.decode(entry.value, type=NodePlan) if entry else NodePlan(node="n1")
        slots = [one.slot for one in plan.replicas if one.want is Want.RUN]
        assert len(slots) == len(set(slots)), "a slot is planned twice"
        return len(slots) == replicas

    async def leads(self, name: str) -> bool:
        return await self.leader() == name


@contextlib.asynccontextmanager
async def on(address: str) -> AsyncIterator[Cluster]:
    cluster = Cluster(address)
    try:
        await cluster.prepare()
        yield cluster
    finally:
        await cluster.close()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    server = EmbeddedStore(EmbeddedStoreSettings(tmp_path, "127.0.0.1:0"))
    await server.start()
    async with on(server.address) as found:
        yield found
    await server.close()


async def both(cluster: Cluster) -> None:
    """`a` leads and `b` waits."""
    await cluster.start("a")
    await until(lambda: cluster.leads("a"))
    await cluster.start("b")
    await cluster.wish(2)
    await until(lambda: cluster.has(2))


async def test_a_killed_leader_is_followed_by_the_other(cluster: Cluster) -> None:
    await both(cluster)
    cluster.signal("a", signal.SIGKILL)
    await until(lambda: cluster.leads("b"))
    await cluster.wish(3)
    await until(lambda: cluster.has(3))


async def test_a_leader_that_is_told_to_stop_gives_the_lead_back(cluster: Cluster) -> None:
    await both(cluster)
    cluster.signal("a", signal.SIGTERM)
    assert await cluster.ended("a") == 0
    assert await cluster.leader() != "a"
    await until(lambda: cluster.leads("b"))
    await cluster.wish(1)
    await until(lambda: cluster.has(1))


async def test_a_leader_that_slept_writes_nothing_when_it_wakes(cluster: Cluster) -> None:
    await both(cluster)
    cluster.signal("a", signal.SIGSTOP)
    await cluster.wish(5)  # waits in its sockets: it will see this first when it wakes
    await until(lambda: cluster.leads("b"))
    await until(lambda: cluster.has(5))
    cluster.signal("a", signal.SIGCONT)
    await cluster.wish(6)
    await until(lambda: cluster.has(6))
    assert await cluster.leader() == "b"
    cluster.signal("b", signal.SIGTERM)
    await until(lambda: cluster.leads("a"))  # it is well again, and knows that it must ask
    await cluster.wish(7)
    await until(lambda: cluster.has(7))


@pytest.mark.consul
async def test_on_a_real_consul_plans_are_written_in_fenced_transactions(tmp_path: Path) -> None:
    with ConsulServer(tmp_path) as server:
        async with on(server.address) as cluster:
            await cluster.start("a", ttl=10.0)
            await cluster.wish(40)
            await until(lambda: cluster.has(40))
            entry = await cluster.store.get(KEYS.leader)
            assert entry is not None
            assert entry.session is not None
            await cluster.store.destroy_session(entry.session)
            await until(lambda: cluster.leads("a"))
            await cluster.wish(41)
            await until(lambda: cluster.has(41))
