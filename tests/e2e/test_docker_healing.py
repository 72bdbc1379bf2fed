"""Containers that end in ways their engine tells apart: each is replaced under a new id, and `mesh status` says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.e2e.harness import Split, eventually
from tests.parts.consul import ConsulServer
from tests.parts.images import tiny_image

pytestmark = [pytest.mark.slow, pytest.mark.docker, pytest.mark.consul, pytest.mark.root, pytest.mark.dig]

LIVES = "trap 'exit 0' TERM; while :; do sleep 0.1; done"


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    client = docker.from_env(version="auto").api
    yield client
    for container in client.containers(all=True, filters={"label": "mesh.node=n1"}):
        client.remove_container(container["Id"], force=True)
    client.close()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, engine: Any) -> Iterator[Split]:
    folder: Path = tmp_path_factory.mktemp("healing")
    with (
        ConsulServer(folder / "consul") as consul,
        Split(folder, consul.address, "--runtime", "docker") as split,
    ):
        split.start_scheduler("a")
        split.start_agent()
        eventually(lambda: split.cluster.dig("ns.cluster"), "the agent's DNS")
        yield split


def service(engine: Any, name: str, script: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "image": tiny_image(engine), "command": ["sh", "-c", script], "replicas": 1,
        "resources": {"cpu": "10m", "memory": "16Mi"}, "stop": {"drain": "100ms", "grace": "1s"},
        "restart": {"delay": "200ms", "max_delay": "1s"}, **more,
    }  # fmt: skip


def replaced(mesh: Split, name: str, before: str) -> bool:
    """Another runs in the same slot."""
    alive = [one for one in mesh.cluster.replicas(name) if one["state"] in ("running", "ready")]
    return [one["slot"] for one in alive] == [1] and alive[0]["id"] != before


def test_a_service_whose_container_exits_with_0_is_to_run_all_the_same(mesh: Split, engine: Any) -> None:
    mesh.cluster.apply(service(engine, "done", "sleep 1"))
    [before] = mesh.cluster.wait_ready("done", 1)
    eventually(lambda: replaced(mesh, "done", before), "a replacement")
    assert "exited with code 0" in mesh.cluster.mesh("events", "done")
    mesh.cluster.mesh("delete", "done", "--yes")


def test_a_container_that_the_kernel_kills_for_its_memory(mesh: Split, engine: Any) -> None:
    mesh.cluster.apply(service(engine, "greedy", "sleep 1; exec tail /dev/zero"))
    [before] = mesh.cluster.wait_ready("greedy", 1)
    eventually(lambda: replaced(mesh, "greedy", before), "a replacement")
    assert "memory" in mesh.cluster.mesh("events", "greedy")
    mesh.cluster.mesh("delete", "greedy", "--yes")


def test_a_replica_that_fails_its_liveness_probe(mesh: Split, engine: Any) -> None:
    alive = {"exec": ["test", "!", "-e", "/tmp/dead"], "interval": "200ms", "fall": 2}
    mesh.cluster.apply(service(engine, "dull", LIVES, health={"alive": alive}))
    [before] = mesh.cluster.wait_ready("dull", 1)
    [container] = engine.containers(filters={"label": f"mesh.id={before}"})
    engine.exec_start(engine.exec_create(container["Id"], ["touch", "/tmp/dead"])["Id"])
    eventually(lambda: replaced(mesh, "dull", before), "a replacement")


def test_a_release_that_only_crashes_is_taken_back_and_does_not_eat_the_cluster(mesh: Split, engine: Any) -> None:
    """It starts beside what serves, a few times at most, and what serves is never touched."""
    update = {"min_healthy": "2s", "healthy_deadline": "4s", "progress_deadline": "5s"}
    mesh.cluster.apply(service(engine, "sound", LIVES, update=update))
    before = mesh.cluster.wait_ready("sound", 1)
    mesh.cluster.apply(service(engine, "sound", "exit 3", update=update))
    eventually(lambda: "release 3 is in force" in mesh.cluster.mesh("events", "sound"), "a rollback", 60)
    assert mesh.cluster.wait_ready("sound", 1) == before
    made = engine.containers(all=True, filters={"label": "mesh.service=sound"})
    assert len(made) < 10
