"""Real containers, a real Consul, and each process on its own: what happens when any one of them goes."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.e2e.harness import APP, Load, Split, service
from tests.parts.consul import ConsulServer
from tests.parts.docker import PrivateEngine
from tests.parts.images import python_image, tiny_image
from tests.patience import eventually

pytestmark = [pytest.mark.slow, pytest.mark.docker, pytest.mark.consul, pytest.mark.root, pytest.mark.dig]


@pytest.fixture
def consul(tmp_path: Path) -> Iterator[ConsulServer]:
    with ConsulServer(tmp_path / "consul") as server:
        yield server


@pytest.fixture
def engine() -> Iterator[Any]:
    client = docker.from_env(version="auto").api
    yield client
    for container in client.containers(all=True, filters={"label": "mesh.node=n1"}):
        client.remove_container(container["Id"], force=True)
    client.close()


@pytest.fixture
def mesh(tmp_path: Path, consul: ConsulServer, engine: Any) -> Iterator[Split]:
    with Split(tmp_path, consul.address, "--runtime", "docker") as split:
        split.start_scheduler("a")
        split.start_agent()
        eventually(lambda: split.cluster.dig("ns.cluster"), "the agent's DNS")
        yield split


def contained(engine: Any, **more: Any) -> dict[str, Any]:
    """The test's small service in a container."""
    return service(
        image=python_image(engine),
        command=["python3", "/app/app.py"],
        mounts=[{"source": str(APP.parent), "path": "/app", "read_only": True}],
        **more,
    )


def containers(engine: Any) -> dict[str, str]:
    """Replica id → container id, of those that run."""
    listed = engine.containers(filters={"label": "mesh.node=n1"})
    return {container["Labels"]["mesh.id"]: container["Id"] for container in listed}


def test_an_operator_with_consul_s_own_tool(mesh: Split, consul: ConsulServer, engine: Any, tmp_path: Path) -> None:
    """`consul kv put` is all it takes; inside a container the name works unchanged."""
    spec = tmp_path / "web.json"
    spec.write_text(json.dumps(contained(engine)))
    subprocess.run(
        ["consul", "kv", "put", f"-http-addr={consul.address}", "mesh/desired/services/web", f"@{spec}"], check=True
    )
    ids = mesh.cluster.wait_ready("web", 3)
    with Load(mesh.cluster.address("web"), keep_alive=False) as load:
        eventually(lambda: load.total >= 60, "60 requests")
    assert load.failures == []
    assert {answer.split()[-1] for answer in load.answers} == set(ids)
    assert sorted(containers(engine)) == ids


def test_a_killed_container_is_replaced_and_nobody_notices(mesh: Split, engine: Any) -> None:
    mesh.cluster.apply(contained(engine))
    before = mesh.cluster.wait_ready("web", 3)
    with Load(mesh.cluster.address("web")) as load:
        eventually(lambda: load.total > 50, "load")
        engine.kill(containers(engine)[before[0]])
        after = eventually(
            lambda: ids if len(ids := mesh.cluster.ready("web")) == 3 and before[0] not in ids else None,
            "a replacement",
        )
    assert set(before) - set(after) == {before[0]}
    assert load.failures == []


def test_a_container_removed_behind_our_back_is_replaced(mesh: Split, engine: Any) -> None:
    mesh.cluster.apply(contained(engine, replicas=1))
    [before] = mesh.cluster.wait_ready("web", 1)
    engine.remove_container(containers(engine)[before], force=True)
    eventually(lambda: mesh.cluster.ready("web") not in ([], [before]), "a replacement")


def test_an_image_that_does_not_exist(mesh: Split, engine: Any) -> None:
    mesh.cluster.apply(contained(engine, replicas=2))
    before = mesh.cluster.wait_ready("web", 2)
    broken = {**contained(engine, replicas=2), "image": "no-such-image:9"}
    mesh.cluster.apply(broken)
    eventually(lambda: "no-such-image:9" in mesh.cluster.mesh("status", "web"), "the sentence")
    assert mesh.cluster.ready("web") == before
    assert mesh.cluster.get("web")[0] == 200


def test_an_agent_killed_with_9_adopts_its_containers(mesh: Split, engine: Any) -> None:
    mesh.cluster.apply(contained(engine))
    mesh.cluster.wait_ready("web", 3)
    before = containers(engine)
    assert mesh.agent
    with Load(mesh.cluster.address("web")) as load:
        mesh.agent.kill()
        mesh.start_agent()
        eventually(lambda: mesh.cluster.ready("web") == sorted(before), "the agent again")
        seen = load.total
        eventually(lambda: load.total > seen + 200, "more load")
    assert containers(engine) == before
    assert load.failures == []


def test_a_killed_leader_is_followed(mesh: Split, engine: Any) -> None:
    eventually(mesh.leader, "a leader")
    mesh.start_scheduler("b")
    mesh.cluster.apply(contained(engine, replicas=1))
    before = mesh.cluster.wait_ready("web", 1)
    assert mesh.leader() == "a"
    mesh.schedulers["a"].kill()
    mesh.cluster.mesh("scale", "web=2")
    after = mesh.cluster.wait_ready("web", 2, within=60)
    assert mesh.leader() == "b"
    assert set(before) < set(after)


def test_a_leader_that_slept_writes_nothing(mesh: Split, engine: Any) -> None:
    eventually(mesh.leader, "a leader")
    mesh.cluster.apply(contained(engine, replicas=1))
    mesh.cluster.wait_ready("web", 1)
    mesh.start_scheduler("b")
    mesh.schedulers["a"].send(signal.SIGSTOP)
    mesh.cluster.mesh("scale", "web=2")
    after = mesh.cluster.wait_ready("web", 2, within=60)
    mesh.schedulers["a"].send(signal.SIGCONT)
    mesh.cluster.mesh("scale", "web=3")
    assert set(after) < set(mesh.cluster.wait_ready("web", 3))
    assert len(containers(engine)) == 3


def test_consul_away_and_back(mesh: Split, consul: ConsulServer, engine: Any) -> None:
    """Everything keeps running and answering; what was asked for meanwhile happens afterwards."""
    mesh.cluster.apply(contained(engine))
    before = mesh.cluster.wait_ready("web", 3)
    running = containers(engine)
    with Load(mesh.cluster.address("web")) as load:
        consul.kill()
        assert consul.address.removeprefix("http://") in mesh.cluster.mesh("status", code=1)
        victim = before[0]
        engine.kill(running[victim])
        eventually(lambda: victim not in json.dumps(mesh.cluster.table()), "the dead one to leave the Table")
        assert mesh.cluster.dig("web.svc.cluster")
        seen = load.total
        eventually(lambda: load.total > seen + 100, "more load")
        consul.start()
        after = eventually(
            lambda: ids if len(ids := mesh.cluster.ready("web")) == 3 and victim not in ids else None, "healing", 90
        )
    assert load.failures == []
    assert set(before) - set(after) == {victim}


def test_consul_unreachable_at_start(tmp_path: Path, engine: Any) -> None:
    """Agent and scheduler wait, say for what, and begin when it is there."""
    consul = ConsulServer(tmp_path / "consul")
    with Split(tmp_path, consul.address, "--runtime", "docker") as split:
        scheduler, agent = split.start_scheduler("a"), split.start_agent()
        eventually(lambda: consul.address in scheduler.output(), "the scheduler's word")
        eventually(lambda: consul.address in agent.output(), "the agent's word")
        assert "Traceback" not in scheduler.output() + agent.output()
        with consul:
            split.cluster.apply(contained(engine, replicas=1))
            split.cluster.wait_ready("web", 1, within=60)


def test_the_engine_restarts_under_the_agent(tmp_path: Path, consul: ConsulServer) -> None:
    (tmp_path / "e").mkdir()
    with (
        PrivateEngine(tmp_path / "e") as private,
        Split(tmp_path, consul.address, "--runtime", "docker", "--docker-host", private.host) as split,
    ):
        client = private.client()
        split.start_scheduler("a")
        agent = split.start_agent()
        split.cluster.apply({"name": "idle", "image": tiny_image(client), "command": ["sleep", "86400"], "replicas": 2})
        before = split.cluster.wait_ready("idle", 2)
        private.kill()
        eventually(lambda: "engine" in json.dumps(split.cluster.json("nodes")), "the node's problem to be shown")
        assert split.cluster.ready("idle") == before
        private.start()
        eventually(lambda: "engine" not in json.dumps(split.cluster.json("nodes")[0]["problems"]), "the engine back")
        assert split.cluster.ready("idle") == before
        client.close()
        client = private.client()
        [victim] = client.containers(filters={"label": f"mesh.id={before[0]}"})
        client.kill(victim["Id"])
        eventually(lambda: len(ids := split.cluster.ready("idle")) == 2 and before[0] not in ids, "a replacement")
        client.close()
        assert agent.running
