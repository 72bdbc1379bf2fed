"""What belongs to a place: volumes, which stay with their node, and networks, which may be missing there."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.e2e.harness import Split, dev
from tests.parts.consul import ConsulServer
from tests.parts.images import tiny_image
from tests.patience import eventually

pytestmark = [pytest.mark.slow, pytest.mark.docker, pytest.mark.consul, pytest.mark.root, pytest.mark.dig]

DIARY = """
echo "$MESH_REPLICA" >> /data/diary
mkdir -p /www && cp /data/diary /www/index.html
exec httpd -f -p 8080 -h /www
"""
"""Writes into its volume who it is, and serves who has been there."""


@pytest.fixture
def engine() -> Iterator[Any]:
    client = docker.from_env(version="auto").api
    yield client
    client.close()


@pytest.fixture
def consul(tmp_path: Path) -> Iterator[ConsulServer]:
    with ConsulServer(tmp_path / "consul") as server:
        yield server


@pytest.fixture
def name() -> str:
    return f"t{uuid.uuid4().hex[:8]}"


def spec(engine: Any, name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "image": tiny_image(engine),
        "command": ["sh", "-c", "mkdir -p /data; " + DIARY],
        "resources": {"cpu": "10m", "memory": "16Mi"},
        "ports": {"http": {"port": 80, "target": 8080, "protocol": "http"}},
        "stop": {"drain": "100ms", "grace": "1s"},
        **more,
    }


def remove_containers(engine: Any, name: str) -> None:
    for left in engine.containers(all=True, filters={"label": f"mesh.service={name}"}):
        engine.remove_container(left["Id"], force=True)


def container(engine: Any, id: str) -> str:
    [found] = engine.containers(filters={"label": f"mesh.id={id}"})
    return str(found["Id"])


def test_a_replaced_replica_finds_its_data(tmp_path: Path, engine: Any, name: str, consul: ConsulServer) -> None:
    """After `docker rm -f`, under a new release, and where the agent was away; and the plan says where the data is."""
    written: list[str] = []
    volume = {"data": {"path": "/data"}}
    with Split(tmp_path, consul.address, "--runtime", "docker") as split:
        cluster = split.cluster

        def reads_all() -> str:
            """The id of the newest, once it serves what all before it have written."""
            [id] = eventually(lambda: [one for one in cluster.ready(name) if one not in written], "a new replica")
            written.append(id)
            eventually(lambda: cluster.get(name) == (200, "\n".join(written) + "\n"), "the data of all")
            return str(id)

        split.start_scheduler("a")
        agent = split.start_agent()
        try:
            cluster.apply(spec(engine, name, volumes=volume))
            engine.remove_container(container(engine, reads_all()), force=True)
            reads_all()
            cluster.apply(spec(engine, name, volumes=volume, env={"COLOUR": "blue"}))
            newest = reads_all()
            agent.kill()
            engine.remove_container(container(engine, newest), force=True)
            split.start_agent()
            reads_all()
            plan = subprocess.run(
                ["consul", "kv", "get", f"-http-addr={consul.address}", f"mesh/planned/services/{name}"],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert json.loads(plan.stdout)["pins"] == {"1": "n1"}
        finally:
            remove_containers(engine, name)
            engine.remove_volume(f"mesh-{name}-data", force=True)


def test_a_missing_network_is_said_and_found_once_it_is_there(tmp_path: Path, engine: Any, name: str) -> None:
    with dev(tmp_path, runtime="docker") as (cluster, _):
        cluster.apply(spec(engine, name, network=name, restart={"delay": "200ms", "max_delay": "1s"}))
        eventually(lambda: f"`docker network create {name}`" in cluster.mesh("status", name), "what to do")
        engine.create_network(name)
        try:
            [id] = cluster.wait_ready(name, 1)
            details = engine.inspect_container(container(engine, id))
            eventually(lambda: cluster.get(name) == (200, f"{id}\n"), "an answer")
            address = details["NetworkSettings"]["Networks"][name]["IPAddress"]
            assert cluster.dig(f"ready.{name}.svc.cluster") == [address]
        finally:
            remove_containers(engine, name)
            engine.remove_network(name)
