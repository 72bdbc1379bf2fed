"""Asked by others' programs: kdig, delv, and the resolvers of glibc and musl inside real containers."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from mesh.dns.server import DnsServer
from tests.dns_server.zones import guestbook
from tests.parts.images import python_image

FOREVER = "sleep 300"


async def output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    out, _ = await process.communicate()
    return out.decode()


@pytest.fixture
async def at() -> AsyncIterator[tuple[str, str, str]]:
    """What tells a client where the server is."""
    server = DnsServer(["127.0.0.1:0"], forward=False)
    await server.start()
    await server.update(guestbook(), None)
    host, port = server.addresses[0]
    yield f"@{host}", "-p", str(port)
    await server.close()


@pytest.mark.kdig
async def test_kdig(at: tuple[str, str, str]) -> None:
    assert await output("kdig", *at, "+short", "web.svc.cluster") == "10.96.0.7\n"
    assert await output("kdig", *at, "+short", "+tcp", "+keepopen", "web.svc.cluster", "N2.node.cluster") == (
        "10.96.0.7\n10.77.0.12\n"
    )
    assert await output("kdig", *at, "+short", "-x", "10.96.0.7") == "web.svc.cluster.\n"
    assert "status: NXDOMAIN" in await output("kdig", *at, "nothing.svc.cluster")
    full = await output(
        "kdig", *at, "+cookie", "+padding", "+dnssec", "+subnet=192.0.2.0/24", "+nsid", "web.svc.cluster"
    )
    assert "status: NOERROR" in full
    assert "COOKIE: " in full
    assert "WARNING" not in full
    assert "status: NOERROR" in await output("kdig", *at, "+tcp", "+cookie", "_http._tcp.web.svc.cluster", "SRV")


@pytest.mark.dig
async def test_delv(at: tuple[str, str, str]) -> None:
    """A validating resolver's client: sets DO and CD, and wants negative answers that it can cache."""
    assert "web.svc.cluster.\t5\tIN\tA\t10.96.0.7" in await output("delv", "-i", *at, "web.svc.cluster")
    assert "ncache nxdomain" in await output("delv", "-i", *at, "nothing.svc.cluster")
    assert "ncache nxrrset" in await output("delv", "-i", *at, "web.svc.cluster", "AAAA")


# ── Inside containers ────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture(scope="module")
def network(engine: Any) -> Iterator[Any]:
    """A network of the user's: its containers ask the engine's own resolver, and that one asks us."""
    network = engine.networks.create(f"mesh-test-{uuid.uuid4().hex[:8]}")
    network.reload()
    yield network
    network.remove()


@pytest.fixture(scope="module")
def musl_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("musl") / "addresses"
    subprocess.run(["musl-gcc", "-static", "-o", program, Path(__file__).with_name("addresses.c")], check=True)
    return program


class Container:
    """A container whose resolver is ours; `run` gives the lines that a command in it prints."""

    def __init__(self, engine: Any, musl_program: Path, **options: Any) -> None:
        getent = shutil.which("getent")
        volumes = {str(musl_program): {"bind": "/bin/addresses", "mode": "ro"},
                   str(getent): {"bind": "/bin/getent", "mode": "ro"}}  # fmt: skip
        self._container = engine.containers.run(
            python_image(engine.api), FOREVER, volumes=volumes, detach=True, init=True,
            dns_search=["nowhere.cluster", "svc.cluster"], dns_opt=["ndots:2", "timeout:2"], **options,
        )  # fmt: skip

    async def run(self, *command: str) -> list[str]:
        _, out = await asyncio.to_thread(self._container.exec_run, list(command))
        return [line.split()[0] for line in out.decode().splitlines() if line.strip()]

    def remove(self) -> None:
        self._container.remove(force=True)


@pytest.mark.docker
@pytest.mark.musl
@pytest.mark.root
@pytest.mark.parametrize("way", ["host network", "user network"])
async def test_glibc_and_musl_in_containers(way: str, engine: Any, network: Any, musl_program: Path) -> None:
    if way == "host network":
        address = f"127.{random.randrange(1, 254)}.{random.randrange(1, 254)}.{random.randrange(1, 254)}"
        where = {"network_mode": "host"}
    else:
        address = network.attrs["IPAM"]["Config"][0]["Gateway"]
        where = {"network": network.name}
    server = DnsServer([f"{address}:53"], forward=False)
    await server.start()
    await server.update(guestbook(), None)
    container = Container(engine, musl_program, dns=[address], **where)
    try:
        glibc, musl = ("getent", "ahostsv4"), ("addresses",)
        for name, expected in (
            ("web", "10.96.0.7"),  # by the search list: nowhere.cluster is NXDOMAIN, svc.cluster has it
            ("web.svc.cluster", "10.96.0.7"),
            ("ready.lost.svc.cluster.", "10.4.0.1"),
            ("n1.node.cluster", "10.77.0.11"),  # dots enough to be asked for as it is
            ("3.web", "10.77.0.13"),  # with fewer than ndots dots
        ):
            assert set(await container.run(*glibc, name)) == {expected}
            assert set(await container.run(*musl, name)) == {expected}
        assert await container.run("getent", "hosts", "web") == ["10.96.0.7"]
        assert await container.run("getent", "hosts", "10.96.0.7") == ["10.96.0.7"]
        peers = {"10.2.0.1", "10.2.0.2"}
        assert set(await container.run(*glibc, "peers")) == set(await container.run(*musl, "peers")) == peers
        assert await container.run(*glibc, "nothing") == []
        assert await container.run(*musl, "nothing.svc.cluster.") == ["Name"]  # … does not resolve
        assert await container.run(*musl, "asleep") == ["Name"]  # it exists, with no address
    finally:
        container.remove()
        await server.close()
