"""`mesh agent`, `scheduler`, `dev`, `dns`, `proxy`: what the flags say reaches the processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mesh.settings import AgentSettings, DevSettings, DnsSettings, ProxySettings, SchedulerSettings
from tests.cli.conftest import Mesh


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The settings that processes were started with; each ends at once with exit code 3."""
    found: list[Any] = []

    def start(settings: object) -> int:
        found.append(settings)
        return 3

    for name in ("daemon.run_agent", "daemon.run_scheduler", "daemon.run_dns", "daemon.run_proxy", "dev.run_dev"):
        monkeypatch.setattr(f"mesh.{name}", start)
    return found


def test_an_agents_flags(mesh: Mesh, started: list[Any], tmp_path: Path) -> None:
    flags = ["--node", "n1", "--address", "10.0.0.1", "--state", tmp_path, "--store", "c:8500", "--runtime", "process",
             "--label", "zone=a", "-l", "rack=r1", "--publish", "published", "--vips", "loopback", "--dns-workers", 2,
             "--dns-listen", "127.0.0.1:5353", "--dns-listen", "[::1]:5353", "--admin-listen", "127.0.0.1:7071",
             "--upstream", "9.9.9.9,8.8.8.8"]  # fmt: skip
    assert mesh("agent", *flags).code == 3
    (settings,) = started
    assert settings == AgentSettings(
        node="n1", address="10.0.0.1", state=tmp_path, store=settings.store, runtime="process", publish="published",
        labels={"zone": "a", "rack": "r1"}, vips="loopback", dns_workers=2, admin_listen="127.0.0.1:7071",
        dns_listen=("127.0.0.1:5353", "[::1]:5353"), upstreams=("9.9.9.9", "8.8.8.8"),
    )  # fmt: skip
    assert settings.store.address == "http://c:8500"


def test_dev_uses_a_real_consul_only_if_told(
    mesh: Mesh, started: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "c:8500")
    mesh("dev", "--state", tmp_path, "--store-listen", "127.0.0.1:1")
    mesh("dev", "--state", tmp_path, "--store", "d:8500")
    assert started[0] == DevSettings(state=tmp_path, store_listen="127.0.0.1:1")
    assert started[1].store.address == "http://d:8500"


def test_a_schedulers_flags(mesh: Mesh, started: list[Any]) -> None:
    mesh("scheduler", "--name", "s1", "--admin-listen", "127.0.0.1:0")
    (settings,) = started
    assert settings == SchedulerSettings(store=settings.store, name="s1", admin_listen="127.0.0.1:0")


def test_dns_and_proxy_from_a_file(mesh: Mesh, started: list[Any], tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    table.write_text(json.dumps({}))
    mesh("dns", "--table", table, "--listen", "127.0.0.1:5353", "--workers", 2, "--no-forward", "--allow", "10.0.0.0/8",
         "--admin", "127.0.0.1:0", "--upstream", "9.9.9.9")  # fmt: skip
    mesh("dns", "--table", table)
    mesh("proxy", "--table", table, "--node", "n1", "--workers", 3, "--trust", "10.0.0.0/8,::1")
    assert started == [
        DnsSettings(table, ("127.0.0.1:5353",), 2, "127.0.0.1:0", ("9.9.9.9",), forward=False, allow=("10.0.0.0/8",)),
        DnsSettings(table),
        ProxySettings(table, node="n1", workers=3, trust=("10.0.0.0/8", "::1/128")),
    ]
    assert mesh("proxy", "--table", table, "--trust", "ten").err.startswith("error: --trust: must be a network such as")
    assert mesh("proxy", "--table", table, "--admin", "7070").err.startswith("error: --admin: must be address:port")


@pytest.mark.parametrize("listen", ["5353", "127.0.0.1:", "127.0.0.1:99999"])
def test_a_bad_address_is_a_sentence(mesh: Mesh, started: list[Any], tmp_path: Path, listen: str) -> None:
    table = tmp_path / "table.json"
    table.write_text("{}")
    result = mesh("dns", "--table", table, "--listen", listen)
    assert (result.code, started) == (2, [])
    assert result.err == f"error: --listen: must be address:port such as 127.0.0.1:8500, got {listen!r}\n"
