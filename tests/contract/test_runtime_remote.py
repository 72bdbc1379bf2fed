"""The Docker runtime on an engine that is elsewhere, over TLS and over ssh: the contract's main cases, and faults."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from mesh.runtime import InstanceState, RuntimeUnavailable
from mesh.runtime.docker import DockerRuntime
from mesh.runtime.docker_engine import docker_available
from tests.contract.runtimes import SLEEP, Lab, lab
from tests.contract.test_runtime import (
    test_a_started_replica_runs_and_is_listed,
    test_after_the_event_of_an_end_the_listing_says_so,
    test_exec_gives_output_and_exit_code,
    test_facts_name_the_runtime_and_what_the_node_offers,
    test_files_that_were_made_for_it_are_there_when_it_starts,
    test_following_logs_ends_with_the_replica,
    test_removing_ends_what_runs_and_may_be_repeated,
    test_the_program_may_end_in_its_own_way_at_the_signal,
)
from tests.contract.test_runtime_docker import HTTPD, answers
from tests.parts.images import tiny_image
from tests.parts.remote import RemoteHost, issue
from tests.patience import until

__all__ = [
    "test_a_started_replica_runs_and_is_listed",
    "test_after_the_event_of_an_end_the_listing_says_so",
    "test_exec_gives_output_and_exit_code",
    "test_facts_name_the_runtime_and_what_the_node_offers",
    "test_files_that_were_made_for_it_are_there_when_it_starts",
    "test_following_logs_ends_with_the_replica",
    "test_removing_ends_what_runs_and_may_be_repeated",
    "test_the_program_may_end_in_its_own_way_at_the_signal",
]

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.openssl, pytest.mark.sshd]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteHost]:
    with RemoteHost(tmp_path_factory.mktemp("remote")) as remote, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_TLS_VERIFY", "1")
        patch.setenv("DOCKER_CERT_PATH", str(remote.certificates))
        patch.setenv("PATH", remote.path)
        yield remote


@pytest.fixture(scope="module")
def image(host: RemoteHost) -> str:
    client = host.client()
    try:
        return tiny_image(client)
    finally:
        client.close()


@pytest.fixture(params=["tls", "ssh"])
async def here(request: pytest.FixtureRequest, host: RemoteHost, image: str, tmp_path: Path) -> AsyncIterator[Lab]:
    way = {"tls": host.tls, "ssh": host.ssh}[request.param]
    async with lab("docker", tmp_path, image, docker_host=way, publish="published", address=host.address) as made:
        yield made


async def test_a_published_port_is_reached_at_the_engines_host(here: Lab, host: RemoteHost) -> None:
    started = await here.start(HTTPD, ports={"http": {"port": 80, "target": 8080}})
    assert started.address == host.address

    async def served() -> bool:
        return await answers(started.address, started.ports["http"])

    await until(served)


# ── ssh ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def over_ssh(host: RemoteHost, image: str, tmp_path: Path) -> AsyncIterator[Lab]:
    options = {"publish": "published", "address": host.address}
    async with lab("docker", tmp_path, image, docker_host=host.ssh, **options) as made:
        yield made


async def test_everything_goes_over_one_ssh_which_ends_with_the_runtime(over_ssh: Lab, host: RemoteHost) -> None:
    started = await over_ssh.start(SLEEP)
    async with aclosing(over_ssh.runtime.events()) as events:
        await anext(events)
        await over_ssh.runtime.exec(started.id, ["true"])
        [process] = host.ssh_clients()
    await over_ssh.runtime.close()
    assert process not in host.ssh_clients()


async def test_a_lost_ssh_connection_is_made_again(
    over_ssh: Lab, host: RemoteHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.runtime.docker_events.PING_INTERVAL", 0.1)
    started = await over_ssh.start(SLEEP)
    async with aclosing(over_ssh.runtime.events()) as events:
        assert await anext(events) == ""
        host.end_ssh_connections()
        while await anext(events) != "":
            pass

    async def found() -> bool:
        try:
            instance = await over_ssh.find(started.id)
        except RuntimeUnavailable:
            return False
        return instance is not None and instance.state is InstanceState.RUNNING

    await until(found)


async def why_not(docker_host: str) -> str:
    return str(await docker_available(docker_host))


async def test_why_ssh_does_not_reach_an_engine(host: RemoteHost) -> None:
    try:
        host.write_ssh("-oUserKnownHostsFile=/dev/null")
        assert "the host's key is not known to user root: compare and accept it once" in await why_not(host.ssh)
        host.write_ssh("-oPubkeyAuthentication=no")
        assert "it does not let us in: put a key of user root" in await why_not(host.ssh)
    finally:
        host.write_ssh()
    assert "no Docker engine runs there (/nowhere.sock is not there)" in await why_not(
        host.ssh.replace(str(host.socket), "/nowhere.sock")
    )
    assert "Connection refused" in await why_not(host.ssh.replace(":2222", ":2223"))
    assert not host.ssh_clients()


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────


async def test_why_tls_does_not_reach_an_engine(
    host: RemoteHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path / "none"))
    assert f"{tmp_path}/none/ca.pem is not there" in await why_not(host.tls)

    issue(tmp_path, host.address)  # another CA
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    assert f"{tmp_path}/ca.pem must be the CA that has signed it" in await why_not(host.tls)

    (tmp_path / "ca.pem").write_bytes((host.certificates / "ca.pem").read_bytes())

    async def refused() -> bool:  # or the connection is reset before the alert is read
        return f"does not accept our certificate {tmp_path}/cert.pem" in await why_not(host.tls)

    await until(refused)

    monkeypatch.delenv("DOCKER_CERT_PATH")
    monkeypatch.delenv("DOCKER_TLS_VERIFY")
    assert "wants TLS: set DOCKER_TLS_VERIFY=1" in await why_not(host.tls)


async def test_what_is_not_tls_is_told_apart(host: RemoteHost) -> None:
    runtime = DockerRuntime("n1", docker_host=f"tcp://{host.address}:2222")
    with pytest.raises(RuntimeUnavailable, match="speaks no TLS: check the port"):
        await runtime.facts()
    await runtime.close()
