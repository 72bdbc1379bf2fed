"""Where containers are told to find DNS: at an address that they reach, never at one that stands for others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mesh.agent.node import choose_runtime
from mesh.agent.surroundings import surroundings
from mesh.runtime.docker import DockerRuntime
from mesh.settings import AgentSettings, StoreSettings

BRIDGE = "172.17.0.1"


def settings(folder: Path, **more: Any) -> AgentSettings:
    return AgentSettings(node="n1", store=StoreSettings(), state=folder, runtime="docker", **more)


@pytest.mark.parametrize(
    ("listens", "gateway", "nameservers", "dns"),
    [
        (("127.0.0.1:53",), "", [], "127.0.0.1:53"),
        (("127.0.0.1:53", "172.17.0.1:53"), BRIDGE, [BRIDGE], "172.17.0.1:53"),
        (("0.0.0.0:53",), BRIDGE, [BRIDGE], "172.17.0.1:53"),  # the engine is here
        (("0.0.0.0:53",), "", ["10.0.0.5"], "10.0.0.5:53"),  # and elsewhere
        (("0.0.0.0:5353",), "", [], "10.0.0.5:5353"),
        (("[::1]:53", "[::]:53", "localhost:53"), "", [], "[::1]:53"),
        (("[fd00::5]:53",), "", ["fd00::5"], "[fd00::5]:53"),
    ],
)  # fmt: skip
def test_replicas_are_told_addresses_that_they_reach(
    tmp_path: Path, listens: tuple[str, ...], gateway: str, nameservers: list[str], dns: str
) -> None:
    told = surroundings(settings(tmp_path, address="10.0.0.5", dns_listen=listens), "cluster", gateway)
    assert (told.nameservers, told.dns, told.search) == (nameservers, dns, ["svc.cluster"])


@pytest.mark.parametrize("listens", [("0.0.0.0:53",), ("127.0.0.1:53", "172.17.0.1:53")])
async def test_a_dns_that_answers_on_the_bridge_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listens: tuple[str, ...]
) -> None:
    async def gateway(_: DockerRuntime) -> str:
        return BRIDGE

    monkeypatch.setattr(DockerRuntime, "bridge_gateway", gateway)
    chosen = await choose_runtime(settings(tmp_path, docker_host="unix:///nowhere", dns_listen=listens))
    assert (chosen.gateway, chosen.settings.dns_listen, chosen.problems) == (BRIDGE, listens, ())
    await chosen.runtime.close()
