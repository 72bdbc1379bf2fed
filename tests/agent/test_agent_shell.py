"""The agent around its heart: a store, a runtime and a data plane in memory, real time, real order of things."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mesh.agent.agent import Agent
from mesh.dataplane.follower import Follower
from mesh.dataplane.frames import Hello
from mesh.dataplane.load import PortLoad
from mesh.dataplane.workers import Workers
from mesh.metrics import Family
from mesh.model import Assignment, NodePlan, NodeReport, PublishedPort, ReplicaReport, ServicePlan, Want
from mesh.runtime import File, InstanceState
from mesh.settings import AgentSettings, StoreSettings
from mesh.store.lease import Held
from mesh.table import Table, TableDelta
from mesh.view import decode_document, encode_document
from tests.fakes.runtime import FakeRuntime, Ground, Program
from tests.fakes.store import FakeStore
from tests.patience import until

WEB: dict[str, Any] = {
    "name": "web", "image": "web", "ports": {"http": {"port": 80}}, "stop": {"drain": "100ms", "grace": "1s"},
}  # fmt: skip


class World:
    """One node and what surrounds it; agents come and go."""

    def __init__(self, folder: Path) -> None:
        self.store = FakeStore()
        self.ground = Ground()
        self.runtime = FakeRuntime(self.ground)
        self.settings = AgentSettings(
            node="n1", store=StoreSettings(), state=folder, dns_listen=("127.0.0.1:5399",), vips="loopback"
        )
        self.report = NodeReport(node="", address="")
        self.answers_probes = False
        self._watching = asyncio.create_task(self._watch())

    async def _answer_probes(self) -> None:
        self.answers_probes = True

    async def _watch(self) -> None:
        async for change in self.store.watch("mesh/observed/nodes/n1"):
            if entry := change.entries.get("mesh/observed/nodes/n1"):
                self.report = decode_document(entry.value, NodeReport)

    @contextlib.asynccontextmanager
    async def agent(self, settings: AgentSettings | None = None) -> AsyncIterator[Agent]:
        """An agent for the block's time; its end is like that of a killed process: nothing is given back."""
        settings = settings or self.settings
        workers = Workers(settings.state / "workers", [])
        agent = Agent(settings, self.store, self.runtime, workers, answer_probes=self._answer_probes)
        await workers.start()
        running = asyncio.create_task(agent.run())
        try:
            yield agent
            if running.done():
                await running
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError, Held):
                await running
            await agent.close()
            await workers.close()

    async def plan(self, *ids: str, want: Want = Want.RUN, spec: dict[str, Any] = WEB, release: int = 1) -> None:
        replicas = [Assignment(id=id, service="web", slot=number, release=release, want=want)
                    for number, id in enumerate(ids, 1)]  # fmt: skip
        service = ServicePlan(service="web", vip="10.96.0.1", desired=1, ports={"http": PublishedPort(port=80)})
        await self.store.put("mesh/planned/services/web", encode_document(service))
        node = NodePlan(node="n1", replicas=replicas, specs={f"web@{release}": spec})
        await self.store.put("mesh/planned/nodes/n1", encode_document(node))

    def replica(self, id: str) -> ReplicaReport | None:
        return next((replica for replica in self.report.replicas if replica.id == id), None)

    def state(self, id: str) -> str:
        replica = self.replica(id)
        return replica.state if replica else ""

    async def until_state(self, id: str, state: str) -> ReplicaReport:
        await until(lambda: self.state(id) == state, f"{id} is {state}")
        replica = self.replica(id)
        assert replica
        return replica

    async def close(self) -> None:
        self._watching.cancel()
        await self.store.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


async def test_what_is_planned_runs_and_is_reported(world: World) -> None:
    async with world.agent():
        await world.plan("web-1-aaaa")
        ready = await world.until_state("web-1-aaaa", "ready")
        assert ready.address == "127.0.0.1"
        assert ready.ports.keys() == {"http"}
        assert world.report.runtime == "fake"
        assert world.report.capacity.cpu == 4000


async def test_a_replica_is_told_where_it_is(world: World) -> None:
    async with world.agent():
        await world.store.put("mesh/desired/secrets/token", b"hush")
        await world.store.put("mesh/desired/configs/mode", b"fast")
        env = {"TOKEN": {"secret": "token"}, "MODE": {"config": "mode"}, "GREETING": "hello"}
        await world.plan("web-1-aaaa", spec={**WEB, "env": env})
        await world.until_state("web-1-aaaa", "ready")
        assert world.ground.launches["web-1-aaaa"].env == {
            "MESH_NODE": "n1", "MESH_SERVICE": "web", "MESH_SLOT": "1", "MESH_REPLICA": "web-1-aaaa",
            "MESH_DNS": "127.0.0.1:5399", "TOKEN": "hush", "MODE": "fast", "GREETING": "hello",
        }  # fmt: skip


async def test_files_are_made_of_secrets_and_contents(world: World) -> None:
    async with world.agent():
        await world.store.put("mesh/desired/secrets/key", b"\xff\x00bytes")
        mounts = [
            {"secret": "key", "path": "/run/key", "mode": "0400"},
            {"content": "a = b", "path": "/etc/a.conf"},
            {"source": "/etc/ssl", "path": "/etc/ssl"},
        ]
        await world.plan("web-1-aaaa", spec={**WEB, "mounts": mounts})
        await world.until_state("web-1-aaaa", "ready")
        files = world.ground.launches["web-1-aaaa"].files
        assert files == [File("/run/key", b"\xff\x00bytes", 0o400), File("/etc/a.conf", b"a = b", 0o444)]


async def test_a_missing_secret_of_a_file_fails_with_its_key(world: World) -> None:
    async with world.agent():
        await world.plan("web-1-aaaa", spec={**WEB, "mounts": [{"secret": "key", "path": "/run/key"}]})
        failed = await world.until_state("web-1-aaaa", "failed")
        assert "mounts.0: there is no secret mesh/desired/secrets/key" in failed.message


async def test_a_missing_secret_fails_with_its_key(world: World) -> None:
    async with world.agent():
        await world.plan("web-1-aaaa", spec={**WEB, "env": {"TOKEN": {"secret": "token"}}})
        failed = await world.until_state("web-1-aaaa", "failed")
        assert "env.TOKEN: there is no secret mesh/desired/secrets/token" in failed.message
        assert world.ground.instances == {}


async def test_twenty_replicas_cost_few_writes(world: World) -> None:
    ids = [f"web-{number}-aaaa" for number in range(1, 21)]
    async with world.agent():
        await until(lambda: world.report.node, "the node is claimed")
        before = world.store.writes
        await world.plan(*ids)
        await until(lambda: all(world.state(id) == "ready" for id in ids), "all are ready")
        assert world.store.writes - before < 20


async def test_a_death_is_reported_with_its_last_words(world: World) -> None:
    world.ground.programs["web"] = Program(says=lambda env: b"starting\ncannot open /data\n")
    async with world.agent():
        await world.plan("web-1-aaaa")
        await world.until_state("web-1-aaaa", "ready")
        world.runtime.end("web-1-aaaa", 3)
        failed = await world.until_state("web-1-aaaa", "failed")
        assert failed.message == "exited with code 3: starting | cannot open /data"
        assert failed.exit is not None
        assert failed.exit.code == 3
        assert "web-1-aaaa" in world.ground.instances, "kept for its logs until the plan drops it"
        await world.plan()
        await until(lambda: not world.ground.instances, "its instance is removed")
        await until(lambda: not world.report.replicas, "it is forgotten")


class Plane:
    """A worker in this process, which notes each Table it is given; it may be slow."""

    def __init__(self, folder: Path, delay: float = 0.0, kind: str = "dns") -> None:
        self.tables: list[Table] = []
        self.secrets: dict[str, str] = {}
        self._delay = delay
        hello = Hello(kind, 1, 1, "", "")
        self.task = asyncio.create_task(Follower(folder / "workers/feed.sock", hello, self).run())

    def connected(self) -> None: ...

    def give_secrets(self, secrets: Mapping[str, str]) -> None:
        self.secrets = dict(secrets)

    async def begin(self) -> None: ...

    def each_second(self) -> None: ...

    def problems(self) -> list[str]:
        return []

    def metrics(self) -> list[Family]:
        return []

    def loads(self) -> list[PortLoad]:
        return []

    async def update(self, table: Table, delta: TableDelta | None) -> None:
        await asyncio.sleep(self._delay)
        self.tables.append(table)

    def endpoints(self) -> list[str]:
        service = self.tables[-1].services.get("web") if self.tables else None
        return [endpoint.id for endpoint in service.endpoints] if service else []


async def test_proxies_alone_are_given_what_routes_name(world: World) -> None:
    """Beside the Table, which only names them; anew when one changes; nothing when no route needs them."""
    route = {
        "listen": "127.0.0.1:8443", "tls": {"cert": {"secret": "shop-cert"}, "key": {"secret": "shop-key"}},
        "rules": [{"to": [{"service": "web"}]}],
    }  # fmt: skip
    for name in ("shop-cert", "shop-key", "other"):
        await world.store.put(f"mesh/desired/secrets/{name}", f"-{name}-".encode())
    async with world.agent():
        proxy, dns = Plane(world.settings.state, kind="proxy"), Plane(world.settings.state)
        await world.store.put("mesh/desired/routes/shop", json.dumps(route).encode())
        await until(lambda: proxy.secrets == {"shop-cert": "-shop-cert-", "shop-key": "-shop-key-"}, "both")
        await world.store.put("mesh/desired/secrets/shop-cert", b"new")
        await until(lambda: proxy.secrets.get("shop-cert") == "new", "the new one")
        await until(lambda: "shop" in dns.tables[-1].routes, "the other kind has the Table")
        assert dns.secrets == {}
        assert b"-shop-key-" not in msgspec.json.encode(proxy.tables[-1])
        late = Plane(world.settings.state, kind="proxy")
        await until(lambda: late.secrets.get("shop-cert") == "new", "a worker that comes later")
        await world.store.delete("mesh/desired/routes/shop")
        await until(lambda: proxy.secrets == {}, "none any more")
        for plane in (proxy, dns, late):
            plane.task.cancel()


async def test_withdrawn_then_drained_then_signalled(world: World) -> None:
    async with world.agent():
        plane = Plane(world.settings.state, delay=0.05)
        await world.plan("web-1-aaaa")
        await until(lambda: plane.endpoints() == ["web-1-aaaa"], "it is in the Table")
        in_table: list[bool] = []
        waited: list[float] = []
        signal_and_wait = world.runtime.signal_and_wait

        async def noted(id: str, signal: str, grace: float) -> None:
            in_table.append(id in plane.endpoints())
            replica = world.replica(id)
            waited.append(time.time() - (replica.since if replica else 0.0))
            assert world.state(id) == "draining"
            await signal_and_wait(id, signal, grace)

        world.runtime.signal_and_wait = noted  # type: ignore[method-assign]
        await world.plan("web-1-aaaa", want=Want.STOP)
        await world.until_state("web-1-aaaa", "stopped")
        assert in_table == [False]
        assert waited[0] >= 0.1, "the drain time"
        plane.task.cancel()


async def test_a_death_leaves_the_table_while_the_store_is_away(world: World) -> None:
    async with world.agent():
        plane = Plane(world.settings.state)
        await world.plan("web-1-aaaa", "web-2-aaaa")
        await until(lambda: len(plane.endpoints()) == 2, "both are in the Table")
        await world.until_state("web-1-aaaa", "ready")
        with world.store.away():
            world.runtime.end("web-1-aaaa")
            await until(lambda: plane.endpoints() == ["web-2-aaaa"], "the dead one has left")
            assert world.state("web-1-aaaa") == "ready", "the store cannot know"
        await world.until_state("web-1-aaaa", "failed")
        plane.task.cancel()


async def test_the_store_is_away_at_the_start(world: World) -> None:
    with world.store.away():
        async with world.agent() as agent:
            await until(lambda: agent.waiting_for(), "it says what it waits for")
            assert agent.waiting_for() == ["waiting for the store at fake"]
            assert not world.answers_probes, "it is no sign of life: what runs here may have ended with its host"
    await world.plan("web-1-aaaa")
    async with world.agent():
        await world.until_state("web-1-aaaa", "ready")
        assert world.answers_probes


async def test_a_singleton_ends_where_its_agent_begins_without_a_store(world: World) -> None:
    """Nobody knows for how long it has been away, and whether another runs in its stead by now."""
    sole = {**WEB, "singleton": True}
    async with world.agent():
        await world.plan("web-1-aaaa", spec=sole)
        await world.until_state("web-1-aaaa", "ready")
        await world.plan("web-1-aaaa", "web-2-aaaa", spec=WEB, release=2)
        await world.until_state("web-2-aaaa", "ready")
    with world.store.away():
        async with world.agent(replace(world.settings, session_ttl=0.2)):
            instances = world.ground.instances
            await until(lambda: instances["web-1-aaaa"].state is InstanceState.EXITED, "its end")
            assert instances["web-2-aaaa"].state is InstanceState.RUNNING


async def test_a_lost_session_is_replaced(world: World) -> None:
    async with world.agent():
        await world.plan("web-1-aaaa")
        await world.until_state("web-1-aaaa", "ready")
        entry = await world.store.get("mesh/observed/nodes/n1")
        assert entry
        assert entry.session
        world.store.end_session(entry.session)

        async def held_again() -> bool:
            now = await world.store.get("mesh/observed/nodes/n1")
            return bool(now and now.session and now.session != entry.session)

        await until(held_again, "the node is held again")
        world.runtime.end("web-1-aaaa")
        await world.until_state("web-1-aaaa", "failed")


async def test_a_killed_agent_is_followed_by_one_that_adopts(world: World) -> None:
    async with world.agent():
        await world.plan("web-1-aaaa")
        before = await world.until_state("web-1-aaaa", "ready")
    launched = dict(world.ground.launches)
    async with world.agent() as agent:
        await until(lambda: agent.replicas(), "it knows its replicas")
        await world.plan("web-1-aaaa", "web-2-aaaa")
        await world.until_state("web-2-aaaa", "ready")
        assert world.replica("web-1-aaaa") == before, "as if nothing had happened"
        assert world.ground.launches["web-1-aaaa"] is launched["web-1-aaaa"]
        assert world.runtime.signals == []


async def test_another_agent_of_the_same_name_is_refused(world: World, tmp_path: Path) -> None:
    async with world.agent():
        await until(lambda: world.report.node, "the first has the node")
        elsewhere = replace(world.settings, state=tmp_path / "other")
        second = Agent(elsewhere, world.store, world.runtime, Workers(elsewhere.state / "workers", []))
        with pytest.raises(Held, match="another machine uses the same name"):
            await second.run()
        await second.close()
        await world.plan("web-1-aaaa")
        await world.until_state("web-1-aaaa", "ready")


@pytest.mark.parametrize(
    ("plan", "problem"),
    [
        (b'{"format": 99, "node": "n1", "replicas": []}', "written by a newer mesh (format 99"),
        (b"{not json", "not a NodePlan"),
    ],
)
async def test_a_plan_that_cannot_be_read_changes_nothing(world: World, plan: bytes, problem: str) -> None:
    async with world.agent():
        await world.plan("web-1-aaaa")
        await world.until_state("web-1-aaaa", "ready")
        await world.store.put("mesh/planned/nodes/n1", plan)
        await until(lambda: any(problem in text for text in world.report.problems), "the problem is told")
        assert world.state("web-1-aaaa") == "ready"
        assert world.runtime.signals == []
        await world.plan()
        await until(lambda: not world.report.replicas and not world.report.problems, "it goes on with a good one")


async def test_a_plan_that_is_gone_changes_nothing(world: World) -> None:
    async with world.agent():
        await world.plan("web-1-aaaa")
        await world.until_state("web-1-aaaa", "ready")
        await world.store.delete("mesh/planned/nodes/n1")
        await world.plan("web-1-aaaa", "web-2-aaaa")
        await world.until_state("web-2-aaaa", "ready")
        assert world.runtime.signals == []


async def test_an_engine_that_is_away_loses_nothing(world: World) -> None:
    async with world.agent():
        await world.plan("web-1-aaaa")
        await world.until_state("web-1-aaaa", "ready")
        world.runtime.available = False
        world.ground.listeners[0].add("")
        await until(lambda: world.report.problems, "the problem is told")
        assert world.state("web-1-aaaa") == "ready"
        await world.plan("web-1-aaaa", "web-2-aaaa")
        await until(lambda: world.state("web-2-aaaa"), "the new one is seen")
        world.runtime.available = True
        await world.until_state("web-2-aaaa", "ready")
        await until(lambda: not world.report.problems, "the problem is over")


async def test_metrics_say_how_the_node_is(world: World) -> None:
    async with world.agent() as agent:
        await world.plan("web-1-aaaa")
        await world.until_state("web-1-aaaa", "ready")
        families = {family.name: family for family in await agent.metrics()}
        assert [(sample.labels, sample.value) for sample in families["mesh_replicas"].samples] == [
            ({"state": "ready"}, 1)
        ]


async def test_a_start_under_way_does_not_outlive_the_removal_of_everything(world: World) -> None:
    world.runtime.start_delay = 0.2
    async with world.agent() as agent:
        await world.plan("web-1-aaaa")
        await world.until_state("web-1-aaaa", "starting")
        await agent.remove_all(1.0)
        assert world.ground.instances == {}
        await world.plan("web-1-aaaa", "web-2-aaaa")
        await until(lambda: world.replica("web-2-aaaa"), "the new plan is seen")
        assert world.ground.instances == {}, "nothing is begun any more"
