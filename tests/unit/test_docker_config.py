"""What we ask of an engine and what we read out of its answers, without one."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.model import Assignment
from mesh.runtime import InstanceState, Launch
from mesh.runtime import docker_config as config
from mesh.spec.service import parse_spec

MARKS = {"mesh.id": "web-1-aaaa", "mesh.service": "web", "mesh.slot": "1", "mesh.release": "2",
         "mesh.ports": "http=8080/tcp dns=53/udp"}  # fmt: skip
LISTED = {
    "Id": "0123456789abcdef", "Labels": MARKS, "State": "running", "Created": 1700000000,
    "Ports": [{"IP": "10.0.0.1", "PrivatePort": 8080, "PublicPort": 32768, "Type": "tcp"},
              {"PrivatePort": 53, "Type": "udp"}],
    "HostConfig": {"NetworkMode": "default"},
    "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.2"}}},
}  # fmt: skip


def body(published: bool = False, **spec: object) -> dict[str, object]:
    parsed = parse_spec({"name": "web", "image": "web:1", **spec})
    launch = Launch(Assignment(id="web-1-aaaa", service="web", slot=1, release=2), parsed, {"PORT_HTTP": "mine"})
    host: dict[str, object] = config.container(launch, node="n1", root="mesh", published=published, address="10.0.0.1")
    return host


PORTS = {"http": {"port": 80, "target": 8080}, "db": {"port": 5432, "host_port": 5433}}


def bindings(published: bool) -> object:
    host = body(published, ports=PORTS)["HostConfig"]
    assert isinstance(host, dict)
    return host["PortBindings"]


def test_only_static_ports_are_published_where_containers_are_reached_directly() -> None:
    assert bindings(published=False) == {"5432/tcp": [{"HostIp": "10.0.0.1", "HostPort": "5433"}]}


def test_all_ports_are_published_where_they_are_reached_at_the_node() -> None:
    assert bindings(published=True) == {
        "8080/tcp": [{"HostIp": "10.0.0.1", "HostPort": ""}],
        "5432/tcp": [{"HostIp": "10.0.0.1", "HostPort": "5433"}],
    }


def test_the_images_command_stands_unless_the_spec_has_one() -> None:
    assert "Cmd" not in body()
    assert body(command=["web", "--fast"])["Cmd"] == ["web", "--fast"]


def test_memory_is_limited_to_what_is_reserved_unless_said_otherwise() -> None:
    for spec, limit in (({}, 64), ({"resources": {"memory": "32Mi"}}, 32), ({"limits": {"memory": "1Gi"}}, 1024)):
        host = body(**spec)["HostConfig"]  # type: ignore[arg-type]
        assert isinstance(host, dict)
        assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (limit * 2**20, limit * 2**20, 0)


def test_what_the_spec_sets_in_the_environment_wins() -> None:
    assert body(ports=PORTS)["Env"] == ["PORT_HTTP=mine", "PORT_DB=5432"]


def test_a_listed_container_is_reached_directly_or_at_the_node() -> None:
    direct = config.listed(LISTED, published=False, address="10.0.0.1")
    assert (direct.address, direct.ports) == ("172.17.0.2", {"http": 8080, "dns": 53})
    published = config.listed(LISTED, published=True, address="10.0.0.1")
    assert (published.address, published.ports) == ("10.0.0.1", {"http": 32768})
    assert (direct.id, direct.slot, direct.state, direct.handle) == (
        "web-1-aaaa", 1, InstanceState.RUNNING, "0123456789ab",
    )  # fmt: skip


def test_the_slot_of_a_global_service_is_its_node() -> None:
    entry = {**LISTED, "Labels": {**MARKS, "mesh.slot": "n1"}}
    assert config.listed(entry, published=False, address="").slot == "n1"


@pytest.mark.parametrize(
    ("state", "meant"),
    [("created", "created"), ("paused", "running"), ("exited", "exited"), ("dead", "exited"), ("removing", "exited")],
)
def test_states(state: str, meant: str) -> None:
    assert config.listed({**LISTED, "State": state}, published=False, address="").state == meant


@pytest.mark.parametrize(
    "said",
    [
        "driver failed programming external connectivity on endpoint mesh-x (1f): Bind for 0.0.0.0:5432 failed: "
        "port is already allocated",
        "driver failed programming external connectivity on endpoint mesh-x (1f): Error starting userland proxy: "
        "listen tcp4 127.0.0.1:5432: bind: address already in use",
    ],
)
def test_a_taken_port_is_named(said: str) -> None:
    assert config.why_not_started(said, "n1") == "port 5432 of node n1 is already in use"


def test_other_reasons_stay_as_the_engine_says_them() -> None:
    assert config.why_not_started("no space left on device", "n1") == "no space left on device"


def test_a_pull_is_told_by_layers() -> None:
    progress = config.PullProgress("web:1")
    steps: list[dict[str, Any]] = [
        {"status": "Pulling from library/web", "id": "1"},
        {"status": "Pulling fs layer", "id": "aa"},
        {"status": "Already exists", "id": "bb"},
        {"status": "Downloading", "id": "aa", "progressDetail": {"current": 1, "total": 2}},
        {"status": "Pull complete", "id": "aa"},
        {"status": "Digest: sha256:…"},
    ]
    assert [sentence for step in steps if (sentence := progress.observe(step))] == [
        "pulling image web:1: 0 of 1 layers",
        "pulling image web:1: 1 of 2 layers",
        "pulling image web:1: 2 of 2 layers",
    ]


def test_the_gateway_is_the_subnets_first_address_unless_named() -> None:
    assert config.gateway({"Subnet": "172.17.0.0/16"}) == "172.17.0.1"
    assert config.gateway({"Subnet": "10.88.1.0/24", "Gateway": "10.88.1.254"}) == "10.88.1.254"


def test_a_replicas_address_is_that_in_its_own_network() -> None:
    both = {"bridge": {"IPAddress": "172.17.0.2"}, "shop": {"IPAddress": "172.20.0.2"}}
    entry = {**LISTED, "HostConfig": {"NetworkMode": "shop"}, "NetworkSettings": {"Networks": both}}
    assert config.listed(entry, published=False, address="10.0.0.1").address == "172.20.0.2"


def test_why_a_container_could_not_join_its_network() -> None:
    sentence = config.why_not_started("network shop not found", "n1")
    assert sentence == "there is no network shop on node n1: `docker network create shop` there"
