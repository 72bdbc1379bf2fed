"""Where the containers of an engine are reached, and what an agent says if it cannot know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mesh.agent.node import choose_runtime
from mesh.runtime.docker import DockerRuntime
from mesh.settings import AgentSettings, StoreSettings
from mesh.settings.sources import SettingsError, Sources


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the runtime was made with."""
    seen: dict[str, Any] = {}
    made = DockerRuntime.__init__

    def init(self: DockerRuntime, node: str, **options: Any) -> None:
        seen.update(options)
        made(self, node, **options)

    monkeypatch.setattr(DockerRuntime, "__init__", init)
    return seen


def settings(folder: Path, **more: Any) -> AgentSettings:
    return AgentSettings(node="n1", store=StoreSettings(), state=folder, runtime="docker", **more)


async def test_ports_are_published_on_the_engines_host(tmp_path: Path, built: dict[str, Any]) -> None:
    chosen = await choose_runtime(
        settings(tmp_path, docker_host="ssh://bob@10.0.0.7", dns_listen=("127.0.0.1:53", "10.0.0.5:53"))
    )
    assert (built["publish"], built["address"], built["state"]) == ("published", "10.0.0.7", tmp_path)
    assert chosen.problems == ()
    assert chosen.settings.address == "127.0.0.1"


async def test_another_address_of_it_may_be_named(tmp_path: Path, built: dict[str, Any]) -> None:
    await choose_runtime(settings(tmp_path, docker_host="tcp://127.0.0.1:2376", engine_address="192.0.2.7"))
    assert (built["publish"], built["address"]) == ("published", "192.0.2.7")


async def test_containers_that_are_routed_may_be_reached_themselves(tmp_path: Path, built: dict[str, Any]) -> None:
    await choose_runtime(settings(tmp_path, docker_host="tcp://10.0.0.7:2376", publish="direct"))
    assert built["publish"] == "direct"


async def test_a_host_that_only_ssh_knows_and_dns_that_it_does_not_reach_are_problems(tmp_path: Path) -> None:
    chosen = await choose_runtime(settings(tmp_path, docker_host="ssh://nowhere.invalid", address="10.0.0.5"))
    where, dns = chosen.problems
    assert "nowhere.invalid" in where
    assert where.endswith("set --engine-address")
    assert dns.endswith("--dns-listen 10.0.0.5:53")


def test_an_engine_publishes_on_no_name() -> None:
    with pytest.raises(SettingsError, match=r"--engine-address: must be an IP address such as 10\.77\.0\.11, got 'h7'"):
        Sources({}, {}, None, None).agent(StoreSettings(), engine_address="h7")


@pytest.mark.parametrize("host", ["h7", "10.0.0.7:2376", "tcp://10.0.0.7"])
def test_what_names_no_engine_is_refused_at_once(host: str) -> None:
    with pytest.raises(SettingsError, match=r"DOCKER_HOST: must be unix:///socket, tcp://host:port or ssh://"):
        Sources({"DOCKER_HOST": host}, {}, None, None).agent(StoreSettings())
