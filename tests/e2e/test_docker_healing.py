"""Containers that end in ways their engine tells apart: each is replaced under a new id, and `mesh status` says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.e2e.harness import Split
from tests.parts.consul import ConsulServer
from tests.parts.images import tiny_image
from tests.patience import eventually

pytestmark = [pytest.mark.slow, pytest.mark.docker, pytest.mark.consul, pytest.mark.root, pytest.mark.dig]

TOLD = "/tmp/told"
LIVES = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
UNTIL_TOLD = f"while [ ! -e {TOLD} ]; do sleep 0.1; done"
UPDATE = {"min_healthy": "2s", "healthy_deadline": "4s", "progress_deadline": "5s"}


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


def tell(engine: Any, id: str) -> None:
    """A replica to do what its test is about; the one that follows it has not been told."""
    [container] = engine.containers(filters={"label": f"mesh.id={id}"})
    engine.exec_start(engine.exec_create(container["Id"], ["touch", TOLD])["Id"])


def replaced(mesh: Split, name: str, before: str) -> bool:
    """Another runs in the same slot."""
    alive = [one for one in mesh.cluster.replicas(name) if one["state"] in ("running", "ready")]
    return [one["slot"] for one in alive] == [1] and alive[0]["id"] != before


@pytest.fixture(scope="module")
def before(mesh: Split, engine: Any) -> dict[str, str]:
    """The first replica of each service, before it comes to its end: all at once, for each takes its time."""
    alive = {"exec": ["test", "!", "-e", TOLD], "interval": "200ms", "fall": 2}
    mesh.cluster.apply(
        service(engine, "done", UNTIL_TOLD), service(engine, "greedy", f"{UNTIL_TOLD}; exec tail /dev/zero"),
        service(engine, "dull", LIVES, health={"alive": alive}), service(engine, "sound", LIVES, update=UPDATE),
    )  # fmt: skip
    first = {name: mesh.cluster.wait_ready(name, 1)[0] for name in ("done", "greedy", "dull", "sound")}
    mesh.cluster.apply(service(engine, "sound", "exit 3", update=UPDATE))
    for name in ("done", "greedy", "dull"):
        tell(engine, first[name])
    return first


def test_a_service_whose_container_exits_with_0_is_to_run_all_the_same(mesh: Split, before: dict[str, str]) -> None:
    eventually(lambda: replaced(mesh, "done", before["done"]), "a replacement")
    assert "exited with code 0" in mesh.cluster.mesh("events", "done")


def test_a_container_that_the_kernel_kills_for_its_memory(mesh: Split, before: dict[str, str]) -> None:
    eventually(lambda: replaced(mesh, "greedy", before["greedy"]), "a replacement")
    assert "memory" in mesh.cluster.mesh("events", "greedy")


def test_a_replica_that_fails_its_liveness_probe(mesh: Split, before: dict[str, str]) -> None:
    eventually(lambda: replaced(mesh, "dull", before["dull"]), "a replacement")
    assert "alive probe failed" in mesh.cluster.mesh("events", "dull")


def test_a_release_that_only_crashes_is_taken_back_and_does_not_eat_the_cluster(
    mesh: Split, engine: Any, before: dict[str, str]
) -> None:
    """It starts beside what serves, a few times at most, and what serves is never touched."""
    eventually(lambda: "release 3 is in force" in mesh.cluster.mesh("events", "sound"), "a rollback", 60)
    assert mesh.cluster.wait_ready("sound", 1) == [before["sound"]]
    made = engine.containers(all=True, filters={"label": "mesh.service=sound"})
    assert len(made) < 10
